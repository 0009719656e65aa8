"""Python's garbage collector, set for runs."""

import atexit
import gc
from functools import cache


def spare_garbage_collector() -> None:
    """Keep the collector off a run, which makes tens of thousands of small immutable values and few cycles.

    A process of many runs looks for the last one's cycles where the next one begins: few other objects are young then.
    What stays is not looked at again, nor at the end of the process, which takes what is left as a whole.
    """
    _spare_imports()
    gc.collect(0)
    gc.freeze()


@cache
def _spare_imports() -> None:
    gc.freeze()
    gc.set_threshold(1_000_000, 50, 50)
    atexit.register(gc.freeze)

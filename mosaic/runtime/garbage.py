"""Python's garbage collector, set for runs."""

import atexit
import gc
from itertools import count

FULL_EVERY = 64
"""So many runs of a process, what outlived a run is looked at again: its configuration did."""
_numbers = count()
"""Of the runs of this process."""


def spare_garbage_collector() -> None:
    """Keep the collector off a run, which makes tens of thousands of small immutable values and few cycles.

    A process of many runs looks for the last one's cycles where the next one begins: few other objects are young then.
    What stays is seldom looked at again, and not at the end of the process, which takes what is left as a whole.
    """
    number = next(_numbers)
    if number == 0:
        gc.set_threshold(1_000_000, 50, 50)
        atexit.register(gc.freeze)
    elif number % FULL_EVERY:
        gc.collect(0)
    else:
        gc.unfreeze()
        gc.collect()
    gc.freeze()

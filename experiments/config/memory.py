"""Python's garbage collector, set for runs."""

import atexit
import gc
from itertools import count

_numbers = count()
"""Of the runs of this process."""


def spare_garbage_collector() -> None:
    """Keep the collector off a run, which makes tens of thousands of small immutable values and few cycles.

    A process of many runs looks for the cycles of those before where the next one begins. What has been imported then
    is not looked at again, nor what is left at the end of the process.
    """
    number = next(_numbers)
    if number:
        gc.collect()
    else:
        gc.set_threshold(1_000_000, 50, 50)
        atexit.register(gc.freeze)
    if number < 2:  # the first run imports as well
        gc.freeze()

"""Python's garbage collector, set for runs."""

import atexit
import gc
from itertools import count

FULL_EVERY = 64
"""After so many runs of a process the collector checks again what outlived a run: its configuration did."""
_numbers = count()
"""Of the runs of this process."""


def spare_garbage_collector() -> None:
    """Keep the collector off a run, which makes tens of thousands of small immutable values and few cycles.

    A process of many runs looks for the last one's cycles where the next one begins: few other objects are young then.
    Objects that stay are seldom checked again, and not at the end of the process, which frees all memory at once.
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

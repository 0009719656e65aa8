"""Sets up Python's garbage collector for runs."""

import atexit
import gc
from itertools import count

FULL_EVERY = 64
"""Runs of a process after which the collector checks surviving objects again, such as old configurations."""
_numbers = count()
"""Counts the runs of this process."""


def spare_garbage_collector() -> None:
    """Keep the collector off a run, which creates tens of thousands of small immutable values and few cycles.

    A process with many runs collects the cycles of the last run when the next one starts: few other objects are young
    then. Surviving objects are seldom checked again. At the end of the process they are not checked, since all memory
    is freed at once.
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

"""Python's garbage collector, set for runs."""

import gc
from functools import cache


@cache
def spare_garbage_collector() -> None:
    """Keep the collector off what was imported, and off short-lived records: a fifth of a run's time, once a process.

    A run makes tens of thousands of small immutable values and next to no cycles. What imports have left over stays: it
    is little, and to look for it takes longer than all later collections.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)

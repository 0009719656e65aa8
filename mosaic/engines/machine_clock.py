"""Clocks of other machines: how far one is ahead of this machine's."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Offset(NamedTuple):
    """Add it to an instant of this machine's monotonic clock, and it is one of the other machine's."""

    offset_s: float
    error_s: float
    """It is off by no more than this."""


def measure_offset(
    ask: Callable[[], float], now: Callable[[], float] = time.monotonic, *, num_tries: int = 8
) -> Offset:
    """Ask another machine for its time, several times; the quickest answer tells most.

    The other clock was read between question and answer, so the middle of the two is off by half of what they took
    at most.

    Parameters
    ----------
    ask
        Reads the other clock.
    now
        Reads this one.
    num_tries
        How often.

    Examples
    --------
    >>> here = iter([10.0, 10.5, 20.0, 20.25])
    >>> measure_offset(iter([110.25, 120.125]).__next__, here.__next__, num_tries=2)
    Offset(offset_s=100.0, error_s=0.125)

    References
    ----------
    F. Cristian, "Probabilistic clock synchronization", Distributed Computing 3 (1989).
    """
    tries = []
    for _ in range(num_tries):
        before = now()
        there = ask()
        after = now()
        tries.append(Offset(there - (before + after) / 2, (after - before) / 2))
    return min(tries, key=lambda one: one.error_s)

"""Waiting in simulated time."""

from collections.abc import Generator
from typing import Any, TypeAlias

import simpy

ProcessGenerator: TypeAlias = Generator[simpy.Event, Any, None]


def wait_until(env: simpy.Environment, ts: float) -> ProcessGenerator:
    """Wait until the clock shows exactly ``ts``.

    SimPy adds a delay to the clock, and now + (ts - now) may miss ts by a rounding error: enough for two
    runs of the same plan to differ that pass the same instants with other stops between. From half of the
    way on the difference of two floats is exact.
    """
    while env.now < ts:
        delay = ts - env.now
        yield env.timeout(delay if env.now + delay == ts else delay / 2)


def for_ever(env: simpy.Environment) -> ProcessGenerator:
    """Wait until somebody interrupts."""
    yield env.event()

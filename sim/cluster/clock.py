"""Handles simulated time: waits in SimPy, and the engines of runs with reacting controllers."""

from collections.abc import Generator
from heapq import heappop, heappush
from math import inf
from typing import Any, TypeAlias

import simpy

from sim.cluster.session import SimSession
from sim.engine.request import Request

ProcessGenerator: TypeAlias = Generator[simpy.Event, Any, None]


def wait_until(env: simpy.Environment, ts: float) -> ProcessGenerator:
    """Wait until the clock shows exactly ``ts``.

    SimPy adds a delay to the clock, and now + (ts - now) may miss ts by a rounding error. That is enough to make two
    runs of the same plan differ if they stop at different instants in between. From half of the way on, the difference
    of two floats is exact.
    """
    while env.now < ts:
        delay = ts - env.now
        yield env.timeout(delay if env.now + delay == ts else delay / 2)


def run_until(env: simpy.Environment, ts: float) -> None:
    """Run until the clock shows exactly ``ts``: SimPy adds a delay here too, see ``wait_until``."""
    while env.now < ts:
        delay = ts - env.now
        env.run(until=ts if env.now + delay == ts else env.now + delay / 2)


class EngineClock:
    """Takes engines from one change of their batch to the next, in the order of time.

    An engine whose calls finished, or that got a command, is touched: its next change is computed again.
    """

    def __init__(self) -> None:
        self.touched: dict[SimSession, None] = {}
        self._changes: list[tuple[float, int, SimSession]] = []
        self._num_changes = 0

    @property
    def has_changes(self) -> bool:
        """Whether an engine has anything to do."""
        return bool(self._changes)

    def touch(self, live: SimSession) -> None:
        """Mark a session for a new computation of its next change."""
        self.touched[live] = None

    def compose(self) -> list[SimSession]:
        """Find the next changes of the batches of touched sessions; return sessions with nothing left to do."""
        idle = []
        for live in self.touched:
            engine = live.engine
            if engine is None:
                continue
            change_ts = engine.next_event_ts()
            live.change = self._num_changes = self._num_changes + 1
            if change_ts < inf:
                heappush(self._changes, (change_ts, live.change, live))
            else:
                idle.append(live)
        self.touched.clear()
        return idle

    def run(self, limit_ts: float) -> tuple[float, SimSession, list[Request]] | None:
        """Run engines until one finishes calls or has nothing left, which touches it; returns the time and these calls.

        None if that is not before the limit. Changes that a command has made invalid are skipped.
        """
        heap = self._changes
        while heap:
            ts, number, live = heap[0]
            if live.change != number:
                heappop(heap)
                continue
            if ts >= limit_ts:
                return None
            heappop(heap)
            engine = live.engine
            assert engine is not None
            finished = engine.advance_to(ts)
            next_ts = inf if finished else engine.next_event_ts()
            if next_ts == inf:
                self.touched[live] = None
                return ts, live, finished
            heappush(heap, (next_ts, number, live))
        return None

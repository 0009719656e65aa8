"""Engines that run ahead of the clock for as long as nobody tells them anything."""

from collections import deque
from math import inf

from sim.engine.engine import Engine
from sim.engine.request import Request

FIRST, MOST = 4, 64
"""Finishes by which an engine runs ahead: few at first and then more, as they are thrown away when a command comes."""


class Lookahead:
    """What an engine finishes, and when, if it is told nothing more.

    NOTE: engines that go on in turn, each to its next finish, take a third longer than one after the other: nothing is
    where the processor looks first. So an engine takes many finishes in a row, and they are told in their turn. The
    first command that concerns it makes them void: another engine then repeats what has been told, and from there on
    goes with the clock.
    """

    def __init__(self, engine: Engine, start_ts: float) -> None:
        self._engine = engine
        self._coming: deque[tuple[float, list[Request]]] = deque()
        self._num_ahead = FIRST
        self._num_told = 0
        self._told_ts = start_ts

    def next_ts(self) -> float:
        """Next instant at which requests finish; infinite if none do."""
        if not self._coming:
            self._run()
        return self._coming[0][0] if self._coming else inf

    def tell(self) -> tuple[list[Request], float]:
        """Give the requests that finish next, as the clock has got there, and when others do after them."""
        coming = self._coming
        self._told_ts, finished = coming.popleft()
        self._num_told += 1
        return finished, coming[0][0] if coming else self.next_ts()

    def repeat(self, engine: Engine, now: float) -> None:
        """Take an engine that has the same requests and has not begun to where the clock is."""
        for _ in range(self._num_told):
            engine.run_events(engine.next_event_ts(), inf)
        if self._told_ts < now:  # else its next batch is still open
            while (ts := engine.next_event_ts()) < now:
                engine.run_events(ts, now)

    def _run(self) -> None:
        self._coming.extend(self._engine.run_ahead(self._num_ahead))
        self._num_ahead = min(2 * self._num_ahead, MOST)

"""Calls that wait: for their time, and then for room."""

import heapq

from mosaic.core.workload import CallKey


class CallQueue:
    """Gives calls whose time has come, of those the lower priority first, and of equal ones the one that came first."""

    def __init__(self) -> None:
        self._future: list[tuple[float, tuple[int, int], CallKey]] = []
        self._ready: list[tuple[tuple[int, int], CallKey]] = []
        self._ranks: dict[CallKey, tuple[int, int]] = {}
        """Of those that wait; what else is in the heaps has left."""

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: CallKey) -> bool:
        return key in self._ranks

    def in_order(self) -> list[CallKey]:
        """List the calls in the order of their ranks."""
        return sorted(self._ranks, key=self._ranks.__getitem__)

    def add(self, key: CallKey, rank: tuple[int, int], ready_s: float) -> None:
        """Let a call wait; ``rank`` is its priority and its number."""
        self._ranks[key] = rank
        heapq.heappush(self._future, (ready_s, rank, key))

    def discard(self, key: CallKey) -> bool:
        """Take a call out; False: it was not there."""
        return self._ranks.pop(key, None) is not None

    def pop(self, now: float) -> CallKey | None:
        """Take the next call out; None: none is ready."""
        self._sort(now)
        if not self._ready:
            return None
        _, key = heapq.heappop(self._ready)
        del self._ranks[key]
        return key

    def next_ready_s(self, now: float) -> float | None:
        """Tell when a call will be ready; None: one is, or none waits."""
        self._sort(now)
        return None if self._ready or not self._future else self._future[0][0]

    def _sort(self, now: float) -> None:
        """Move calls whose time has come, and drop those that have left."""
        while self._future and (self._future[0][0] <= now or self._has_left(self._future[0][2], self._future[0][1])):
            _, rank, key = heapq.heappop(self._future)
            heapq.heappush(self._ready, (rank, key))
        while self._ready and self._has_left(self._ready[0][1], self._ready[0][0]):
            heapq.heappop(self._ready)

    def _has_left(self, key: CallKey, rank: tuple[int, int]) -> bool:
        return self._ranks.get(key) != rank

"""Requests that an engine has not admitted: those still to arrive, and those that wait in line."""

from collections import deque
from heapq import heapify, heappop, heappush
from math import inf

from sim.engine.request import Request


class RequestQueue:
    """First come, first served; who is preempted comes back to the front."""

    __slots__ = ("_arriving", "_num_added", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self._arriving: list[tuple[float, int, Request]] = []
        self._num_added = 0

    @property
    def next_arrival_ts(self) -> float:
        """When the next request arrives; infinite if none is to come."""
        return self._arriving[0][0] if self._arriving else inf

    def add(self, request: Request) -> None:
        """Expect a request at its ``queued_ts``; of two at the same instant the one added first is first."""
        heappush(self._arriving, (request.queued_ts, self._num_added, request))
        self._num_added += 1

    def let_arrive(self, now: float) -> None:
        """Put those that have arrived in line."""
        while self._arriving and self._arriving[0][0] <= now:
            self.waiting.append(heappop(self._arriving)[2])

    def remove(self, request: Request) -> None:
        """Take out a request, in line or not."""
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self._arriving = [entry for entry in self._arriving if entry[2] is not request]
            heapify(self._arriving)

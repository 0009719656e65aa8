"""Requests that an engine has not admitted: those still to arrive, and those that wait in line."""

from bisect import bisect_right, insort
from collections import deque
from math import inf

from sim.engine.request import Request


def _arrival_ts(request: Request) -> float:
    return request.queued_ts


class RequestQueue:
    """First come, first served; who is preempted comes back to the front."""

    __slots__ = ("_arriving", "next_arrival_ts", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.next_arrival_ts = inf
        """When the next request arrives; infinite if none is to come."""
        self._arriving: list[Request] = []
        """In the order in which they arrive."""

    def add(self, request: Request) -> None:
        """Expect a request at its ``queued_ts``; of two at the same instant the one added first is first."""
        arriving = self._arriving
        if arriving and request.queued_ts < arriving[-1].queued_ts:
            insort(arriving, request, key=_arrival_ts)
        else:
            arriving.append(request)
        self.next_arrival_ts = arriving[0].queued_ts

    def let_arrive(self, now: float) -> None:
        """Put those that have arrived in line."""
        arriving = self._arriving
        num_here = bisect_right(arriving, now, key=_arrival_ts)
        self.waiting += arriving[:num_here]
        del arriving[:num_here]
        self.next_arrival_ts = arriving[0].queued_ts if arriving else inf

    def remove(self, request: Request) -> None:
        """Take out a request, in line or not."""
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self._arriving.remove(request)
            self.next_arrival_ts = self._arriving[0].queued_ts if self._arriving else inf

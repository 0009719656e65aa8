"""The queues of experts: calls that go to whichever session has room."""

from heapq import heapify, heappop, heappush

from mosaic.core.workload import ExpertName
from sim.cluster.session import PendingCall


class Queues:
    """One queue an expert, by priority and then by arrival."""

    def __init__(self) -> None:
        self._entries: dict[ExpertName, list[tuple[int, int, PendingCall]]] = {}
        self._num_pushed = 0

    def push(self, pending: PendingCall, priority: int) -> None:
        """Add a call to its expert's queue; the lower priority goes first."""
        heappush(self._entries.setdefault(pending.true.call.expert, []), (priority, self._num_pushed, pending))
        self._num_pushed += 1

    def pop(self, expert: ExpertName, count: int) -> list[PendingCall]:
        """Take at most so many calls."""
        entries = self._entries.get(expert, [])
        return [heappop(entries)[2] for _ in range(min(count, len(entries)))]

    def remove(self, pending: PendingCall) -> None:
        """Take a call out, wherever it stands."""
        entries = self._entries[pending.true.call.expert]
        entries[:] = [entry for entry in entries if entry[2] is not pending]
        heapify(entries)

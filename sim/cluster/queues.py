"""The queues of experts: calls that go to whichever session has room."""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

from mosaic.core.workload import ExpertName
from sim.cluster.session import PendingCall, SimSession


class Queues:
    """One queue an expert, by priority and then by arrival."""

    def __init__(self) -> None:
        self.entries: dict[ExpertName, list[tuple[int, int, PendingCall]]] = {}
        """By expert, those that hold calls; one dictionary for good, which the backend looks at."""
        self._num_pushed = 0

    def __len__(self) -> int:
        """Count the experts whose queues hold calls."""
        return len(self.entries)

    def push(self, pending: PendingCall, priority: int) -> None:
        """Add a call to its expert's queue; the lower priority goes first."""
        heappush(self.entries.setdefault(pending.call.expert, []), (priority, self._num_pushed, pending))
        self._num_pushed += 1

    def hand_out(
        self, expert: ExpertName, sessions: Iterable[SimSession], max_num_seqs: int
    ) -> Iterator[tuple[PendingCall, SimSession]]:
        """Give calls to sessions with room, as the caller adds them: the one with the fewest is first."""
        entries, sessions = self.entries.get(expert, []), list(sessions)
        while entries and sessions:
            live = min(sessions, key=lambda live: len(live.calls))
            if len(live.calls) >= max_num_seqs:
                return
            pending = heappop(entries)[2]
            if not entries:
                del self.entries[expert]
            yield pending, live

    def remove(self, pending: PendingCall) -> None:
        """Take a call out, wherever it stands."""
        expert = pending.call.expert
        entries = self.entries[expert] = [entry for entry in self.entries[expert] if entry[2] is not pending]
        heapify(entries)
        if not entries:
            del self.entries[expert]

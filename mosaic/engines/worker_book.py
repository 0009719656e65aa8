"""What the executor knows of each worker, whatever process runs on it."""

from collections.abc import Collection, Iterable, Sequence

from mosaic.core.events import Lost
from mosaic.engines.messages import Gone, There


class WorkerBook:
    """Workers of a run: who is lost, since when each is free, and how often nothing could be loaded there.

    Parameters
    ----------
    num_workers
        They are numbered from 0.
    start_ts
        When the run begins or goes on.
    lost
        Workers that were given up, and why; runs that share it know of each other's.
    changes
        What has become of workers since.
    """

    def __init__(
        self, num_workers: int, start_ts: float, lost: dict[int, str], changes: Iterable[Gone | There] = ()
    ) -> None:
        self.lost = lost
        for change in changes:
            for worker in change.workers:
                if isinstance(change, Gone):
                    lost.setdefault(worker, change.cause)
                else:
                    lost.pop(worker, None)
        self._free_ts = [start_ts] * num_workers
        self._num_failed_loads = [0] * num_workers
        self._busy: set[int] = set()

    def losses(self) -> list[Lost]:
        """Tell which workers a run begins without."""
        lost = sorted(self.lost.items())
        return [Lost(0.0, worker, cause, len(lost) - number) for number, (worker, cause) in enumerate(lost, start=1)]

    def are_there(self, workers: Iterable[int]) -> bool:
        """Tell whether none of some workers is lost."""
        return self.lost.keys().isdisjoint(workers)

    def take(self, workers: Iterable[int]) -> None:
        """Note that a session waits for workers."""
        self._busy.update(workers)

    def idle(self, busy: Collection[int]) -> list[int]:
        """List the workers that no session waits for any more, given those that are waited for or in use."""
        idle = sorted(self._busy - set(busy) - self.lost.keys())
        self._busy = set(busy)
        return idle

    def free(self, workers: Iterable[int], ts: float) -> None:
        """Note that workers are free from an instant on."""
        for worker in workers:
            self._free_ts[worker] = max(self._free_ts[worker], ts)

    def free_ts(self, workers: Sequence[int]) -> float:
        """Tell since when all of some workers are free."""
        return max(self._free_ts[worker] for worker in workers)

    def note_served(self, workers: Iterable[int]) -> None:
        """Note that workers serve: failures to load are counted anew."""
        for worker in workers:
            self._num_failed_loads[worker] = 0

    def note_failed_load(self, worker: int) -> int:
        """Count a failure to load; gives how many there are in a row."""
        self._num_failed_loads[worker] += 1
        return self._num_failed_loads[worker]

    def bring_back(self, workers: Iterable[int], ts: float) -> list[int]:
        """Note that workers are there; gives those that were lost."""
        back = [worker for worker in workers if self.lost.pop(worker, None) is not None]
        self.free(back, ts)
        self.note_served(back)
        return back

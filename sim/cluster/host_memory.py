"""Simulates the models in a machine's memory: weights that were read, and sleeping engines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, TypeAlias

from mosaic.core.plan import Placement
from mosaic.core.workload import ExpertName


@dataclass(slots=True)
class Holding:
    """Memory that was held for a while, for checks of a run's memory."""

    place: int | None
    """A worker; None: the machine."""
    what: str
    expert: ExpertName
    num_bytes: int
    start_ts: float
    end_ts: float = inf


class Weights(NamedTuple):
    """Weights of an expert, as files are cached: one copy for all sessions."""

    expert: ExpertName


class Asleep(NamedTuple):
    """Weights of a sleeping engine: a copy of its own, until it has woken."""

    home: Placement


Entry: TypeAlias = Weights | Asleep


class HostMemory:
    """Keeps models that fit, and evicts the least recently used first.

    Sleeping engines also hold a little memory on their GPUs, if running engines leave some free.

    Parameters
    ----------
    num_bytes
        Size of the machine's memory.
    asleep_gpu_bytes
        Memory of a sleeping engine on each of its GPUs.
    spare_gpu_bytes
        Memory that running engines leave free, by worker.
    """

    def __init__(self, num_bytes: int, asleep_gpu_bytes: int, spare_gpu_bytes: Sequence[int]) -> None:
        self._free = num_bytes
        self._asleep_bytes = asleep_gpu_bytes
        self._spare = list(spare_gpu_bytes)
        self._held: dict[Entry, list[Holding]] = {}
        """In the order of their last use."""
        self.ready_ts: dict[Entry, float] = {}
        """When each entry has been read completely."""
        self._num_readers: Counter[Entry] = Counter()
        self.holdings: list[Holding] = []

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._held

    def read(self, entry: Entry) -> None:
        """Begin to copy an entry to a GPU: it stays until the copy has ended, and becomes the most recently used."""
        self._held[entry] = self._held.pop(entry)
        self._num_readers[entry] += 1

    def end_read(self, entry: Entry) -> None:
        """Record the end of a copy."""
        self._num_readers[entry] -= 1

    def keep(self, entry: Entry, num_bytes: int, ts: float, ready_ts: float) -> bool:
        """Add an entry, evicting the least recently used ones; False: it does not fit."""
        workers: Sequence[int] = entry.home[1] if isinstance(entry, Asleep) else ()
        expert = entry.home[0] if isinstance(entry, Asleep) else entry.expert
        if entry in self._held:
            if self._num_readers[entry]:
                return False
            self.drop(entry, ts)
        gone = self._victims(num_bytes, workers)
        if gone is None:
            return False
        for victim in gone:
            self.drop(victim, ts)
        held = [Holding(None, type(entry).__name__.lower(), expert, num_bytes, ts)]
        held += [Holding(worker, "asleep", expert, self._asleep_bytes, ts) for worker in workers]
        for holding in held:
            self._change(holding, -1)
        self.holdings += held
        self._held[entry] = held
        self.ready_ts[entry] = ready_ts
        return True

    def drop(self, entry: Entry, ts: float) -> None:
        """Evict an entry at an instant."""
        for holding in self._held.pop(entry):
            holding.end_ts = ts
            self._change(holding, 1)
        del self.ready_ts[entry]

    def _victims(self, num_bytes: int, workers: Sequence[int]) -> list[Entry] | None:
        """List the entries to evict for so many bytes of memory, and for a sleeping engine on some workers."""
        free = self._free - num_bytes
        spare = {worker: self._spare[worker] - self._asleep_bytes for worker in workers}
        gone: list[Entry] = []
        for entry, held in self._held.items():
            if free >= 0 and not _short(spare):
                break
            if self._num_readers[entry]:
                continue
            helps = free < 0 or any(holding.place in _short(spare) for holding in held)
            if helps:
                gone.append(entry)
                free += held[0].num_bytes
                for holding in held[1:]:
                    if holding.place in spare:
                        spare[holding.place] += holding.num_bytes
        return gone if free >= 0 and not _short(spare) else None

    def _change(self, holding: Holding, sign: int) -> None:
        if holding.place is None:
            self._free += sign * holding.num_bytes
        else:
            self._spare[holding.place] += sign * holding.num_bytes


def _short(spare: Mapping[int, int]) -> set[int]:
    return {worker for worker, left in spare.items() if left < 0}

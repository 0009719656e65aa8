"""What is left of experts where sessions have run: on workers, asleep, and in the host's memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mosaic.core.cluster import Worker
from mosaic.core.plan import Home
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.costs import Residency
from mosaic.planning.restricted_costs import Wrapped


@dataclass(frozen=True, slots=True)
class Held:
    """What sessions have left behind, as far as nothing had to be given up since: memory is taken for ample."""

    resident: Mapping[int, Home] = field(default_factory=dict)
    """What each worker loaded last."""
    engines: frozenset[Home] = frozenset()
    """All that were up."""

    def residency(self, expert: ExpertName, workers: tuple[int, ...]) -> Residency:
        """Say where an expert's weights are, as seen from some workers."""
        home = expert, workers
        if all(self.resident.get(worker) == home for worker in workers):
            return Residency.RESIDENT
        if home in self.engines:
            return Residency.ASLEEP
        return Residency.HOST if any(name == expert for name, *_ in self.engines) else Residency.COLD

    def anywhere(self, expert: ExpertName) -> Residency:
        """Say where an expert's weights are at least, whatever the workers."""
        return Residency.HOST if any(name == expert for name, *_ in self.engines) else Residency.COLD

    def after(self, expert: ExpertName, workers: tuple[int, ...]) -> "Held":
        """Give what is held once an expert has been brought up on some workers."""
        home = expert, workers
        return Held({**self.resident, **dict.fromkeys(workers, home)}, self.engines | {home})

    def without(self, worker: int) -> "Held":
        """Give what is held once a worker has begun anew."""
        resident = {one: home for one, home in self.resident.items() if one != worker}
        return Held(resident, frozenset(home for home in self.engines if worker not in home[1]))


class HostLoads(Protocol):
    """Loads that need no disk, where the host keeps weights or engines."""

    def load_s(self, expert: Expert, workers: tuple[Worker, ...], residency: Residency) -> float | None:
        """Give the seconds of a load of an expert that is on the host or asleep; None: the host keeps no such thing."""


@dataclass(frozen=True, slots=True)
class WithHost(Wrapped):
    """Prices where the host keeps something of experts that were loaded."""

    loads: HostLoads

    def load_s(self, expert: Expert, workers: Sequence[Worker], residency: Residency) -> float:
        seconds = None
        if residency in (Residency.HOST, Residency.ASLEEP):
            seconds = self.loads.load_s(expert, tuple(workers), residency)
        return self.costs.load_s(expert, workers, residency) if seconds is None else seconds

"""Adjusts prices to the state of a run: models that stayed loaded, lost workers, and calls that will not run."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mosaic.core.cluster import Worker
from mosaic.core.plan import Placement
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.costs import CostModel, LinearTerms, WeightLocation


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """Models that sessions left loaded. Memory is assumed to be ample: no model had to be evicted."""

    resident: Mapping[int, Placement] = field(default_factory=dict)
    """The model that each worker loaded last."""
    engines: frozenset[Placement] = frozenset()
    """All engines that were up."""

    def location(self, expert: ExpertName, workers: tuple[int, ...]) -> WeightLocation:
        """Return where an expert's weights are, for some workers."""
        home = expert, workers
        if all(self.resident.get(worker) == home for worker in workers):
            return WeightLocation.RESIDENT
        return WeightLocation.ASLEEP if home in self.engines else self.anywhere(expert)

    def anywhere(self, expert: ExpertName) -> WeightLocation:
        """Return where an expert's weights are at least, for any workers."""
        return WeightLocation.HOST if any(name == expert for name, *_ in self.engines) else WeightLocation.COLD

    def after(self, expert: ExpertName, workers: tuple[int, ...]) -> "LoadedModels":
        """Return what is loaded after an expert has been loaded on some workers."""
        home = expert, workers
        return LoadedModels({**self.resident, **dict.fromkeys(workers, home)}, self.engines | {home})

    def without(self, worker: int) -> "LoadedModels":
        """Return what is loaded after a worker has restarted."""
        resident = {one: home for one, home in self.resident.items() if one != worker}
        return LoadedModels(resident, frozenset(home for home in self.engines if worker not in home[1]))


HostLoads: TypeAlias = Callable[[Expert, Sequence[Worker], WeightLocation], float]
"""Returns the load seconds of an expert in the machine's memory or asleep, which needs no disk."""


@dataclass(frozen=True, slots=True)
class RunCosts:
    """The prices of another cost model, adjusted to the state of a run."""

    costs: CostModel
    sessions: CostModel | None = None
    """Prices sessions instead of ``costs``, and provides the name."""
    lost: Collection[int] = frozenset()
    """Lost workers: nothing fits on them."""
    resident: Mapping[int, ExpertName] = field(default_factory=dict)
    """By worker, the expert that it need not load again."""
    host_loads: HostLoads | None = None
    run_frac_by_expert: Mapping[ExpertName, float] = field(default_factory=dict)
    """Share of an expert's calls that is expected to run, if it is not all of them."""

    @property
    def name(self) -> str:
        return (self.sessions or self.costs).name

    def load_s(self, expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        if self.resident and all(self.resident.get(worker.id) == expert.name for worker in workers):
            return 0.0
        if self.host_loads is not None and location in (WeightLocation.HOST, WeightLocation.ASLEEP):
            return self.host_loads(expert, workers, location)
        return self.costs.load_s(expert, workers, location)

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        share = self.run_frac_by_expert.get(expert.name, 1.0)
        pieces = (self.sessions or self.costs).pieces(expert, workers)
        return tuple(LinearTerms(fixed_s, call_s * share) for fixed_s, call_s in pieces)

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        return not any(worker.id in self.lost for worker in workers) and self.costs.fits(expert, workers)

    def notes(self) -> Sequence[str]:
        return self.costs.notes()

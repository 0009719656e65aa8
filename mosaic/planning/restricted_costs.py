"""Cost models that change another: they leave out workers that are lost."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mosaic.core.cluster import Worker
from mosaic.core.workload import Expert
from mosaic.planning.costs import CostModel, LinearTerms, Residency, ShardSummary


@dataclass(frozen=True, slots=True)
class Wrapped:
    """The prices of another cost model."""

    costs: CostModel

    @property
    def name(self) -> str:
        """Of the prices."""
        return self.costs.name

    def load_s(self, expert: Expert, workers: Sequence[Worker], residency: Residency) -> float:
        return self.costs.load_s(expert, workers, residency)

    def session_s(self, expert: Expert, shard: ShardSummary, workers: Sequence[Worker]) -> float:
        return self.costs.session_s(expert, shard, workers)

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        return self.costs.linear_terms(expert, workers)

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        return self.costs.pieces(expert, workers)

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        return self.costs.fits(expert, workers)

    def notes(self) -> Sequence[str]:
        return self.costs.notes()


@dataclass(frozen=True, slots=True)
class WithoutWorkers(Wrapped):
    """Nothing fits on workers that are gone."""

    lost: Collection[int]

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        return not any(worker.id in self.lost for worker in workers) and self.costs.fits(expert, workers)

"""Prices for runs in which calls of upper layers join sessions of the first: what they write is priced with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mosaic.core.cluster import Worker
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.costs import LinearTerms, ShardSummary
from mosaic.planning.restricted_costs import Wrapped


@dataclass(frozen=True, slots=True)
class JoinedCalls(Wrapped):
    """With each call of an expert comes so much more of its work."""

    more_frac_by_expert: Mapping[ExpertName, float]

    def session_s(self, expert: Expert, shard: ShardSummary, workers: Sequence[Worker]) -> float:
        terms = self.linear_terms(expert, workers)
        return terms.fixed_s + terms.per_call_s * shard.num_calls if shard.num_calls else 0.0

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        terms = self.costs.linear_terms(expert, workers)
        return terms._replace(per_call_s=terms.per_call_s * (1.0 + self.more_frac_by_expert.get(expert.name, 0.0)))

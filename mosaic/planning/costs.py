"""Prices of loads and sessions: closed forms fitted to a profile, never the simulator itself."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from mosaic.core.cluster import Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import ProfileError
from mosaic.core.kv_memory import fits_memory
from mosaic.core.plan import LengthPrediction
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.profiles import Profile, ProfileEntry, convex_pieces


class Residency(StrEnum):
    """Where an expert's weights are when a session opens."""

    COLD = "cold"
    """On disk."""
    HOST = "host"
    """In the host's memory, where it keeps them; else this is as cold."""
    ASLEEP = "asleep"
    """In the host's memory with an engine on the same workers, where engines sleep; else as above."""
    RESIDENT = "resident"


class ShardSummary(NamedTuple):
    """What a price may depend on: the number of calls and the moments of their predicted lengths."""

    num_calls: int
    lengths: LengthPrediction


class LinearTerms(NamedTuple):
    """An affine session price, which is what an integer linear program can use."""

    fixed_s: float
    per_call_s: float


def price_s(pieces: Sequence[LinearTerms], num_calls: int) -> float:
    """Price a session by the highest of its affine prices; 0 without calls."""
    return max(piece.fixed_s + piece.per_call_s * num_calls for piece in pieces) if num_calls else 0.0


class CostModel(Protocol):
    """Prices sessions for the schedulers."""

    @property
    def name(self) -> str:
        """Its name in plans and summaries."""

    def load_s(self, expert: Expert, workers: Sequence[Worker], residency: Residency) -> float:
        """Predict the seconds from idle workers to a ready engine."""

    def session_s(self, expert: Expert, shard: ShardSummary, workers: Sequence[Worker]) -> float:
        """Predict the seconds to serve a shard once the expert is loaded; 0 for an empty shard."""

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        """Split the session price into a part paid per session and a part paid per call.

        Where the price is not affine these are terms that no session is cheaper than.
        """

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        """List affine prices of which a session costs the highest: one where the price is affine."""

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        """Tell whether weights and one full-length call fit into the workers' memory."""

    def notes(self) -> Sequence[str]:
        """Say where a price was extrapolated beyond its measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProfiledCosts(ABC):
    """Prices from a profile's fits; what differs is how a session's price splits into its linear terms."""

    profile: Profile
    num_calls_by_expert: Mapping[ExpertName, int]
    """N_m of the problem."""
    options: EngineOptions = field(default_factory=EngineOptions)
    """Of the engines: what they keep free decides what fits."""

    def load_s(self, expert: Expert, workers: Sequence[Worker], residency: Residency) -> float:
        return 0.0 if residency is Residency.RESIDENT else self._entry(expert, workers).load_s

    def session_s(self, expert: Expert, shard: ShardSummary, workers: Sequence[Worker]) -> float:
        return price_s(self.pieces(expert, workers), shard.num_calls)

    @abstractmethod
    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        """Split the session price; see ``CostModel.linear_terms``."""

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        return (self.linear_terms(expert, workers),)

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        return fits_memory(expert, workers, self.options)

    def notes(self) -> Sequence[str]:
        return self.profile.extrapolation_notes(self.num_calls_by_expert)

    def _entry(self, expert: Expert, workers: Sequence[Worker]) -> ProfileEntry:
        return self.profile.entry(expert.name, workers[0].gpu.name, len(workers), expert.kv_budget_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperCosts(_ProfiledCosts):
    """The paper's constant price per prompt, tau_m = T_m(N_m) / N_m.

    It spreads a session's fixed part over the prompts and so under-prices small shards.

    References
    ----------
    MOSAIC, arXiv 2606.03014, equation 4.
    """

    name: str = "paper"

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        fit = self._entry(expert, workers).fit
        num_calls = self.num_calls_by_expert.get(expert.name)
        if not num_calls:
            raise ProfileError(f"costs=paper: no number of calls N_m for expert {expert.name!r}")
        return LinearTerms(0.0, fit.session_s(num_calls) / num_calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineCosts(_ProfiledCosts):
    """An affine price T_m(n) = a_m + b_m n: still linear in the program, right for small shards."""

    name: str = "affine"

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        fit = self._entry(expert, workers).fit
        return LinearTerms(fit.fixed_s, fit.per_call_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecewiseCosts(_ProfiledCosts):
    """A convex piecewise-linear price through the means of the sweep's shard sizes.

    A small shard lasts as long as its longest answer, a large one as long as the batch takes to work it off: one affine
    price is too high between the two or too low at an end. Where measured times are not convex, it is the greatest
    convex price that is nowhere above them.
    """

    name: str = "piecewise"

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        return [piece for piece in self.pieces(expert, workers) if piece.fixed_s >= 0][-1]

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        points = self._entry(expert, workers).points
        if not points:
            raise ProfileError(f"costs=piecewise: the profile must keep the points of {expert.name!r}, got none")
        return tuple(LinearTerms(*piece) for piece in convex_pieces(points))

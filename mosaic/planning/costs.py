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
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.profiles import Profile, ProfileEntry, convex_pieces


class WeightLocation(StrEnum):
    """Where an expert's weights are when a session opens."""

    COLD = "cold"
    """On disk."""
    HOST = "host"
    """In the machine's memory, if it keeps weights there; otherwise as ``COLD``."""
    ASLEEP = "asleep"
    """In the machine's memory with a sleeping engine on the same workers, if engines sleep; otherwise as above."""
    RESIDENT = "resident"


class LinearTerms(NamedTuple):
    """An affine price of a session, as an integer linear program needs it."""

    fixed_s: float
    per_call_s: float


def price_s(pieces: Sequence[LinearTerms], num_calls: int) -> float:
    """Price a session by the highest of its affine prices; 0 without calls."""
    if not num_calls:
        return 0.0
    if len(pieces) == 1:  # the usual case, and packing prices millions of sessions
        fixed_s, per_call_s = pieces[0]
        return fixed_s + per_call_s * num_calls
    return max(piece.fixed_s + piece.per_call_s * num_calls for piece in pieces)


def least_terms(pieces: Sequence[LinearTerms]) -> LinearTerms:
    """Return affine terms that are a lower bound on a session's price, for any division of calls into sessions."""
    return max((piece for piece in pieces if piece.fixed_s >= 0), key=lambda piece: piece.per_call_s)


class CostModel(Protocol):
    """Prices sessions for the schedulers."""

    @property
    def name(self) -> str:
        """Its name in plans and summaries."""

    def load_s(self, expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        """Predict the seconds from idle workers to a ready engine."""

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        """List affine prices; the highest of them is the session's price. One piece if the price is affine."""

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        """Return whether weights and one full-length call fit into the workers' memory."""

    def notes(self) -> Sequence[str]:
        """Return remarks on prices that were extrapolated beyond their measurements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProfiledCosts(ABC):
    """Prices from a profile's fits; subclasses differ in the price of a session."""

    profile: Profile
    num_calls_by_expert: Mapping[ExpertName, int]
    """N_m of the problem."""
    options: EngineOptions = field(default_factory=EngineOptions)
    """Options of the engines: the memory that they keep free limits what fits."""

    def load_s(self, expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        return 0.0 if location is WeightLocation.RESIDENT else self._entry(expert, workers).load_s

    @abstractmethod
    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        """List affine prices of a session; see ``CostModel.pieces``."""

    def fits(self, expert: Expert, workers: Sequence[Worker]) -> bool:
        return fits_memory(expert, workers, self.options)

    def notes(self) -> Sequence[str]:
        return self.profile.extrapolation_notes(self.num_calls_by_expert)

    def _entry(self, expert: Expert, workers: Sequence[Worker]) -> ProfileEntry:
        return self.profile.entry(expert.name, workers[0].gpu.name, len(workers), expert.kv_budget_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperCosts(_ProfiledCosts):
    """The paper's constant price per prompt, tau_m = T_m(N_m) / N_m.

    It spreads a session's fixed part over the prompts, so its price of a small shard is too low.

    References
    ----------
    MOSAIC, arXiv 2606.03014, equation 4.
    """

    name: str = "paper"

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        fit = self._entry(expert, workers).fit
        num_calls = self.num_calls_by_expert.get(expert.name)
        if not num_calls:
            raise ProfileError(f"costs=paper: no number of calls N_m for expert {expert.name!r}")
        return (LinearTerms(0.0, fit.session_s(num_calls) / num_calls),)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineCosts(_ProfiledCosts):
    """An affine price T_m(n) = a_m + b_m n: linear in the program, and correct for small shards."""

    name: str = "affine"

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        fit = self._entry(expert, workers).fit
        return (LinearTerms(fit.fixed_s, fit.per_call_s),)


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecewiseCosts(_ProfiledCosts):
    """A convex piecewise-linear price through the means of the sweep's shard sizes.

    A small shard takes as long as its longest answer; a large one takes as long as the throughput of the batch
    requires. One affine price is too high between the two or too low at an end. If measured times are not convex, it is
    the greatest convex price that is nowhere above them.
    """

    name: str = "piecewise"

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        points = self._entry(expert, workers).points
        if not points:
            raise ProfileError(f"costs=piecewise: the profile must keep the points of {expert.name!r}, got none")
        return tuple(LinearTerms(*piece) for piece in convex_pieces(points))

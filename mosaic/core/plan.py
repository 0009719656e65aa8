"""The plan: which expert loads on which workers, in which order, and which calls each session serves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import sqrt
from typing import Any, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.checks import NotNegative, Positive, check_fields, checked, require, require_unique
from mosaic.core.workload import PROPOSE, CallKey, ExpertName, NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One expert, resident on fixed workers and serving calls: it is opened, gets calls, and is closed."""

    id: int
    expert: ExpertName
    node: NodeName = PROPOSE
    """Node of the calls that the session is planned for."""
    workers: tuple[int, ...]
    """Held together from load to unload; the tensor-parallel degree is their number."""
    shard: tuple[CallKey, ...] = ()
    """The calls that the plan assigns to it; a session that is opened during a run may have none yet."""
    after: tuple[int, ...] = ()
    """Sessions that must have ended before this one loads."""

    def __post_init__(self) -> None:
        label = f"session {self.id} of {self.expert!r}"
        require(len(self.workers) > 0, f"{label}: workers", "at least one worker", self.workers)
        require_unique(self.workers, f"{label}: workers")


UNPRICED = "none"
"""The costs of a plan without prices."""

Placement: TypeAlias = tuple[ExpertName, tuple[int, ...]]
"""An expert and its workers: a session with the placement of the session before finds its expert loaded."""


def placement_of(session: Session) -> Placement:
    """Return the placement that a session leaves behind on its workers."""
    return session.expert, session.workers


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("length prediction: ")
class LengthPrediction:
    """Predicted distribution of one expert's output tokens per call."""

    mean: Positive
    max: Positive
    std: NotNegative = 0.0

    def __post_init__(self) -> None:
        require(self.max >= self.mean, "length prediction: max", f"at least the mean {self.mean:g}", self.max)


def prediction_from_sample(lengths: Sequence[int]) -> LengthPrediction:
    """Summarise lengths measured on calibration questions.

    Raises
    ------
    ValueError
        If the sample is empty.
    """
    require(len(lengths) > 0, "length sample", "non-empty", list(lengths))
    mean = sum(lengths) / len(lengths)
    variance = add_in_order((length - mean) ** 2 for length in lengths) / len(lengths)
    return LengthPrediction(mean=mean, max=float(max(lengths)), std=sqrt(variance))


@dataclass(frozen=True, slots=True)
@checked("predicted times: ")
class PredictedTimes:
    """Expected times of a session, in seconds on the run's clock."""

    start_s: NotNegative
    load_s: NotNegative
    end_s: NotNegative


@dataclass(slots=True, kw_only=True)
class Expected:
    """What is expected of a run, for displays; the run adds to it as it proceeds."""

    num_calls: int = 0
    """Calls that the run has in any case."""
    unit: str = "worker"
    """What a session runs on: a worker, or a server, where no model is loaded."""
    times: dict[int, PredictedTimes] = field(default_factory=dict)
    """Times that plans expect for sessions, by the session's number in the run."""
    left_s: Callable[[Any], float | None] = lambda view: None
    """Predicts from the run's view the seconds until all submitted calls have ended; None: it cannot."""

    def add(self, plan: "Plan", first_session: int) -> None:
        """Add the times of a plan whose session 0 has the given number in the run."""
        for session, times in zip(plan.sessions, plan.predicted, strict=True):
            self.times[session.id + first_session] = times


class SolveStatus(StrEnum):
    """How a plan was made."""

    OPTIMAL = "optimal"
    TIME_LIMIT = "time_limit"
    HEURISTIC = "heuristic"
    """A rule of a baseline, without a solver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveReport:
    """The outcome of the solver, as data."""

    status: SolveStatus
    objective_s: float | None = None
    """The program's own makespan C (None for a rule)."""
    bound_s: float | None = None
    gap_frac: float | None = None
    num_vars: int | None = None
    """Of the program; None if it was not built."""
    num_constraints: int | None = None
    wall_s: float | None = field(default=None, compare=False)
    """Seconds of solving, packing included: in meta.json, never in the plan file; None for a rule or a loaded plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sessions in one total order; each worker's queue is derived from it, so gangs cannot deadlock.

    The decisions (which expert, where, in which order) are binding. The predictions serve only to report the gap.
    """

    scheduler: str
    costs: str
    """Name of the cost model behind the predictions and the bound."""
    problem_fingerprint: str
    num_workers: int
    sessions: tuple[Session, ...]
    predicted: tuple[PredictedTimes, ...]
    """One per session, in the same order."""
    lengths: Mapping[ExpertName, LengthPrediction]
    lower_bound_s: NotNegative
    """No plan under the same caps (and K, for the ILP) is cheaper under the problem's costs."""
    solve: SolveReport
    notes: tuple[str, ...] = ()
    """Reasons for the plan, and what was extrapolated."""

    def __post_init__(self) -> None:
        require_unique((session.id for session in self.sessions), "plan: session id")
        check_fields(self, "plan: ")
        rule = f"one entry for each of {len(self.sessions)} sessions"
        require(len(self.predicted) == len(self.sessions), "plan: predicted", rule, len(self.predicted))

    @property
    def is_priced(self) -> bool:
        """Whether its times are predictions; without prices they are zeros."""
        return self.costs != UNPRICED

    @property
    def predicted_makespan_s(self) -> float:
        """Predicted end of the last session."""
        return max((times.end_s for times in self.predicted), default=0.0)


def unpriced_plan(sessions: Sequence[Session], *, num_workers: int) -> Plan:
    """Make a plan without prices from sessions: for servers, and for sessions that measure."""
    return Plan(
        scheduler="none",
        costs=UNPRICED,
        problem_fingerprint="none",
        num_workers=num_workers,
        sessions=tuple(sessions),
        predicted=tuple(PredictedTimes(0.0, 0.0, 0.0) for _ in sessions),
        lengths={},
        lower_bound_s=0.0,
        solve=SolveReport(status=SolveStatus.HEURISTIC),
    )

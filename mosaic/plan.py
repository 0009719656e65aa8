"""The plan: which expert loads where, in which order, and which calls each session serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from mosaic.checks import require, require_unique
from mosaic.errors import PlanError
from mosaic.prediction import LengthPrediction
from mosaic.problem import Problem
from mosaic.workload import Call, CallKey, ExpertName, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One expert, resident on fixed workers, serving one shard of calls."""

    id: int
    expert: ExpertName
    role: Role
    workers: tuple[int, ...]
    """Held together from load to unload; the tensor-parallel degree is their number."""
    shard: tuple[CallKey, ...]
    after: tuple[int, ...] = ()
    """Sessions that must have ended before this one loads."""

    def __post_init__(self) -> None:
        label = f"session {self.id} of {self.expert!r}"
        require(len(self.workers) > 0, f"{label}: workers", "at least one worker", self.workers)
        require_unique(self.workers, f"{label}: workers")
        require(len(self.shard) > 0, f"{label}: shard", "at least one call", 0)


@dataclass(frozen=True, slots=True)
class PredictedTimes:
    """What the scheduler expects of a session, in seconds on the run's clock."""

    start_s: float
    load_s: float
    end_s: float


class SolveStatus(StrEnum):
    """How a plan came about."""

    OPTIMAL = "optimal"
    TIME_LIMIT = "time_limit"
    HEURISTIC = "heuristic"
    """A baseline's rule; nothing was solved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveReport:
    """The solver's outcome as data."""

    status: SolveStatus
    objective_s: float | None = None
    """The program's own makespan C (None for a rule)."""
    bound_s: float | None = None
    gap_frac: float | None = None
    num_vars: int | None = None
    num_constraints: int | None = None
    wall_s: float | None = field(default=None, compare=False)
    """Solver seconds: reported in meta.json, never in the plan file; None for a rule or a loaded plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sessions in one total order; each worker's queue is derived from it, so gangs cannot deadlock.

    The decisions (who, where, in which order) bind. The predictions serve only to report the gap.
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
    lower_bound_s: float
    """No plan under the same caps (and K, for the ILP) is cheaper under the problem's costs."""
    solve: SolveReport
    notes: tuple[str, ...] = ()
    """Why the plan looks so, and what was extrapolated."""

    def __post_init__(self) -> None:
        require_unique((session.id for session in self.sessions), "plan: session id")
        require(
            len(self.predicted) == len(self.sessions),
            "plan: predicted",
            f"one entry for each of {len(self.sessions)} sessions",
            len(self.predicted),
        )

    @property
    def predicted_makespan_s(self) -> float:
        """Predicted end of the last session."""
        return max((times.end_s for times in self.predicted), default=0.0)

    def worker_queue(self, worker: int) -> tuple[Session, ...]:
        """Sessions of one worker, in order."""
        return tuple(session for session in self.sessions if worker in session.workers)


def unpriced_plan(sessions: Sequence[Session], *, num_workers: int) -> Plan:
    """Wrap sessions that measure costs, and so come before any price, into a plan that a backend can run."""
    return Plan(
        scheduler="none",
        costs="none",
        problem_fingerprint="none",
        num_workers=num_workers,
        sessions=tuple(sessions),
        predicted=tuple(PredictedTimes(0.0, 0.0, 0.0) for _ in sessions),
        lengths={},
        lower_bound_s=0.0,
        solve=SolveReport(status=SolveStatus.HEURISTIC),
    )


def check_plan(plan: Plan, problem: Problem) -> None:
    """Check that a plan serves exactly the problem's calls on the problem's cluster.

    Raises
    ------
    PlanError
        Naming the session or call and the rule that it breaks.
    """
    if plan.num_workers != problem.cluster.num_workers:
        raise PlanError(f"plan is for {plan.num_workers} workers, the cluster has {problem.cluster.num_workers}")
    experts = {expert.name: expert for expert in problem.experts}
    expert_of: dict[CallKey, Call] = {call.key: call for call in problem.calls}
    served: set[CallKey] = set()
    earlier: set[int] = set()
    for session in plan.sessions:
        label = f"plan session {session.id}"
        if session.expert not in experts:
            raise PlanError(f"{label}: expert must be one of {sorted(experts)}, got {session.expert!r}")
        tp_degree = experts[session.expert].tp_degree
        if len(session.workers) != tp_degree:
            raise PlanError(f"{label}: {session.expert} spans {tp_degree} workers, got {session.workers}")
        for worker in session.workers:
            if not 0 <= worker < plan.num_workers:
                raise PlanError(f"{label}: workers must be in 0 .. {plan.num_workers - 1}, got {worker}")
        for needed in session.after:
            if needed not in earlier:
                raise PlanError(f"{label}: after must name earlier sessions, got {needed}")
        earlier.add(session.id)
        for key in session.shard:
            call = expert_of.get(key)
            if call is None:
                raise PlanError(f"{label}: call {key} is not a call of this problem; was the plan made for another?")
            if call.expert != session.expert:
                raise PlanError(f"{label}: call {key} is for expert {call.expert!r}, got {session.expert!r}")
            if key in served:
                raise PlanError(f"{label}: call {key} must be served once, it is served twice")
            served.add(key)
    for call in problem.calls:
        if call.key not in served:
            raise PlanError(f"plan drops call {call.key}: each call must be served once")
    if plan.problem_fingerprint != problem.fingerprint():
        raise PlanError(
            f"plan was made for another problem: fingerprint must be {problem.fingerprint()}, "
            f"got {plan.problem_fingerprint} (prompts, experts or cluster differ)"
        )

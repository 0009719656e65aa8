"""The stage after the barrier: the gate's decisions, the aggregator's calls, its plan, and both stages as one run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from mosaic.answers.extraction import Comparison, comparison
from mosaic.core.checks import require, require_count, require_name, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.results import CallRecord, CallStatus, RunResult
from mosaic.core.workload import AnswerKind, Call, Expert, Workload
from mosaic.pipelines.aggregation import MIN_OUTPUT_TOKENS, aggregator_calls, fits_context
from mosaic.pipelines.final_answers import Comparisons, FinalAnswer, final_answers
from mosaic.pipelines.gates.gate import Ballot, Decision, Gate, Vote, make_ballot
from mosaic.planning.costs import AffineCosts
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem
from mosaic.planning.profiles import Profile
from mosaic.planning.schedulers.base import Scheduler
from mosaic.planning.schedulers.data_parallel import DataParallel
from mosaic.runtime.backend import Backend
from mosaic.runtime.replanning import Replan, execute_to_end, merge
from mosaic.runtime.run import CostFactory


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregator:
    """Who merges the answers, and over how many GPUs."""

    name: str
    """Of the choice: tp4, dp4, auto."""
    expert: Expert
    tp_degrees: tuple[int, ...]
    """Several: the cheaper by the cost model. With 1 there is a replica per GPU, with more one session over so many."""
    min_output_tokens: int = MIN_OUTPUT_TOKENS
    """Room that a prompt leaves for what the aggregator writes."""

    def __post_init__(self) -> None:
        require_name(self.name, "aggregator.name")
        if isinstance(self.tp_degrees, str) or not isinstance(self.tp_degrees, Sequence):
            raise TypeError(f"aggregator.tp_degrees must be a list of whole numbers, got {self.tp_degrees!r}")
        object.__setattr__(self, "tp_degrees", tuple(self.tp_degrees))
        require(len(self.tp_degrees) > 0, "aggregator.tp_degrees", "at least one degree", self.tp_degrees)
        require_unique(self.tp_degrees, "aggregator.tp_degrees")
        for degree in self.tp_degrees:
            require_count(degree, "aggregator.tp_degrees", at_least=1)
        require_count(self.min_output_tokens, "aggregator.min_output_tokens", at_least=1)

    def shaped(self, tp_degree: int) -> Expert:
        """Return the expert as it runs at a tensor-parallel degree."""
        return replace(self.expert, tp_degree=tp_degree, max_replicas=None if tp_degree == 1 else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What the first stage leaves to the second."""

    ballots: tuple[Ballot, ...]
    decisions: tuple[Decision, ...]
    calls: tuple[Call, ...]
    """The aggregator's: one for each question that the gate does not skip and the aggregator can read."""

    @property
    def skip_frac(self) -> float:
        """Share of the questions that the gate skips."""
        return sum(decision.skip for decision in self.decisions) / len(self.decisions)

    @property
    def num_too_long(self) -> int:
        """Questions that the gate does not skip and the aggregator cannot read: they keep the gate's answer."""
        return sum(not decision.skip for decision in self.decisions) - len(self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorPlan:
    """The plan of the second stage, with the aggregator as it is placed."""

    expert: Expert
    problem: Problem
    plan: Plan
    scheduler: Scheduler
    """Who made the plan, and plans again what lost workers leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondStage:
    """What the second stage did."""

    handover: Handover
    planned: AggregatorPlan | None
    """None: no question was left to aggregate."""
    joined: RunResult
    """Both stages on one clock."""
    aggregated: Mapping[str, str | None]
    """The aggregator's answers by question."""
    answers: tuple[FinalAnswer, ...]
    replans: tuple[Replan, ...] = ()
    """Made because workers were lost."""


def comparisons(free_text: Comparison | None = None) -> Comparisons:
    """Say how answers of each kind compare; free text only by a comparison of the user's own."""
    return {**{kind: comparison(kind) for kind in AnswerKind}, AnswerKind.TEXT: free_text}


def ballots(workload: Workload, records: Sequence[CallRecord], compare: Comparisons) -> tuple[Ballot, ...]:
    """Collect each question's answers by slot; a call that did not finish has none."""
    answers = {record.key: record.answer for record in records if record.status is CallStatus.FINISHED}
    votes: dict[str, list[Vote]] = {question.id: [] for question in workload.questions}
    for call in sorted(workload.calls, key=lambda call: call.key.slot):
        votes[call.key.question].append(Vote(call.expert, answers.get(call.key)))
    return tuple(
        make_ballot(question, votes[question.id], compare[question.answer_kind])
        for question in workload.questions
        if votes[question.id]
    )


def hand_over(
    workload: Workload, records: Sequence[CallRecord], gate: Gate, aggregator: Aggregator, compare: Comparisons
) -> Handover:
    """Let the gate decide on every question and make the aggregator's calls for the others.

    Parameters
    ----------
    workload
        Questions and the expert stage's calls.
    records
        What became of these calls, one record each.
    gate, aggregator
        Who decides and who merges.
    compare
        How answers compare.
    """
    cast = ballots(workload, records, compare)
    decisions = tuple(gate.decide(ballot) for ballot in cast)
    wanted = [
        ballot.question
        for ballot, decision in zip(cast, decisions, strict=True)
        if not decision.skip
        and fits_context(
            ballot.question, aggregator.expert, len(ballot.votes), min_output_tokens=aggregator.min_output_tokens
        )
    ]
    calls = aggregator_calls(wanted, records, aggregator.expert, min_output_tokens=aggregator.min_output_tokens)
    return Handover(ballots=cast, decisions=decisions, calls=calls)


def plan_aggregator(
    calls: Sequence[Call],
    aggregator: Aggregator,
    *,
    pool: Sequence[Expert],
    cluster: Cluster,
    profile: Profile,
    costs: CostFactory,
    scheduler: Scheduler,
) -> AggregatorPlan:
    """Plan the aggregator's calls at each of its degrees and keep the plan with the least predicted makespan.

    One session over several GPUs is placed by the run's scheduler; a replica per GPU is data parallelism by
    definition, whatever the scheduler. Where there is a choice both are priced by the affine model: the paper's
    constant price per call knows nothing of what a small shard's longest call costs. The other experts of the pool
    are known to the problem, so that a scheduler's settings may name them, and have no calls.

    Raises
    ------
    InfeasibleError
        If the aggregator finds no place.
    ProfileError
        If the profile does not cover it at each degree.
    """
    priced: CostFactory = costs if len(aggregator.tp_degrees) == 1 else AffineCosts
    plans: list[AggregatorPlan] = []
    for degree in aggregator.tp_degrees:
        expert = aggregator.shaped(degree)
        problem = Problem(
            experts=(expert, *(other for other in pool if other.name != expert.name)),
            calls=tuple(calls),
            cluster=cluster,
            costs=priced(profile=profile, num_calls_by_expert={expert.name: len(calls)}),
            lengths={expert.name: profile.lengths(expert.name)},
        )
        policy: Scheduler = DataParallel() if degree == 1 else scheduler
        made = policy.plan(problem)
        check_plan(made, problem)
        plans.append(AggregatorPlan(expert=expert, problem=problem, plan=made, scheduler=policy))
    return min(plans, key=lambda option: option.plan.predicted_makespan_s)


def aggregate(
    workload: Workload,
    first: RunResult,
    *,
    gate: Gate,
    aggregator: Aggregator,
    pool: Sequence[Expert],
    cluster: Cluster,
    costs: CostFactory,
    scheduler: Scheduler,
    profile: Callable[[], Profile],
    backend: Callable[[Expert], Backend],
    compare: Comparisons | None = None,
    step: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
) -> SecondStage:
    """Run the second stage: gate, plan and execute the aggregator's calls, collect the final answers.

    Parameters
    ----------
    workload, first
        The expert stage's calls and what became of them.
    gate, aggregator
        Who decides and who merges.
    pool, cluster, costs, scheduler
        As in the expert stage.
    profile
        Gives the aggregator's profile; asked only if there is a call to plan.
    backend
        Makes the backend for the aggregator as it is placed; it knows what the first stage said.
    compare
        How answers compare; None: multiple choice and mathematics as `mosaic.answers` does, free text not at all.
    step
        Wraps the steps gate, profile_aggregator, plan_aggregator and aggregate, to time them.

    Raises
    ------
    InfeasibleError, ProfileError, PlanError, BackendError
        If the aggregator's calls cannot be planned or run.
    """
    compare = comparisons() if compare is None else compare
    with step("gate"):
        handover = hand_over(workload, first.calls, gate, aggregator, compare)
    planned: AggregatorPlan | None = None
    replans: tuple[Replan, ...] = ()
    second = RunResult(calls=(), sessions=(), num_workers=first.num_workers)
    if handover.calls:
        with step("profile_aggregator"):
            measured = profile()
        with step("plan_aggregator"):
            planned = plan_aggregator(
                handover.calls,
                aggregator,
                pool=pool,
                cluster=cluster,
                profile=measured,
                costs=costs,
                scheduler=scheduler,
            )
        with step("aggregate"):
            done = execute_to_end(planned.plan, planned.problem, backend(planned.expert), planned.scheduler)
            second, replans = done.result, done.replans
    aggregated = answers_of(second)
    return SecondStage(
        handover=handover,
        planned=planned,
        joined=join_stages(first, second),
        aggregated=aggregated,
        answers=final_answers(handover.ballots, handover.decisions, aggregated, compare),
        replans=replans,
    )


def answers_of(second: RunResult) -> dict[str, str | None]:
    """Collect the aggregator's answers by question; a call that did not finish has none."""
    return {record.key.question: record.answer for record in second.calls if record.status is CallStatus.FINISHED}


def join_stages(first: RunResult, second: RunResult) -> RunResult:
    """Put two stages on one clock, a barrier between them; the second's session numbers follow the first's."""
    barrier_ts = max((session.end_ts for session in first.sessions), default=0.0)
    sessions = tuple(
        replace(
            session,
            load_start_ts=session.load_start_ts + barrier_ts,
            start_ts=session.start_ts + barrier_ts,
            end_ts=session.end_ts + barrier_ts,
        )
        for session in second.sessions
    )
    calls = tuple(_shifted(record, barrier_ts) for record in second.calls)
    actions = tuple(action._replace(ts=action.ts + barrier_ts) for action in second.actions)
    return merge(first, replace(second, calls=calls, sessions=sessions, actions=actions))


def _shifted(record: CallRecord, barrier_ts: float) -> CallRecord:
    def later(ts: float | None) -> float | None:
        return None if ts is None else ts + barrier_ts

    return record._replace(
        queued_ts=record.queued_ts + barrier_ts,
        admitted_ts=later(record.admitted_ts),
        first_token_ts=later(record.first_token_ts),
        finished_ts=later(record.finished_ts),
    )

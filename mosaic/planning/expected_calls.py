"""Plans runs in which some calls are cancelled: it prices the calls expected to run, and starts light experts first.

NOTE: the idea. The calls of a question that end first decide which others are cancelled. So cancellations depend on the
plan, and the plan's prices depend on cancellations. The loop alternates: prices give a plan, and its times give the
share of each expert's calls that runs. It ends when the shares no longer change, and keeps the plan that then ends
first. Calibration questions show how often some votes settle a question. The forecast of a call's end is coarse: all
moments of its session are equally likely.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.plan import Plan, PredictedTimes, Session
from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.planning.costs import least_terms
from mosaic.planning.problem import Problem
from mosaic.planning.scheduler import PredictedTimeline, Scheduler
from mosaic.planning.wrapped_costs import RunCosts

SettledFrac: TypeAlias = Callable[[tuple[ExpertName, ...], int], float]
"""How often the votes of some experts settle a question, with the given number of votes missing."""

MAX_ROUNDS = 5
"""Rounds of plan and prices. Shares that still change then alternate between plans of almost equal makespan."""
NUM_TIMINGS = 3
"""Timings per plan: cancellations shorten sessions, and so change which calls end first."""
SHARE_TOLERANCE = 0.005


class _Forecast(NamedTuple):
    """Sessions with their expected times and shares."""

    sessions: tuple[Session, ...]
    times: tuple[PredictedTimes, ...]
    run_frac_by_expert: Mapping[ExpertName, float]

    @property
    def makespan_s(self) -> float:
        return max((times.end_s for times in self.times), default=0.0)


def plan_expected(scheduler: Scheduler, problem: Problem, settled_frac: SettledFrac) -> Plan:
    """Plan the calls of a first layer, of which some are cancelled.

    All of them are in the plan. Its prices and predictions count only the calls that are expected to run.

    Raises
    ------
    InfeasibleError
        If the scheduler raises it.
    """
    settled_frac = cache(settled_frac)
    shares: Mapping[ExpertName, float] = {}
    best: tuple[Plan, _Forecast] | None = None
    for _ in range(MAX_ROUNDS):
        plan = scheduler.plan(replace(problem, costs=RunCosts(problem.costs, run_frac_by_expert=shares)))
        orders = (plan.sessions, light_first(problem, plan.sessions))
        found = min((_forecast(problem, order, settled_frac) for order in orders), key=lambda made: made.makespan_s)
        if best is None or found.makespan_s < best[1].makespan_s:
            best = plan, found
        if all(
            abs(share - shares.get(name, 1.0)) < SHARE_TOLERANCE for name, share in found.run_frac_by_expert.items()
        ):
            break
        shares = found.run_frac_by_expert
    assert best is not None, "there is a first round"
    plan, found = best
    named = ", ".join(f"{name} {share:.0%}" for name, share in found.run_frac_by_expert.items())
    return replace(
        plan,
        sessions=found.sessions,
        predicted=found.times,
        lower_bound_s=min(plan.lower_bound_s, found.makespan_s),
        notes=(*plan.notes, f"early quorum: priced for the calls that are expected to run ({named})"),
    )


def light_first(problem: Problem, sessions: Sequence[Session]) -> tuple[Session, ...]:
    """Order sessions by the price of a call, so that votes arrive before the expensive calls start.

    Sessions that wait for others, span several workers or serve calls that come later keep their order.
    """
    bound = any(session.after or len(session.workers) > 1 for session in sessions)
    if bound or any(call.ready_s > 0 for call in problem.calls):
        return tuple(sessions)

    def per_call_s(session: Session) -> float:
        workers = problem.cluster.select(session.workers)
        return least_terms(problem.costs.pieces(problem.expert(session.expert), workers)).per_call_s

    ordered = sorted(sessions, key=per_call_s)
    return tuple(replace(session, id=number) for number, session in enumerate(ordered))


def _forecast(problem: Problem, sessions: Sequence[Session], settled_frac: SettledFrac) -> _Forecast:
    run_frac: Mapping[CallKey, float] = {call.key: 1.0 for call in problem.calls}
    for _ in range(NUM_TIMINGS):
        times = _times(problem, sessions, run_frac)
        run_frac = run_fracs(problem, sessions, times, settled_frac)
    times = _times(problem, sessions, run_frac)
    shares = {
        name: add_in_order(run_frac[call.key] for call in calls) / len(calls)
        for name, calls in problem.calls_by_expert().items()
    }
    return _Forecast(tuple(sessions), times, shares)


def _times(
    problem: Problem, sessions: Sequence[Session], run_frac: Mapping[CallKey, float]
) -> tuple[PredictedTimes, ...]:
    timeline = PredictedTimeline(problem)
    expected = (max(1, round(add_in_order(run_frac[key] for key in session.shard))) for session in sessions)
    return tuple(
        timeline.append(replace(session, shard=session.shard[:number]))
        for session, number in zip(sessions, expected, strict=True)
    )


def run_fracs(
    problem: Problem, sessions: Sequence[Session], times: Sequence[PredictedTimes], settled_frac: SettledFrac
) -> dict[CallKey, float]:
    """Forecast the probability that each call runs: the earlier calls of its question do not settle it.

    A call that is running when its question is settled counts as a call that does not run.
    """
    rng = Random(0)  # the same moments for all compared plans
    moment = {call.key: rng.random() for call in problem.calls}
    ends_s: dict[CallKey, float] = {}
    for session, (ready_s, end_s) in zip(sessions, ((t.start_s + t.load_s, t.end_s) for t in times), strict=True):
        ends_s |= {key: ready_s + (end_s - ready_s) * moment[key] for key in session.shard}
    fracs: dict[CallKey, float] = {}
    for calls in calls_by_question(problem.calls):
        ordered = sorted(calls, key=lambda call: ends_s[call.key])
        names = tuple(call.expert for call in ordered)
        fracs[ordered[0].key] = 1.0
        for place in range(1, len(names)):
            fracs[ordered[place].key] = 1.0 - settled_frac(names[:place], len(names) - place)
    return fracs


def calls_by_question(calls: Sequence[Call]) -> Iterable[list[Call]]:
    """Group calls by question, questions in first-seen order."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.key.question, []).append(call)
    return groups.values()

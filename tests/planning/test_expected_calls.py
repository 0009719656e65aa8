"""Plans that price the calls that are expected to run, and put light experts first."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from mosaic.core.cluster import Cluster
from mosaic.core.plan import PredictedTimes, Session
from mosaic.planning.baselines import LeastLoaded, RoundRobin
from mosaic.planning.expected_calls import light_first, plan_expected, run_fracs
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem
from mosaic.planning.program.schedulers import Ilp
from mosaic.planning.scheduler import predict_times
from mosaic.planning.wrapped_costs import RunCosts
from tests.factories import make_call, make_problem

PRICES = {"Light": 1.0, "Middle": 2.0, "Heavy": 20.0}


def three_each(num_questions: int, *, num_workers: int = 2, **changes) -> Problem:
    """Questions that three experts answer, the heavy one first in the query stream."""
    names = ["Heavy", "Light", "Middle"]
    calls = [
        make_call(f"q{i}", expert=name, slot=slot) for i in range(num_questions) for slot, name in enumerate(names)
    ]
    counts = dict.fromkeys(names, num_questions)
    return make_problem(counts, calls=calls, num_workers=num_workers, per_call_s=PRICES, **changes)


def two_settle(frac: float):
    """Two votes that are in settle this share of the questions."""
    return lambda experts, num_missing: frac if len(experts) == 2 else 0.0


def shards_of(problem: Problem) -> dict[str, tuple]:
    return {name: tuple(call.key for call in calls) for name, calls in problem.calls_by_expert().items()}


def test_the_call_that_ends_last_runs_where_the_others_do_not_settle_its_question() -> None:
    problem = three_each(4)
    shards = shards_of(problem)
    sessions = [Session(id=n, expert=name, workers=(0,), shard=shards[name]) for n, name in enumerate(PRICES)]
    times = [PredictedTimes(10.0 * n, 1.0, 10.0 * (n + 1)) for n in range(3)]
    looked_up = []

    def settled_frac(experts, num_missing) -> float:
        looked_up.append((tuple(experts), num_missing))
        return 0.75 if num_missing == 1 else 0.125

    fracs = run_fracs(problem, sessions, times, settled_frac)
    by_expert = {name: {fracs[key] for key in shard} for name, shard in shards.items()}
    assert by_expert == {"Light": {1.0}, "Middle": {0.875}, "Heavy": {0.25}}
    assert set(looked_up) == {(("Light",), 2), (("Light", "Middle"), 1)}


def test_calls_of_sessions_side_by_side_are_each_as_likely_to_be_the_last() -> None:
    problem = three_each(600, num_workers=3)
    shards = shards_of(problem)
    sessions = [Session(id=n, expert=name, workers=(n,), shard=shards[name]) for n, name in enumerate(PRICES)]
    fracs = run_fracs(problem, sessions, [PredictedTimes(0.0, 1.0, 10.0)] * 3, two_settle(1.0))
    for shard in shards.values():
        assert sum(fracs[key] for key in shard) / len(shard) == pytest.approx(2 / 3, abs=0.06)  # 3 standard errors


def test_prices_are_of_the_calls_that_are_expected() -> None:
    problem = three_each(8, fixed_s=3.0)
    costs = RunCosts(problem.costs, run_frac_by_expert={"Heavy": 0.25})
    workers = problem.cluster.workers[:1]
    heavy, light = problem.expert("Heavy"), problem.expert("Light")
    assert costs.pieces(heavy, workers) == ((3.0, 5.0),)
    assert costs.pieces(light, workers) == problem.costs.pieces(light, workers)
    assert (costs.name, costs.fits(heavy, workers)) == (problem.costs.name, True)


def test_light_experts_go_first_where_the_order_is_free() -> None:
    problem = three_each(2)
    shards = shards_of(problem)
    heavy, middle, light = (
        Session(id=n, expert=name, workers=(0,), shard=shards[name])
        for n, name in enumerate(("Heavy", "Middle", "Light"))
    )
    ordered = light_first(problem, [heavy, middle, light])
    assert [session.expert for session in ordered] == ["Light", "Middle", "Heavy"]
    assert [session.id for session in ordered] == [0, 1, 2]
    bound = [heavy, middle, replace(light, after=(0,))]
    assert light_first(problem, bound) == tuple(bound)
    wide = [heavy, replace(middle, workers=(0, 1)), light]
    assert light_first(problem, wide) == tuple(wide)
    late = replace(problem, calls=(*problem.calls[:-1], structs.replace(problem.calls[-1], ready_s=1.0)))
    assert light_first(late, [heavy, middle]) == (heavy, middle)


def test_where_nothing_is_settled_early_a_plan_is_the_schedulers_but_for_the_order() -> None:
    problem = three_each(6)
    plan, own = plan_expected(Ilp(), problem, two_settle(0.0)), Ilp().plan(problem)
    assert {(s.expert, s.workers, s.shard) for s in plan.sessions} == {
        (s.expert, s.workers, s.shard) for s in own.sessions
    }
    assert plan.predicted == predict_times(problem, plan.sessions)
    assert plan.predicted_makespan_s == own.predicted_makespan_s


def test_a_plan_for_expected_calls_moves_light_work_to_who_would_have_waited() -> None:
    """By hand: 10 questions, two workers; with all calls 200 + 10 + 20 s of work, half of the heavy calls run."""
    problem = three_each(10, load_s=0.0, max_replicas=1)
    whole = Ilp().plan(problem)
    assert whole.predicted_makespan_s == 200.0
    plan = plan_expected(Ilp(), problem, two_settle(0.5))
    check_plan(plan, problem)
    assert plan.predicted_makespan_s < 150.0
    assert plan.lower_bound_s <= plan.predicted_makespan_s
    assert plan.problem_fingerprint == problem.fingerprint
    assert any("Heavy" in note and "expected to run" in note for note in plan.notes)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.floats(0, 1),
    st.sampled_from([RoundRobin(), LeastLoaded(), Ilp()]),
)
def test_every_plan_serves_all_calls_and_expects_no_more_than_all(num_questions, num_workers, frac, scheduler) -> None:
    problem = three_each(num_questions, num_workers=num_workers)
    plan = plan_expected(scheduler, problem, two_settle(frac))
    check_plan(plan, problem)
    assert plan == plan_expected(scheduler, problem, two_settle(frac))
    for times, whole in zip(plan.predicted, predict_times(problem, plan.sessions), strict=True):
        assert times.end_s <= whole.end_s + 1e-9
    assert isinstance(problem.cluster, Cluster)

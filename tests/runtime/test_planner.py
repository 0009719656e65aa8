"""Plans of layers: all that a scheduler may know, and of several placements the one predicted to end first."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import InfeasibleError, ProfileError
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.planning.baselines import DataParallel, RoundRobin
from mosaic.planning.costs import AffineCosts, PaperCosts
from mosaic.planning.program.schedulers import Ilp
from mosaic.runtime.planner import NodePlacements, Placement, Planner, placed
from tests.factories import (
    assert_plan_valid,
    make_call,
    make_calls,
    make_cluster,
    make_entry,
    make_expert,
    make_gpu,
    make_profile,
)
from tests.runtime.jobs import merge_calls

GANG = make_entry("W", tp_degree=4, load_s=20.0, fixed_s=0.0, per_call_s=1.0)
ALONE = make_entry("W", tp_degree=1, load_s=40.0, fixed_s=50.0, per_call_s=2.0)
POOL = (make_expert("A"), make_expert("W", max_replicas=2), make_expert("B"))


def make_planner(*tp_degrees: int, entries=(GANG, ALONE), **changes: Any) -> Planner:
    """A planner of four workers: the aggregator over several by the run's scheduler, alone on every GPU."""
    placements = tuple(Placement(tp_degree=d, scheduler=DataParallel() if d == 1 else None) for d in tp_degrees)
    costs = AffineCosts if len(tp_degrees) > 1 else None
    arguments: dict[str, Any] = {
        "experts": POOL,
        "cluster": make_cluster(4),
        "scheduler": Ilp(),
        "costs": AffineCosts,
        "profiles": {PROPOSE: make_profile("A", "B"), AGGREGATE: make_profile(*entries)},
        "by_node": {AGGREGATE: NodePlacements(placements=placements, costs=costs)},
        **changes,
    }
    return Planner(**arguments)


def plan_merging(number: int, *tp_degrees: int, **changes: Any):
    return make_planner(*tp_degrees, **changes).plan(merge_calls(number))


def test_an_expert_as_it_is_placed() -> None:
    # The pool's cap is that of the expert in its own role.
    expert = POOL[1]
    alone, gang = placed(expert, 1), placed(expert, 4)
    assert (alone.tp_degree, alone.max_replicas) == (1, None)
    assert (gang.tp_degree, gang.max_replicas) == (4, 1)
    assert replace(gang, tp_degree=1, max_replicas=2) == expert
    assert make_planner(4, 1).degrees(AGGREGATE, expert) == (4, 1)
    assert make_planner().degrees(AGGREGATE, expert) == (1,)


@pytest.mark.parametrize(("number", "degree", "seconds"), [(8, 4, 20 + 8), (400, 1, 40 + 50 + 200)])
def test_the_cheaper_of_two_degrees_is_kept(number: int, degree: int, seconds: float) -> None:
    planned = plan_merging(number, 4, 1)
    assert planned.problem.expert("W").tp_degree == degree
    assert planned.plan.predicted_makespan_s == pytest.approx(seconds)
    assert planned.scheduler == (Ilp() if degree == 4 else DataParallel())
    assert_plan_valid(planned.plan, planned.problem)


@given(
    prices=st.lists(st.floats(0, 50), min_size=6, max_size=6),
    number=st.integers(1, 40),
    degrees=st.permutations([4, 1]),
)
def test_no_degree_is_cheaper_than_the_one_that_is_kept(prices, number: int, degrees) -> None:
    keys = ("load_s", "fixed_s", "per_call_s")
    entries = [
        make_entry("W", tp_degree=degree, **dict(zip(keys, given_prices, strict=True)))
        for degree, given_prices in ((4, prices[:3]), (1, prices[3:]))
    ]
    both, *each = (
        plan_merging(number, *tried, entries=entries, scheduler=RoundRobin()).plan for tried in (degrees, [4], [1])
    )
    assert both.predicted_makespan_s == min(plan.predicted_makespan_s for plan in each)
    served = [key for session in both.sessions for key in session.shard]
    assert sorted(served) == sorted(call.key for call in merge_calls(number))


def test_a_choice_is_priced_by_its_own_model_and_a_single_degree_as_the_run_is() -> None:
    assert plan_merging(8, 4, costs=PaperCosts).plan.costs == "paper"
    assert plan_merging(8, 1, costs=PaperCosts).plan.costs == "paper"
    chosen = plan_merging(8, 4, 1, costs=PaperCosts)
    assert chosen.plan.costs == "affine"
    # tau = (50 + 2 x 8) / 8 on 2 calls would have made the replicas look cheap, at 40 + 16.5 s.
    assert chosen.problem.expert("W").tp_degree == 4


def test_the_schedulers_caps_may_name_experts_of_the_pool() -> None:
    capped = plan_merging(8, 4, scheduler=Ilp(max_replicas={"A": 2, "B": 1, "W": 1}))
    assert [session.workers for session in capped.plan.sessions] == [(0, 1, 2, 3)]
    with pytest.raises(ValueError, match=r"scheduler\.max_replicas: expert must be one of \['A', 'B', 'W'\], got 'Z'"):
        plan_merging(8, 4, scheduler=Ilp(max_replicas={"Z": 1}))


def test_the_problem_knows_the_pool_and_the_aggregator_as_it_is_placed() -> None:
    problem = plan_merging(8, 4).problem
    assert [expert.name for expert in problem.experts] == ["W", "A", "B"]
    assert problem.expert("W") == placed(POOL[1], 4)
    first = make_planner(4).plan(make_calls({"A": 2, "B": 1})).problem
    assert first.experts == POOL, "in the first layer each is as the pool has it"


def test_costs_are_built_for_the_calls_and_may_carry_options_of_their_own() -> None:
    calls = make_calls({"A": 3, "B": 2})
    problem = make_planner(costs=PaperCosts).plan(calls).problem
    assert problem.costs.costs.num_calls_by_expert == {"A": 3, "B": 2}  # type: ignore[attr-defined]
    assert (problem.calls, set(problem.lengths)) == (calls, {"A", "B"})
    assert make_planner(costs=partial(AffineCosts, name="mine")).plan(calls).plan.costs == "mine"


def test_nodes_of_a_layer_are_priced_by_the_profiles_of_both() -> None:
    calls = (make_call("q0", expert="A"), make_call("q0", expert="W", node="other"))
    profiles = {PROPOSE: make_profile("A"), "other": make_profile(ALONE)}
    plan = make_planner(profiles=profiles, scheduler=RoundRobin()).plan(calls).plan
    assert [times.load_s for times in plan.predicted] == [10.0, 40.0]


def test_lost_workers_get_nothing() -> None:
    planned = make_planner(1, scheduler=RoundRobin()).plan(merge_calls(9), lost={0: "unplugged", 2: "on fire"})
    assert {session.workers for session in planned.plan.sessions} == {(1,), (3,)}


def test_what_cannot_be_priced_or_placed_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"no entry for expert 'W' on 1 x gpu"):
        plan_merging(8, 4, 1, entries=[GANG])
    with pytest.raises(ProfileError, match=r"no lengths for expert 'W'"):
        plan_merging(8, 4, entries=[])
    with pytest.raises(InfeasibleError, match="spans 4 workers and cluster 'test-x2' has 2"):
        plan_merging(8, 4, cluster=make_cluster(2))
    with pytest.raises(InfeasibleError, match="expert 'W' fits on no aligned group of 1"):
        plan_merging(8, 1, cluster=make_cluster(4, gpu=make_gpu(memory_gib=16)))
    message = r"call q0/propose/0: expert must be one of the pool \['A', 'B', 'W'\], got 'Poet'"
    with pytest.raises(ValueError, match=message):
        make_planner().plan(make_calls({"Poet": 1}))

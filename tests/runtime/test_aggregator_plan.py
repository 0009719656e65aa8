"""The aggregator's plan: the cheaper of its shapes, by the run's scheduler, with every call once."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import InfeasibleError, PlanError, ProfileError
from mosaic.core.prediction import LengthPrediction
from mosaic.core.workload import AGGREGATE, Call, CallKey, PROPOSE
from mosaic.planning.costs import AffineCosts, PaperCosts
from mosaic.planning.ilp.ilp import Ilp
from mosaic.planning.profiles import Profile, ProfileEntry, SessionFit
from mosaic.planning.schedulers.data_parallel import DataParallel
from mosaic.planning.schedulers.fifo import Fifo
from mosaic.planning.schedulers.least_loaded import LeastLoaded
from mosaic.planning.schedulers.round_robin import RoundRobin
from mosaic.runtime.second_stage import plan_aggregator
from tests.answered_questions import make_aggregator
from tests.factories import assert_plan_valid, make_call, make_cluster, make_expert, make_gpu


def make_entry(tp_degree: int, *, load_s: float, fixed_s: float, per_call_s: float) -> ProfileEntry:
    fit = SessionFit(fixed_s=fixed_s, per_call_s=per_call_s, min_num_calls=1, max_num_calls=1000, residual_std_frac=0.0)
    lengths = LengthPrediction(mean=300.0, max=4096.0, std=200.0)
    return ProfileEntry(expert="W", gpu="gpu", tp_degree=tp_degree, load_s=load_s, fit=fit, lengths=lengths, points=())


GANG = make_entry(4, load_s=20.0, fixed_s=0.0, per_call_s=1.0)
ALONE = make_entry(1, load_s=40.0, fixed_s=50.0, per_call_s=2.0)
POOL = (make_expert("A"), make_expert("W", max_replicas=2), make_expert("B"))


def merge_calls(number: int) -> tuple[Call, ...]:
    return tuple(
        make_call(f"q{i}", expert="W", node=AGGREGATE, after=(CallKey(f"q{i}", PROPOSE, 0),)) for i in range(number)
    )


def plan_merging(number: int, *tp_degrees: int, entries=(GANG, ALONE), num_workers: int = 4, **changes: Any):
    arguments: dict[str, Any] = {
        "pool": POOL,
        "cluster": make_cluster(num_workers),
        "profile": Profile(source="test", entries=tuple(entries)),
        "costs": AffineCosts,
        "scheduler": Ilp(),
        **changes,
    }
    return plan_aggregator(merge_calls(number), make_aggregator(*tp_degrees), **arguments)


@pytest.mark.parametrize(("number", "degree", "seconds"), [(8, 4, 20 + 8), (400, 1, 40 + 50 + 200)])
def test_the_cheaper_of_two_degrees_is_kept(number: int, degree: int, seconds: float) -> None:
    planned = plan_merging(number, 4, 1)
    assert planned.expert.tp_degree == degree
    assert planned.plan.predicted_makespan_s == pytest.approx(seconds)
    assert_plan_valid(planned.plan, planned.problem)


@given(
    prices=st.lists(st.floats(0, 50), min_size=6, max_size=6),
    number=st.integers(1, 40),
    degrees=st.permutations([4, 1]),
)
def test_no_degree_is_cheaper_than_the_one_that_is_kept(prices, number: int, degrees) -> None:
    keys = ("load_s", "fixed_s", "per_call_s")
    entries = [
        make_entry(4, **dict(zip(keys, prices[:3], strict=True))),
        make_entry(1, **dict(zip(keys, prices[3:], strict=True))),
    ]
    both, *each = (
        plan_merging(number, *tried, entries=entries, scheduler=RoundRobin()).plan for tried in (degrees, [4], [1])
    )
    assert both.predicted_makespan_s == min(plan.predicted_makespan_s for plan in each)
    served = [key for session in both.sessions for key in session.shard]
    assert sorted(served) == sorted(call.key for call in merge_calls(number))


@pytest.mark.parametrize(
    "scheduler", [Ilp(), RoundRobin(), Fifo(), LeastLoaded(), DataParallel()], ids=lambda scheduler: scheduler.name
)
@pytest.mark.parametrize("number", [1, 3, 30])
def test_over_four_gpus_it_is_one_session_of_the_runs_scheduler(scheduler, number: int) -> None:
    planned = plan_merging(number, 4, scheduler=scheduler)
    (session,) = planned.plan.sessions
    assert (session.expert, session.node, session.workers) == ("W", AGGREGATE, (0, 1, 2, 3))
    assert session.shard == tuple(call.key for call in merge_calls(number))
    assert planned.plan.scheduler == scheduler.name
    assert_plan_valid(planned.plan, planned.problem)


@pytest.mark.parametrize(("number", "sizes"), [(1, [1]), (3, [1, 1, 1]), (30, [8, 8, 7, 7])])
def test_alone_it_is_a_replica_on_every_gpu_whatever_the_scheduler_and_its_cap(number: int, sizes: list[int]) -> None:
    planned = plan_merging(number, 1, scheduler=RoundRobin())
    assert [len(session.shard) for session in planned.plan.sessions] == sizes
    assert [session.workers for session in planned.plan.sessions] == [(worker,) for worker in range(len(sizes))]
    assert planned.plan.scheduler == "data_parallel"
    assert_plan_valid(planned.plan, planned.problem)


def test_a_choice_is_priced_by_the_affine_model_and_a_single_degree_as_the_run_is() -> None:
    assert plan_merging(8, 4, costs=PaperCosts).plan.costs == "paper"
    assert plan_merging(8, 1, costs=PaperCosts).plan.costs == "paper"
    chosen = plan_merging(8, 4, 1, costs=PaperCosts)
    assert chosen.plan.costs == "affine"
    # tau = (50 + 2 x 8) / 8 on 2 calls would have made the replicas look cheap, at 40 + 16.5 s.
    assert chosen.expert.tp_degree == 4


def test_the_schedulers_caps_may_name_experts_of_the_pool() -> None:
    capped = plan_merging(8, 4, scheduler=Ilp(max_replicas={"A": 2, "B": 1, "W": 1}))
    assert [session.workers for session in capped.plan.sessions] == [(0, 1, 2, 3)]
    with pytest.raises(ValueError, match=r"scheduler\.max_replicas: expert must be one of \['A', 'B', 'W'\], got 'Z'"):
        plan_merging(8, 4, scheduler=Ilp(max_replicas={"Z": 1}))


def test_the_problem_knows_the_pool_and_the_aggregator_as_it_is_placed() -> None:
    planned = plan_merging(8, 4)
    assert [expert.name for expert in planned.problem.experts] == ["W", "A", "B"]
    assert planned.problem.expert("W") == planned.expert
    assert (planned.expert.tp_degree, planned.expert.max_replicas) == (4, 1)


def test_a_plan_of_no_calls_is_empty() -> None:
    assert plan_merging(0, 4, 1).plan.sessions == ()


def test_what_cannot_be_priced_or_placed_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"no entry for expert 'W' on 1 x gpu"):
        plan_merging(8, 4, 1, entries=[GANG])
    with pytest.raises(ProfileError, match=r"no lengths for expert 'W'"):
        plan_merging(8, 4, entries=[])
    with pytest.raises(InfeasibleError, match="spans 4 workers and cluster 'test-x2' has 2"):
        plan_merging(8, 4, num_workers=2)
    with pytest.raises(InfeasibleError, match="expert 'W' fits on no aligned group of 1"):
        plan_merging(8, 1, cluster=make_cluster(4, gpu=make_gpu(memory_gib=16)))


def test_a_scheduler_that_drops_a_call_is_caught() -> None:
    class Forgetful:
        name = "forgetful"

        def plan(self, problem):
            made = RoundRobin().plan(problem)
            (session,) = made.sessions
            return replace(made, sessions=(replace(session, shard=session.shard[1:]),))

    with pytest.raises(PlanError, match="plan drops call q0/aggregate/0"):
        plan_merging(8, 4, scheduler=Forgetful())

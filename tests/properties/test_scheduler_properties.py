"""What holds for every problem: bounds, dominance, symmetry."""

from dataclasses import replace
from itertools import permutations
from math import inf
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosaic.core.plan import Plan, SolveStatus
from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin
from mosaic.planning.problem import Problem
from mosaic.planning.program import model
from mosaic.planning.program.bounds import pattern_bound_s, subset_bound_s
from mosaic.planning.program.equal_workers import GroupSearch, place_groups
from mosaic.planning.program.instance import Instance, identical_workers, make_instance
from mosaic.planning.program.model import Solution, find_symmetry, order_blocks, solve_model
from mosaic.planning.program.packing import best_packing, drop_needless_replicas, level
from mosaic.planning.program.schedulers import Ilp
from mosaic.planning.scheduler import split_calls
from tests.factories import (
    assert_plan_valid,
    make_calls,
    make_cluster,
    make_gpu,
    make_mixed_cluster,
    make_problem,
    worker_queue,
)

BASELINES = (
    RoundRobin(),
    LeastLoaded(),
    LeastLoaded(longest_first=True),
    DataParallel(),
    Fifo(window_questions=3),
    Fifo(),
)
TOLERANCE = 1 + 1e-6
KINDS = ("fast", "slow")

quick = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def problems(draw: st.DrawFn, *, gangs: bool = True, mixed: bool = True) -> Problem:
    num_workers = draw(st.sampled_from([1, 2, 3, 4]))
    names = "ABCDE"[: draw(st.integers(1, 5))]
    degrees = [degree for degree in (1, 2, 4) if num_workers % degree == 0] if gangs else [1]
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=num_workers, max_size=num_workers))
    degree_of = {name: draw(st.sampled_from(degrees)) for name in names}
    if not mixed or max(degree_of.values()) > 1:
        kinds = ["fast"] * num_workers
    return make_problem(
        {name: draw(st.integers(1, 30)) for name in names},
        cluster=make_mixed_cluster(*(make_gpu(kind) for kind in kinds)),
        load_s={name: draw(st.floats(0, 50)) for name in names},
        fixed_s={name: draw(st.floats(0, 30)) for name in names},
        per_call_s={name: draw(st.floats(0, 5)) for name in names},
        max_replicas={name: draw(st.sampled_from([None, 1, 2, 4])) for name in names},
        tp_degree=degree_of,
        slowdown_by_gpu={"slow": 2.0},
    )


def obeys(plan: Plan, instance: Instance) -> bool:
    """Tell whether a plan keeps the replica caps and K."""
    for name, cap in zip(instance.names, instance.max_replicas, strict=True):
        if len({session.workers for session in plan.sessions if session.expert == name}) > cap:
            return False
    hosted = [{session.expert for session in worker_queue(plan, worker)} for worker in range(plan.num_workers)]
    return max(map(len, hosted)) <= instance.max_experts_per_worker


def free_ilp(problem: Problem) -> Plan:
    """Solve with K = M and caps N."""
    return Ilp(max_experts_per_worker=len(problem.experts), max_replicas=problem.cluster.num_workers).plan(problem)


@quick
@given(problems())
def test_plans_are_valid_and_the_programs_is_never_above_a_baseline_that_obeys_its_limits(problem: Problem) -> None:
    instance = make_instance(problem)
    limited, free = Ilp().plan(problem), free_ilp(problem)
    assert free.solve.status is SolveStatus.OPTIMAL
    assert obeys(limited, instance)
    plans = [scheduler.plan(problem) for scheduler in BASELINES]
    for plan in (limited, free, *plans):
        assert_plan_valid(plan, problem)
        assert free.predicted_makespan_s <= plan.predicted_makespan_s * TOLERANCE
        if obeys(plan, instance):
            assert limited.predicted_makespan_s <= plan.predicted_makespan_s * TOLERANCE


@quick
@given(problems())
def test_solver_bound_is_never_above_the_objective_nor_below_the_closed_form(problem: Problem) -> None:
    solutions: list[Solution] = []

    def remember(*arguments: Any, **options: Any) -> Solution:
        solutions.append(solve_model(*arguments, **options))
        return solutions[-1]

    with patch.object(model, "solve_model", remember):
        plan = Ilp().plan(problem)
    (solution,) = solutions
    closed_form_s = make_instance(problem).lower_bound_s(k_applies=True)
    assert plan.solve.objective_s is not None
    assert plan.solve.bound_s is not None
    assert solution.bound_s is not None
    # The solver's own word, before the scheduler takes the smaller of it and the objective.
    most_s = plan.solve.objective_s + 1e-6 * max(1.0, plan.solve.objective_s)
    assert solution.bound_s <= most_s
    assert closed_form_s <= most_s
    assert max(closed_form_s, solution.bound_s) <= plan.solve.bound_s * TOLERANCE + 1e-6
    assert plan.predicted_makespan_s <= plan.solve.objective_s * TOLERANCE + 1e-9


@quick
@given(problems(gangs=False, mixed=False))
def test_equal_workers_aggregated_agree_with_the_program(problem: Problem) -> None:
    instance = make_instance(problem)
    workers = identical_workers(instance)
    optimum_s = Ilp().plan(problem).solve.objective_s
    assert workers is not None
    assert optimum_s is not None
    low_s, slack_s = instance.lower_bound_s(k_applies=True), 1e-6 * max(1.0, optimum_s)
    for raise_s in (subset_bound_s, pattern_bound_s):
        # From a makespan that no plan is near, so that the bisection asks about many that can be met.
        assert low_s <= raise_s(workers, low_s=low_s, high_s=3 * optimum_s, until_ts=inf) <= optimum_s + slack_s
    found = GroupSearch(workers, target_s=low_s, seed=0).run(300, until_ts=inf)
    counts = place_groups(workers, found.groups)
    if counts is not None:
        assert [sum(row) for row in counts] == list(instance.num_calls)
        assert instance.makespan_s(counts) >= optimum_s - slack_s


@quick
@given(problems(gangs=False), st.randoms(use_true_random=False))
def test_relabelling_workers_keeps_the_optimum(problem: Problem, random: object) -> None:
    kinds = [worker.gpu for worker in problem.cluster.workers]
    orders = list(permutations(kinds))
    shuffled = make_mixed_cluster(*random.choice(orders))  # type: ignore[attr-defined]
    first, second = Ilp().plan(problem), Ilp().plan(replace(problem, cluster=shuffled))
    assert abs(first.predicted_makespan_s - second.predicted_makespan_s) <= 1e-6 * first.predicted_makespan_s + 1e-6


@quick
@given(problems(gangs=False, mixed=False))
def test_an_extra_gpu_never_worsens_the_optimum(problem: Problem) -> None:
    instance = make_instance(problem)
    limits = Ilp(
        max_experts_per_worker=instance.max_experts_per_worker,
        max_replicas=dict(zip(instance.names, instance.max_replicas, strict=True)),
    )
    larger = replace(problem, cluster=make_cluster(problem.cluster.num_workers + 1, gpu=make_gpu("fast")))
    before_s = limits.plan(problem).predicted_makespan_s
    assert limits.plan(larger).predicted_makespan_s <= before_s * TOLERANCE


@quick
@given(problems())
def test_heuristics_keep_calls_and_limits_and_never_lengthen(problem: Problem) -> None:
    instance = make_instance(problem)
    counts = best_packing(instance, instance.lower_bound_s(k_applies=True))
    if counts is None:
        return
    symmetry = find_symmetry(instance)
    steps = [level(instance, counts), drop_needless_replicas(instance, counts)]
    steps += [order_blocks(counts, symmetry)] if symmetry else []
    for better in steps:
        assert [sum(row) for row in better] == list(instance.num_calls)
        assert instance.makespan_s(better) <= instance.makespan_s(counts) * (1 + 1e-9) + 1e-9
        assert all(
            sum(number > 0 for number in row) <= cap for row, cap in zip(better, instance.max_replicas, strict=True)
        )


@quick
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_shards_divide_the_calls(sizes: list[int]) -> None:
    calls = make_calls({"A": sum(sizes)})
    shards = split_calls(calls, sizes)
    assert [len(shard) for shard in shards] == sizes
    assert {key for shard in shards for key in shard} == {call.key for call in calls}

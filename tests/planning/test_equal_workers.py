"""Equal workers without a variable for each: groups, bounds and their search against the program and brute force."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from math import inf
from random import Random
from time import monotonic

import pytest

from mosaic.core.plan import SolveStatus
from mosaic.planning.program.bounds import lower_bound_s, pattern_bound_s, subset_bound_s
from mosaic.planning.program.equal_workers import (
    BoundedSolution,
    GroupSearch,
    fill_group,
    ideal_finish_s,
    place_groups,
    solve_identical,
)
from mosaic.planning.program.instance import Counts, IdenticalWorkers, Instance, identical_workers, make_instance
from mosaic.planning.program.solve import solve_instance
from tests.factories import make_gpu, make_mixed_cluster, make_problem

BOUNDS = {"subsets": subset_bound_s, "patterns": pattern_bound_s}


def random_instance(seed: int, num_experts: int, num_workers: int, *, most_per_worker: int = 3) -> Instance:
    """Draw loads near 40 s and a few experts that need many workers, as in the solver benchmarks."""
    random = Random(seed)
    names = [f"e{number}" for number in range(num_experts)]
    problem = make_problem(
        {name: random.randint(100, 3000) for name in names},
        num_workers=num_workers,
        load_s={name: random.uniform(38, 47) for name in names},
        per_call_s={
            name: random.uniform(1, 2.5) if random.random() < 0.3 else random.uniform(0.05, 0.3) for name in names
        },
    )
    return make_instance(problem, max_experts_per_worker=most_per_worker)


def alike(instance: Instance) -> IdenticalWorkers:
    workers = identical_workers(instance)
    assert workers is not None
    return workers


def assert_keeps_limits(instance: Instance, counts: Counts) -> None:
    for row, number, cap in zip(counts, instance.num_calls, instance.max_replicas, strict=True):
        assert sum(row) == number
        assert min(row) >= 0
        assert sum(part > 0 for part in row) <= cap
    for worker in range(instance.num_workers):
        assert sum(row[worker] > 0 for row in counts) <= instance.max_experts_per_worker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Count looks at the clock in place of seconds, so that what is reached does not depend on the machine."""
    looks = count()
    for module in ("bounds", "equal_workers", "packing", "solve"):
        monkeypatch.setattr(f"mosaic.planning.program.{module}.monotonic", lambda: float(next(looks)))
    return looks


def test_unlike_prices_places_or_gangs_are_not_equal_workers() -> None:
    mixed = make_mixed_cluster(make_gpu("fast"), make_gpu("slow"))
    assert (
        identical_workers(make_instance(make_problem({"A": 4}, cluster=mixed, slowdown_by_gpu={"slow": 2.0}))) is None
    )
    assert identical_workers(make_instance(make_problem({"A": 4}, cluster=mixed))) is not None
    misfit = make_problem({"A": 4, "B": 4}, cluster=mixed, misfits=[("A", "slow")])
    assert identical_workers(make_instance(misfit)) is None
    assert identical_workers(make_instance(make_problem({"A": 4}, tp_degree=2))) is None


def test_workers_where_nothing_fits_take_no_part() -> None:
    cluster = make_mixed_cluster(make_gpu("small"), make_gpu("large"), make_gpu("large"))
    problem = make_problem({"A": 4, "B": 4}, cluster=cluster, misfits=[("A", "small"), ("B", "small")])
    assert alike(make_instance(problem)).num_workers == 2


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_by_hand(bound: str) -> None:
    # Three calls of 10 s on two workers take 20 s where none can be split; the closed form says 15.
    instance = make_instance(make_problem(dict.fromkeys("ABC", 1), load_s=0.0, per_call_s=10.0))
    raised_s = BOUNDS[bound](alike(instance), low_s=15.0, high_s=20.0, until_ts=inf)
    assert raised_s == pytest.approx(20.0, rel=1e-3)
    assert raised_s <= 20.0


def test_patterns_see_the_idle_time_beside_few_replicas() -> None:
    # 10 s load. At 60 s a worker takes 50 calls of A, so 99 calls need two that are nearly full: B finds no room.
    instance = make_instance(make_problem({"A": 99, "B": 40}, num_workers=3, max_replicas=3, load_s=10.0))
    workers = alike(instance)
    optimum_s = solve_instance(instance, time_limit_s=5.0).report.objective_s
    assert optimum_s is not None
    closed_form_s = lower_bound_s(instance, k_applies=True)
    assert closed_form_s < optimum_s
    raised_s = pattern_bound_s(workers, low_s=closed_form_s, high_s=optimum_s, until_ts=inf)
    assert closed_form_s < raised_s <= optimum_s


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_do_not_move_without_time(bound: str) -> None:
    instance = random_instance(0, 8, 6)
    assert BOUNDS[bound](alike(instance), low_s=100.0, high_s=9000.0, until_ts=monotonic() - 1) == 100.0


def test_bounds_that_would_list_too_much_leave_the_bound_as_it_is() -> None:
    large = random_instance(0, 40, 10, most_per_worker=4)
    assert pattern_bound_s(alike(large), low_s=100.0, high_s=9000.0, until_ts=inf) == 100.0
    assert subset_bound_s(alike(large), low_s=100.0, high_s=9000.0, until_ts=inf) == 100.0


def test_group_of_one_worker_is_its_experts_whole() -> None:
    workers = alike(make_instance(make_problem({"A": 3, "B": 4, "C": 5})))
    assert fill_group(workers, (0, 2), 1) == {(0, 0): 3, (2, 0): 5}
    assert fill_group(workers, (0, 1, 2), 1) is None  # K is 2


def test_group_is_levelled_by_its_largest_expert() -> None:
    workers = alike(make_instance(make_problem({"A": 100, "B": 20}, num_workers=3, max_replicas=3), max_replicas=3))
    assert ideal_finish_s(workers, (0, 1), 3) == pytest.approx((100 + 20 + 4 * 10) / 3)
    shards = fill_group(workers, (0, 1), 3)
    assert shards is not None
    assert sum(number for (m, _), number in shards.items() if m == 0) == 100
    busy_s = [sum(10 + number for (_, n), number in shards.items() if n == worker) for worker in range(3)]
    assert max(busy_s) == 54


def test_caps_that_a_group_breaks_leave_it_unplaced() -> None:
    workers = replace(alike(make_instance(make_problem({"A": 100}, num_workers=3))), max_replicas=(1,))
    assert place_groups(workers, [((0,), 3)]) is None


@pytest.mark.parametrize("seed", range(6))
def test_search_keeps_every_expert_and_worker_and_gets_what_it_says(seed: int) -> None:
    instance = random_instance(seed, 12, 8)
    workers = alike(instance)
    found = GroupSearch(workers, target_s=lower_bound_s(instance, k_applies=True), seed=seed).run(5000, until_ts=inf)
    assert sorted(m for experts, _ in found.groups for m in experts) == list(range(12))
    assert sum(num_workers for _, num_workers in found.groups) <= 8
    ends_s = [ideal_finish_s(workers, experts, num_workers) for experts, num_workers in found.groups]
    # The search adds half a call for each further worker of a group.
    assert 0.995 * found.finish_s <= max(ends_s) <= found.finish_s * (1 + 1e-9)
    counts = place_groups(workers, found.groups)
    assert counts is not None
    assert_keeps_limits(instance, counts)
    # Its shards may split an expert that loads faster than the largest one.
    assert 0.99 * found.finish_s <= instance.makespan_s(counts) <= 1.05 * found.finish_s


def test_search_is_the_same_for_a_seed() -> None:
    workers = alike(random_instance(3, 12, 8))
    first, second = (GroupSearch(workers, target_s=100.0, seed=5).run(3000, until_ts=inf) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.usefixtures("clock")
def test_solutions_of_middling_instances_are_narrow_and_sound(seed: int) -> None:
    instance = random_instance(seed, 12, 8)
    closed_form_s = lower_bound_s(instance, k_applies=True)
    solution = solve_identical(instance, alike(instance), BoundedSolution(None, inf, closed_form_s), until_ts=800)
    assert solution.counts is not None
    assert_keeps_limits(instance, solution.counts)
    assert closed_form_s <= solution.bound_s <= solution.finish_s == instance.makespan_s(solution.counts)
    assert solution.finish_s - solution.bound_s < 0.02 * solution.finish_s


@pytest.mark.usefixtures("clock")
def test_larger_instances_are_solved_without_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the program is not for 384 pairs of expert and worker")

    monkeypatch.setattr("mosaic.planning.program.model.build_model", refuse)
    instance = random_instance(7, 24, 16)
    solved = solve_instance(instance, time_limit_s=600)
    assert solved.report.status is SolveStatus.TIME_LIMIT
    assert solved.report.num_vars is None
    assert solved.notes == ("16 equal workers: placed by a search over groups, bounded by subsets or patterns",)
    assert_keeps_limits(instance, solved.counts)

"""Bounds on the makespan, and equal workers without a variable for each: groups and the search for them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from math import inf
from time import monotonic

import pytest

from mosaic.core.plan import SolveStatus
from mosaic.planning.program.bounds import pattern_bound_s, subset_bound_s
from mosaic.planning.program.equal_workers import (
    GroupSearch,
    fill_group,
    ideal_finish_s,
    place_groups,
    solve_identical,
)
from mosaic.planning.program.instance import Instance, identical_workers, make_instance
from mosaic.planning.program.solve import solve_instance
from tests.factories import make_gpu, make_mixed_cluster, make_problem
from tests.planning.placements import assert_keeps_limits, drawn_instance

BOUNDS = {"subsets": subset_bound_s, "patterns": pattern_bound_s}


def alike(instance: Instance) -> Instance:
    workers = identical_workers(instance)
    assert workers is not None
    return workers


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
    closed_form_s = instance.lower_bound_s(k_applies=True)
    assert closed_form_s < optimum_s
    raised_s = pattern_bound_s(workers, low_s=closed_form_s, high_s=optimum_s, until_ts=inf)
    assert closed_form_s < raised_s <= optimum_s


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_do_not_move_without_time(bound: str) -> None:
    instance = drawn_instance(0, 8, 6)
    assert BOUNDS[bound](alike(instance), low_s=100.0, high_s=9000.0, until_ts=monotonic() - 1) == 100.0


def test_bounds_that_would_list_too_much_leave_the_bound_as_it_is() -> None:
    large = drawn_instance(0, 40, 10, most_per_worker=4)
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
    instance = drawn_instance(seed, 12, 8)
    workers = alike(instance)
    found = GroupSearch(workers, target_s=instance.lower_bound_s(k_applies=True), seed=seed).run(5000, until_ts=inf)
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
    workers = alike(drawn_instance(3, 12, 8))
    first, second = (GroupSearch(workers, target_s=100.0, seed=5).run(3000, until_ts=inf) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.usefixtures("clock")
def test_solutions_of_middling_instances_are_narrow_and_sound(seed: int) -> None:
    instance = drawn_instance(seed, 12, 8)
    closed_form_s = instance.lower_bound_s(k_applies=True)
    counts, bound_s = solve_identical(alike(instance), None, closed_form_s, until_ts=800)
    assert counts is not None
    assert_keeps_limits(instance, counts)
    finish_s = instance.makespan_s(counts)
    assert closed_form_s <= bound_s <= finish_s
    assert finish_s - bound_s < 0.02 * finish_s


@pytest.mark.usefixtures("clock")
def test_larger_instances_are_solved_without_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the program is not for 384 pairs of expert and worker")

    monkeypatch.setattr("mosaic.planning.program.model.build_model", refuse)
    instance = drawn_instance(7, 24, 16)
    solved = solve_instance(instance, time_limit_s=600)
    assert solved.report.status is SolveStatus.TIME_LIMIT
    assert solved.report.num_vars is None
    assert solved.notes == ("16 equal workers: placed by a search over groups, bounded by subsets or patterns",)
    assert_keeps_limits(instance, solved.counts)


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        pytest.param({"num_calls": {"A": 100, "B": 2}, "max_replicas": 1}, 110.0, id="a pinned expert"),
        # Pinned, 10 s load + 20 calls each: 3 x 30 s over 2 workers.
        pytest.param({"num_calls": dict.fromkeys("ABC", 20), "max_replicas": 1}, 45.0, id="spread work"),
        pytest.param({"num_calls": {"A": 20}, "fixed_s": 7.0, "max_replicas": 1}, 37.0, id="a fixed part"),
        pytest.param({"num_calls": {"A": 99}, "num_workers": 4, "max_replicas": 3}, 43.0, id="replicas up to the cap"),
        pytest.param({"num_calls": {"A": 100}, "num_workers": 4, "max_replicas": 3}, 44.0, id="one replica serves 34"),
        # 200 calls need 4 replicas below 110 s, and then the others' work on top: (4 x 10 + 200 + 4 x 11) / 4 = 71.
        pytest.param(
            {"num_calls": {"A": 200, "B": 1, "C": 1, "D": 1, "E": 1}, "num_workers": 4, "max_replicas": 4}, 71.0,
            id="each needed replica pays its load",
        ),
        pytest.param(
            {"num_calls": {"A": 20, "B": 20}, "tp_degree": {"A": 2, "B": 1}, "max_replicas": 1}, 45.0,
            id="a gang counts on each of its workers",
        ),
        pytest.param({"num_calls": {"A": 0}}, 0.0, id="no calls"),
        pytest.param({"num_calls": {"A": 3}, "load_s": 0.0, "per_call_s": 0.0}, 0.0, id="free calls and loads"),
        pytest.param({"num_calls": {"A": 1}, "load_s": 5e-324, "per_call_s": 0.0}, 0.0, id="vanishing times"),
    ],
)  # fmt: skip
def test_the_closed_form_by_hand(changes: dict[str, object], seconds: float) -> None:
    assert make_instance(make_problem(**changes)).lower_bound_s() == pytest.approx(seconds)  # type: ignore[arg-type]


def test_lifting_the_caps_lowers_the_bound() -> None:
    instance = make_instance(make_problem({"A": 100, "B": 2}, max_replicas=1))
    assert instance.without_limits().lower_bound_s() < instance.lower_bound_s()


def test_slots_count_where_the_policy_knows_k() -> None:
    # K = 1 on 2 workers: two replicas of A leave no slot for B, so A runs whole.
    instance = replace(make_instance(make_problem({"A": 100, "B": 2}, max_replicas=2)), max_experts_per_worker=1)
    assert instance.lower_bound_s() < 70
    assert instance.lower_bound_s(k_applies=True) == pytest.approx(110.0)


def test_unlike_workers_are_priced_at_the_best() -> None:
    cluster = make_mixed_cluster(make_gpu("fast"), make_gpu("slow"))
    instance = make_instance(make_problem({"A": 100}, cluster=cluster, slowdown_by_gpu={"slow": 3.0}, max_replicas=1))
    assert instance.lower_bound_s() == pytest.approx(110.0)

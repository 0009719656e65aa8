"""The closed-form lower bound, by hand."""

from dataclasses import replace

import pytest

from mosaic.planning.schedulers.instance import make_instance
from mosaic.planning.schedulers.lower_bounds import lower_bound_s, without_caps
from tests.factories import make_gpu, make_mixed_cluster, make_problem


def bound_s(**changes: object) -> float:
    return lower_bound_s(make_instance(make_problem(**changes)))  # type: ignore[arg-type]


def test_longest_session_bounds_a_pinned_expert() -> None:
    assert bound_s(num_calls={"A": 100, "B": 2}, max_replicas=1) == pytest.approx(110.0)


def test_work_is_spread_over_all_workers() -> None:
    # Pinned, 10 s load + 20 calls each: 3 x 30 s over 2 workers.
    assert bound_s(num_calls={"A": 20, "B": 20, "C": 20}, max_replicas=1) == pytest.approx(45.0)


def test_fixed_part_is_paid_like_a_load() -> None:
    assert bound_s(num_calls={"A": 20}, fixed_s=7.0, max_replicas=1) == pytest.approx(37.0)


def test_replicas_share_calls_up_to_the_cap() -> None:
    assert bound_s(num_calls={"A": 99}, num_workers=4, max_replicas=3) == pytest.approx(43.0)
    # 100 calls on 3: one replica serves 34.
    assert bound_s(num_calls={"A": 100}, num_workers=4, max_replicas=3) == pytest.approx(44.0)


def test_each_needed_replica_pays_its_load() -> None:
    # 200 calls need 4 replicas below 110 s, and then the other experts' work on top: (4 x 10 + 200 + 4 x 11) / 4 = 71.
    calls = {"A": 200, "B": 1, "C": 1, "D": 1, "E": 1}
    assert bound_s(num_calls=calls, num_workers=4, max_replicas=4) == pytest.approx(71.0)


def test_gang_counts_on_each_of_its_workers() -> None:
    assert bound_s(num_calls={"A": 20, "B": 20}, tp_degree={"A": 2, "B": 1}, max_replicas=1) == pytest.approx(45.0)


def test_lifting_the_caps_lowers_the_bound() -> None:
    instance = make_instance(make_problem({"A": 100, "B": 2}, max_replicas=1))
    assert lower_bound_s(without_caps(instance)) < lower_bound_s(instance)


def test_slots_count_where_the_policy_knows_k() -> None:
    # K = 1 on 2 workers: two replicas of A leave no slot for B, so A runs whole.
    instance = replace(make_instance(make_problem({"A": 100, "B": 2}, max_replicas=2)), max_experts_per_worker=1)
    assert lower_bound_s(instance) < 70
    assert lower_bound_s(instance, k_applies=True) == pytest.approx(110.0)


def test_unlike_workers_are_priced_at_the_best() -> None:
    cluster = make_mixed_cluster(make_gpu("fast"), make_gpu("slow"))
    instance = make_instance(make_problem({"A": 100}, cluster=cluster, slowdown_by_gpu={"slow": 3.0}, max_replicas=1))
    assert lower_bound_s(instance) == pytest.approx(110.0)


def test_no_experts_take_no_time() -> None:
    assert bound_s(num_calls={"A": 0}) == 0.0


def test_free_calls_and_loads_take_no_time() -> None:
    assert bound_s(num_calls={"A": 3}, load_s=0.0, per_call_s=0.0) == 0.0


def test_vanishing_times_end_the_search() -> None:
    assert bound_s(num_calls={"A": 1}, load_s=5e-324, per_call_s=0.0) == 0.0

"""The closed-form lower bound, by hand."""

from dataclasses import replace

import pytest

from mosaic.planning.program.bounds import lower_bound_s
from mosaic.planning.program.instance import make_instance
from tests.factories import make_gpu, make_mixed_cluster, make_problem


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
def test_the_bound_by_hand(changes: dict[str, object], seconds: float) -> None:
    assert lower_bound_s(make_instance(make_problem(**changes))) == pytest.approx(seconds)  # type: ignore[arg-type]


def test_lifting_the_caps_lowers_the_bound() -> None:
    instance = make_instance(make_problem({"A": 100, "B": 2}, max_replicas=1))
    assert lower_bound_s(instance.without_limits()) < lower_bound_s(instance)


def test_slots_count_where_the_policy_knows_k() -> None:
    # K = 1 on 2 workers: two replicas of A leave no slot for B, so A runs whole.
    instance = replace(make_instance(make_problem({"A": 100, "B": 2}, max_replicas=2)), max_experts_per_worker=1)
    assert lower_bound_s(instance) < 70
    assert lower_bound_s(instance, k_applies=True) == pytest.approx(110.0)


def test_unlike_workers_are_priced_at_the_best() -> None:
    cluster = make_mixed_cluster(make_gpu("fast"), make_gpu("slow"))
    instance = make_instance(make_problem({"A": 100}, cluster=cluster, slowdown_by_gpu={"slow": 3.0}, max_replicas=1))
    assert lower_bound_s(instance) == pytest.approx(110.0)

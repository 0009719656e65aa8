"""Workers and the kinds of GPU they drive."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.cluster import Cluster, Worker, uniform_cluster
from tests.factories import make_cluster, make_gpu, make_mixed_cluster


def test_the_engine_may_take_its_share_of_the_memory() -> None:
    assert make_gpu(memory_gib=80).usable_bytes == int(0.9 * 80 * 2**30)
    assert replace(make_gpu(memory_gib=1), memory_utilization_frac=1).usable_bytes == 2**30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "gpu.name must be a non-empty string"),
        ({"memory_bytes": 0}, "gpu gpu: memory_bytes must be at least 1, got 0"),
        ({"memory_bytes": 8e10}, "gpu gpu: memory_bytes must be a whole number, got 80000000000.0"),
        ({"memory_utilization_frac": 0}, "gpu gpu: memory_utilization_frac must be above 0, got 0"),
        ({"memory_utilization_frac": 1.01}, "gpu gpu: memory_utilization_frac must be at most 1, got 1.01"),
    ],
)
def test_a_gpu_refuses_bad_fields(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        replace(make_gpu(), **change)  # type: ignore[arg-type]


@given(st.integers(1, 16))
def test_a_uniform_cluster_numbers_its_workers(num_workers: int) -> None:
    cluster = make_cluster(num_workers)
    assert cluster.num_workers == num_workers
    assert [worker.id for worker in cluster.workers] == list(range(num_workers))
    assert {worker.gpu for worker in cluster.workers} == {make_gpu()}


@pytest.mark.parametrize("num_workers", [0, -1, 2.0, True, None])
def test_a_uniform_cluster_has_a_whole_number_of_workers(num_workers: object) -> None:
    with pytest.raises((ValueError, TypeError), match="cluster c: num_workers must be "):
        uniform_cluster(name="c", num_workers=num_workers, gpu=make_gpu())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "cluster c: workers must be at least one worker, got 0"),
        ([0, 0], "cluster c: worker id must be unique, got 0 twice"),
        ([1, 2], r"cluster c: worker ids must be 0 \.\. N-1 in order, got \[1, 2\]"),
        ([1, 0], r"cluster c: worker ids must be 0 \.\. N-1 in order, got \[1, 0\]"),
    ],
)
def test_worker_ids_are_their_places(ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(name="c", workers=[Worker(i, make_gpu()) for i in ids])  # type: ignore[arg-type]


def test_a_cluster_has_a_name() -> None:
    with pytest.raises(ValueError, match="cluster.name must be a non-empty string"):
        uniform_cluster(name="", num_workers=1, gpu=make_gpu())


def test_workers_are_selected_in_the_order_asked_for() -> None:
    big, small = make_gpu("big"), make_gpu("small", memory_gib=24)
    cluster = make_mixed_cluster(big, small)
    assert cluster.select((1, 0)) == (Worker(1, small), Worker(0, big))
    assert cluster.select(()) == ()


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_worker_outside_of_the_cluster_is_refused(worker: int) -> None:
    with pytest.raises(ValueError, match=rf"worker must be one of 0 \.\. 1 of test-x2, got {worker}"):
        make_cluster(2).select((0, worker))

"""Workers and the kinds of GPU they drive."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.cluster import Worker
from tests.factories import make_cluster, make_gpu, make_mixed_cluster


def test_the_engine_may_take_its_share_of_the_memory() -> None:
    assert make_gpu(memory_gib=80).usable_bytes == int(0.9 * 80 * 2**30)
    assert replace(make_gpu(memory_gib=1), memory_utilization_frac=1).usable_bytes == 2**30


@given(st.integers(1, 16))
def test_a_uniform_cluster_numbers_its_workers(num_workers: int) -> None:
    cluster = make_cluster(num_workers)
    assert cluster.num_workers == num_workers
    assert [worker.id for worker in cluster.workers] == list(range(num_workers))
    assert {worker.gpu for worker in cluster.workers} == {make_gpu()}


def test_workers_are_selected_in_the_order_asked_for() -> None:
    big, small = make_gpu("big"), make_gpu("small", memory_gib=24)
    cluster = make_mixed_cluster(big, small)
    assert cluster.select((1, 0)) == (Worker(1, small), Worker(0, big))
    assert cluster.select(()) == ()


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_worker_outside_of_the_cluster_is_refused(worker: int) -> None:
    with pytest.raises(ValueError, match=rf"worker must be one of 0 \.\. 1 of test-x2, got {worker}"):
        make_cluster(2).select((0, worker))

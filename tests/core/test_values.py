"""The core's values: workers and engine options, plans and the lengths they expect, experts, questions, calls."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.cluster import Worker
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.plan import prediction_from_sample
from mosaic.core.workload import PROPOSE, CallKey, Question, Workload
from mosaic.planning.baselines import RoundRobin
from tests.factories import (
    make_call,
    make_cluster,
    make_expert,
    make_gpu,
    make_mixed_cluster,
    make_problem,
    make_shape,
)


def test_the_engine_may_take_its_share_of_the_memory() -> None:
    assert make_gpu(memory_gib=80).usable_bytes == int(0.9 * 80 * 2**30)
    assert replace(make_gpu(memory_gib=1), memory_utilization_frac=1).usable_bytes == 2**30


def test_workers_are_selected_in_the_order_asked_for() -> None:
    big, small = make_gpu("big"), make_gpu("small", memory_gib=24)
    cluster = make_mixed_cluster(big, small)
    assert cluster.select((1, 0)) == (Worker(1, small), Worker(0, big))
    assert cluster.select(()) == ()


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_worker_outside_of_the_cluster_is_refused(worker: int) -> None:
    with pytest.raises(ValueError, match=rf"worker must be one of 0 \.\. 1 of test-x2, got {worker}"):
        make_cluster(2).select((0, worker))


def test_the_order_decides_the_budget_and_the_watermark():
    whole, chunked, mixed = (EngineOptions(order=order) for order in Order)
    assert (whole.watermark, chunked.watermark, mixed.watermark) == (0.01, 0.01, 0.0)
    assert [whole.batched_tokens(tokens) for tokens in (8192, 100)] == [8192, 2048]
    assert chunked.batched_tokens(8192) == mixed.batched_tokens(8192) == 2048
    assert replace(mixed, max_num_batched_tokens=512).batched_tokens(8192) == 512
    assert (EngineOptions(watermark_frac=0.0).watermark, replace(mixed, watermark_frac=0.05).watermark) == (0.0, 0.05)


PROBLEM = make_problem({"A": 3, "B": 2})
PLAN = RoundRobin().plan(PROBLEM)


def test_makespan_is_the_last_end() -> None:
    assert PLAN.predicted_makespan_s == 13.0
    assert replace(PLAN, sessions=(), predicted=()).predicted_makespan_s == 0.0


@given(st.lists(st.integers(1, 32768), min_size=1, max_size=50))
def test_moments_are_those_of_the_sample(lengths: list[int]) -> None:
    prediction = prediction_from_sample(lengths)
    assert prediction.mean == pytest.approx(statistics.fmean(lengths))
    assert prediction.std == pytest.approx(statistics.pstdev(lengths), abs=1e-6)
    assert prediction.max == max(lengths)


def test_an_empty_sample_predicts_nothing() -> None:
    with pytest.raises(ValueError, match=r"length sample must be non-empty, got \[\]"):
        prediction_from_sample([])


KEY = CallKey("q0", PROPOSE, 0)


def test_a_llama_8b_has_the_published_sizes() -> None:
    shape = make_shape()
    assert shape.weight_bytes == 16_060_000_000
    assert shape.kv_bytes_per_token() == 131_072
    assert shape.num_block_parameters == 8_030_000_000 - 2 * 128_256 * 4096


def test_tied_embeddings_are_counted_once() -> None:
    shape = make_shape(tied_embeddings=True)
    assert shape.num_block_parameters == 8_030_000_000 - 128_256 * 4096


@given(num_kv_heads=st.sampled_from([1, 2, 4, 8, 16]), tp_degree=st.integers(1, 16))
def test_all_workers_together_hold_every_kv_head_at_least_once(num_kv_heads: int, tp_degree: int) -> None:
    shape = make_shape(num_kv_heads=num_kv_heads, num_query_heads=32)
    share = shape.kv_bytes_per_token(tp_degree)
    assert share * tp_degree >= shape.kv_bytes_per_token()
    assert share <= shape.kv_bytes_per_token()
    if tp_degree >= num_kv_heads:  # replicated: a worker never holds less than one head
        assert share * num_kv_heads == shape.kv_bytes_per_token()


@pytest.mark.parametrize(("prompt_tokens", "limit"), [(100, 4096), (5096, 4096), (5097, 4095), (9191, 1), (9192, 0)])
def test_output_stops_at_its_maximum_or_at_the_end_of_the_context(prompt_tokens: int, limit: int) -> None:
    expert = make_expert(max_output_tokens=4096, context_tokens=9192)
    assert expert.output_limit(prompt_tokens) == limit


def test_experts_come_in_the_order_in_which_calls_name_them() -> None:
    calls = [make_call(f"q{i}", expert=name) for i, name in enumerate("BABCB")]
    questions = [Question(id=f"q{i}", prompt_tokens=100) for i in range(5)]
    workload = Workload(name="w", questions=questions, calls=calls)  # type: ignore[arg-type]
    assert list(workload.num_calls_by_expert.items()) == [("B", 3), ("A", 1), ("C", 1)]
    assert isinstance(workload.calls, tuple)
    assert isinstance(workload.questions, tuple)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (make_shape(), "num_layers"),
        (make_expert(), "name"),
        (Question(id="q0", prompt_tokens=100), "id"),
        (make_call(), "expert"),
    ],
)
def test_values_cannot_be_changed(value: object, field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(value, field, getattr(value, field))

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import IterationTime, iteration_time
from tests.factories import make_shape
from tests.sim.test_hardware import grid_attention, make_config


def fitted_hardware() -> Hardware:
    return hardware_from_config(**make_config(graph_max_seqs=16, cpu_base_s=1e-3, cpu_per_seq_s=1e-5))


def measured_hardware() -> Hardware:
    config = make_config(cpu_base_s=1e-3)
    config["tables"]["llama_tp1"] |= {
        "attention": grid_attention(),
        "head_us": "1:700 256:800",
        "once_us": "1:5 512:10",
    }
    return hardware_from_config(**config)


def sharded_hardware(factory: Callable[[], Hardware]) -> Hardware:
    """Adds the same tables at degree 2, and an all-reduce of 1 ms whatever the message."""
    hardware = factory()
    tables = (*hardware.tables, replace(hardware.tables[0], name="llama_tp2", tp_degree=2))
    all_reduce = hardware_from_config(**make_config(all_reduce_us={"2": "0:1000"})).all_reduce
    return replace(hardware, tables=tables, all_reduce=all_reduce)


BOTH = pytest.mark.parametrize("factory", [fitted_hardware, measured_hardware])
TIMES = {factory: iteration_time(factory(), make_shape(), 1) for factory in (fitted_hardware, measured_hardware)}
BATCHES = st.tuples(st.integers(1, 300), st.integers(1, 20_000))


def span_by_steps(time: IterationTime, num_seqs: int, kv_tokens: int, num_steps: int) -> float:
    return sum(time.decode_span_s(num_seqs, kv_tokens + i * num_seqs, 1) for i in range(num_steps))


def test_fitted_step_is_the_sum_of_its_hand_computed_parts() -> None:
    time = iteration_time(fitted_hardware(), make_shape(), 1)
    # 3 sequences pad to 4 tokens; the head reads 2 x 128,256 x 4,096 bytes at 2 TB/s.
    dense = 32 * (300 + 300 * 3 / 255) * 1e-6
    head = 2 * 128_256 * 4096 / 2e12
    attention = 32 * (10 + 0.1 * 3 + 0.0026 * 600) * 1e-6
    host = 1e-3 + 3e-5
    assert time.decode_span_s(3, 600, 1) == pytest.approx(dense + head + attention + host)


def test_measured_step_reads_the_grid_at_the_mean_context() -> None:
    time = iteration_time(measured_hardware(), make_shape(), 1)
    attention = 32 * 200e-6  # 64 sequences of 1,024 tokens: a knot of the grid
    dense = 32 * (300 + 300 * 63 / 255) * 1e-6
    once, head = (5 + 5 * 63 / 511) * 1e-6, (700 + 100 * 63 / 255) * 1e-6
    assert time.decode_span_s(64, 64 * 1024, 1) == pytest.approx(attention + dense + once + head + 1e-3)


def test_measured_prefill_beside_decodes_adds_their_grid_and_the_skipped_tiles() -> None:
    time = iteration_time(measured_hardware(), make_shape(), 1)
    alone = time.mixed_s([(2048, 0)], 0, 0)
    beside = time.mixed_s([(2048, 0)], 64, 64 * 1024)
    dense = 64 * 500 / 256 * 32e-6
    once_and_head = (64 * 5 / 511 + 64 * 100 / 255) * 1e-6
    attention = 32 * (300 + 0.001 * 64 * 2048) * 1e-6
    assert beside - alone == pytest.approx(dense + once_and_head + attention)


def test_one_launch_serves_all_chunks() -> None:
    time = iteration_time(measured_hardware(), make_shape(), 1)
    one, two = time.mixed_s([(32, 0)], 0, 0), time.mixed_s([(16, 0), (16, 0)], 0, 0)
    assert two < one + 1e-5


@BOTH
@given(batch=BATCHES, steps=st.integers(1, 600))
def test_span_is_the_sum_of_its_steps(factory: Callable[[], Hardware], batch: tuple[int, int], steps: int) -> None:
    time = TIMES[factory]
    num_seqs, mean_tokens = batch
    kv_tokens = num_seqs * mean_tokens + num_seqs // 3
    steps = min(steps, 200)
    expected = span_by_steps(time, num_seqs, kv_tokens, steps)
    assert time.decode_span_s(num_seqs, kv_tokens, steps) == pytest.approx(expected, rel=1e-9)


@BOTH
@given(batch=BATCHES, first=st.integers(0, 5000), second=st.integers(0, 5000))
def test_spans_add_up(factory: Callable[[], Hardware], batch: tuple[int, int], first: int, second: int) -> None:
    time = TIMES[factory]
    num_seqs, mean_tokens = batch
    kv_tokens = num_seqs * mean_tokens
    whole = time.decode_span_s(num_seqs, kv_tokens, first + second)
    later = time.decode_span_s(num_seqs, kv_tokens + first * num_seqs, second)
    assert whole == pytest.approx(time.decode_span_s(num_seqs, kv_tokens, first) + later, rel=1e-9)


@BOTH
@given(batch=BATCHES, more=st.integers(1, 1000))
def test_more_work_never_takes_less_time(factory: Callable[[], Hardware], batch: tuple[int, int], more: int) -> None:
    time = TIMES[factory]
    num_seqs, mean_tokens = batch
    slack = 1e-12
    step = time.decode_span_s(num_seqs, num_seqs * mean_tokens, 1)
    assert step > 0
    assert time.decode_span_s(num_seqs, num_seqs * mean_tokens + more, 1) >= step - slack
    assert time.decode_span_s(num_seqs + 1, (num_seqs + 1) * mean_tokens, 1) >= step - slack
    prefill = time.mixed_s([(mean_tokens, 0)], num_seqs, num_seqs * 100)
    assert time.mixed_s([(mean_tokens + more, 0)], num_seqs, num_seqs * 100) >= prefill - slack
    assert time.mixed_s([(mean_tokens, more)], num_seqs, num_seqs * 100) >= prefill - slack
    assert time.mixed_s([(mean_tokens, 0)], num_seqs, num_seqs * 100 + more) >= prefill - slack
    assert prefill > time.mixed_s([(mean_tokens, 0)], 0, 0)


def test_attention_of_the_chunks_adds_up_to_that_of_the_prompt() -> None:
    time = TIMES[fitted_hardware]
    halves = time.mixed_s([(512, 0)], 0, 0) + time.mixed_s([(512, 512)], 0, 0)
    # Two iterations instead of one: host time and the head count twice, and the layers' weights are read twice.
    host_and_head = 1e-3 + 1e-5 + 2 * 128_256 * 4096 / 2e12
    layers = 32e-6 * (1100 + 1100 - (1100 + 500 * 2))
    assert halves - time.mixed_s([(1024, 0)], 0, 0) == pytest.approx(host_and_head + layers)


def test_decode_batches_pad_to_graph_sizes_only_where_graphs_are_captured() -> None:
    time = iteration_time(hardware_from_config(**make_config(graph_max_seqs=16)), make_shape(), 1)
    per_seq = 32 * 0.1e-6
    assert time.decode_span_s(16, 0, 1) - time.decode_span_s(9, 0, 1) == pytest.approx(7 * per_seq)
    beyond = time.decode_span_s(18, 0, 1) - time.decode_span_s(17, 0, 1)
    assert beyond == pytest.approx(per_seq + 32 * 300 / 255 * 1e-6)


@BOTH
def test_linear_part_scales_with_block_parameters(factory: Callable[[], Hardware]) -> None:
    reference = make_shape()
    double = make_shape(num_parameters=reference.num_parameters + reference.num_block_parameters)
    hardware = factory()
    extra = iteration_time(hardware, double, 1).decode_span_s(1, 16, 1) - TIMES[factory].decode_span_s(1, 16, 1)
    assert extra == pytest.approx(32 * 300e-6)


@BOTH
def test_attention_scales_with_kv_bytes(factory: Callable[[], Hardware]) -> None:
    half = iteration_time(factory(), make_shape(num_kv_heads=4), 1)

    def growth(time: IterationTime) -> float:
        return time.decode_span_s(64, 64 * 4096, 1) - time.decode_span_s(64, 64 * 1024, 1)

    assert growth(half) == pytest.approx(growth(TIMES[factory]) / 2)


@BOTH
def test_two_all_reduces_per_layer_when_the_model_is_sharded(factory: Callable[[], Hardware]) -> None:
    hardware = sharded_hardware(factory)
    shape = make_shape()
    without = replace(hardware, all_reduce={2: hardware.all_reduce[2].scaled(0.0)})
    for seconds in (
        lambda time: time.decode_span_s(4, 400, 1),
        lambda time: time.mixed_s([(100, 0)], 0, 0),
    ):
        difference = seconds(iteration_time(hardware, shape, 2)) - seconds(iteration_time(without, shape, 2))
        assert difference == pytest.approx(2 * 32 * 1e-3)

from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import IterationTime, SkewAwareIterationTime, iteration_time, unsplit_seqs
from sim.hardware.skew_time import IDLE_FRAC, AttentionSkew
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
@given(num_seqs=st.integers(1, 300), mean_tokens=st.integers(1, 5000), steps=st.integers(1, 600))
def test_span_is_the_sum_of_its_steps(
    factory: Callable[[], Hardware], num_seqs: int, mean_tokens: int, steps: int
) -> None:
    time = TIMES[factory]
    kv_tokens = num_seqs * mean_tokens + num_seqs // 3
    expected = span_by_steps(time, num_seqs, kv_tokens, steps)
    assert time.decode_span_s(num_seqs, kv_tokens, steps) == pytest.approx(expected, rel=1e-9)


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


LLAMA = make_shape()
KV_TOKEN_S = 32 * 0.0026e-6


def make_time(**changes):
    return iteration_time(hardware_from_config(**make_config(**changes)), LLAMA, 1)


def shared_makespan(blocks, num_slots, num_streams):
    """End of a list schedule whose blocks share the bandwidth where more than so many run."""
    now = progress = 0.0
    running, waiting = [], list(reversed(blocks))
    while running or waiting:
        while waiting and len(running) < num_slots:
            heappush(running, progress + waiting.pop())
        now += (running[0] - progress) * max(1.0, len(running) / num_streams)
        progress = heappop(running)
    return now


@pytest.mark.parametrize("num_seqs", [32, 64, 128])
@pytest.mark.parametrize("num_sms", [128, 188])
def test_decodes_alone_wait_about_as_long_as_in_a_list_schedule_of_random_lengths(num_seqs, num_sms):
    draw, streams, num_heads = Random(num_seqs), 55, 8
    skew, waits, scheduled = AttentionSkew(block_s=1.0), 0.0, 0.0
    for _ in range(10):
        lengths = [100 + draw.lognormvariate(6.5, 0.8) for _ in range(num_seqs)]
        scheduled += shared_makespan(lengths * num_heads, num_sms, streams) - sum(lengths) * num_heads / streams
        waits += skew.alone_s(max(lengths), sum(lengths) / num_seqs)
    assert waits == pytest.approx(scheduled, rel=0.25)


@pytest.mark.parametrize("num_seqs", [32, 64, 128])
@pytest.mark.parametrize("num_sms", [128, 188])
def test_beside_a_prefill_decodes_wait_about_as_long_as_in_a_list_schedule(num_seqs, num_sms):
    # Blocks do not share a bandwidth: query heads find what they read in the cache.
    draw, num_heads, skew = Random(num_seqs), 32, AttentionSkew(block_s=1.0)
    waits = scheduled = 0.0
    for _ in range(10):
        lengths = [100 + draw.lognormvariate(6.5, 0.8) for _ in range(num_seqs)]
        equal = [sum(lengths) / num_seqs] * num_seqs
        unequal_s, equal_s = (shared_makespan(those * num_heads, num_sms, num_sms) for those in (lengths, equal))
        scheduled += unequal_s - equal_s
        waits += skew.beside_prefill_s(max(lengths), equal[0], [(64, 0)])
    assert waits == pytest.approx(scheduled, rel=0.25)


def test_a_chunk_hides_decodes_that_are_no_longer_than_what_it_reads():
    skew = AttentionSkew(block_s=1e-9)
    assert skew.beside_prefill_s(100, 60.0, [(10, 0)]) == pytest.approx(1e-9 * 40)
    assert skew.beside_prefill_s(100, 60.0, [(5, 0), (10, 70)]) == pytest.approx(1e-9 * 20)
    assert skew.beside_prefill_s(100, 60.0, [(10, 90)]) == 0.0
    assert skew.beside_prefill_s(100, 60.0, [(10, 95)]) == 0.0


@pytest.mark.parametrize(("num_seqs", "counts"), [(16, False), (17, True)])
def test_skew_counts_from_the_batch_that_is_not_split(num_seqs, counts):
    # 108 multiprocessors and 8 heads: 22 sequences, and 17 are padded to 24.
    time = make_time(num_sms=108, attention_streams=60.0, graph_max_seqs=256)
    assert time.needs_longest
    extra = time.decode_span_s(num_seqs, 9000, 10, 4000) - time.decode_span_s(num_seqs, 9000, 10)
    waits_s = 10 * KV_TOKEN_S * 60 / 8 * (4000 - 9000 / num_seqs) * IDLE_FRAC
    assert extra == pytest.approx(waits_s if counts else 0.0)


def test_beside_a_prefill_decodes_are_never_split():
    time = make_time(num_sms=320, attention_streams=60.0)
    extra = time.mixed_s([(512, 0)], 2, 4100, 4000) - time.mixed_s([(512, 0)], 2, 4100)
    assert extra == pytest.approx(KV_TOKEN_S * 60 / 8 * (4000 - 2050))


def test_fewer_heads_need_more_sequences():
    fewer = make_shape(num_kv_heads=4)
    hardware = hardware_from_config(**make_config(num_sms=108, attention_streams=60.0))
    equal, skewed = iteration_time(hardware, LLAMA, 1), iteration_time(hardware, fewer, 1)
    # Half the tokens' bytes and half the streams' heads: a thread block is as fast as before.
    for time in (equal, skewed):
        extra = time.decode_span_s(64, 64_000, 1, 3000) - time.decode_span_s(64, 64_000, 1)
        assert extra == pytest.approx(KV_TOKEN_S * 60 / 8 * 2000 * IDLE_FRAC)
    assert unsplit_seqs(108, 4) == 44


def test_beyond_the_longest_captured_length_a_step_takes_its_launches():
    graph, eager = make_time(cpu_base_s=1e-3), make_time(cpu_base_s=1e-3, max_graph_tokens=8192, eager_layer_s=7e-4)
    below = eager.decode_span_s(1, 8190, 3, 8190)
    assert below == pytest.approx(graph.decode_span_s(1, 8190, 3))
    both = eager.decode_span_s(1, 8190, 5, 8190)
    assert both - below == pytest.approx(2 * (1e-3 + 32 * 7e-4))


def test_the_host_takes_time_for_every_token_in_the_cache():
    plain, copying = make_time(), make_time(cpu_per_kv_token_s=1.5e-8, cpu_overhead_scale=2.0)
    extra = copying.decode_span_s(10, 1000, 3) - plain.decode_span_s(10, 1000, 3)
    assert extra == pytest.approx(2 * 1.5e-8 * (1000 + 1010 + 1020))


def test_a_derived_head_is_the_larger_of_reading_and_computing():
    reading_s = 2 * 128_256 * 4096 / 2e12
    plain = make_time()
    head = make_time(flops_per_s=1e14, sampler_per_logit_s=1e-11)

    def extra_s(num_seqs):
        return head.decode_span_s(num_seqs, 100, 1) - plain.decode_span_s(num_seqs, 100, 1)

    sampler_s = 1e-11 * 128_256
    assert extra_s(1) == pytest.approx(sampler_s)
    assert extra_s(200) == pytest.approx(200 * sampler_s + 200 * 2 * 128_256 * 4096 / 1e14 - reading_s)


def test_a_link_that_somebody_made_up_gives_no_time():
    config = make_config(all_reduce_us={"2": "0:30"}, sources={"all_reduce": "assumed: PCIe"})
    config["tables"]["llama_tp2"] = {**config["tables"]["llama_tp1"], "tp_degree": 2}
    hardware = hardware_from_config(**config)
    iteration_time(hardware, LLAMA, 1)
    with pytest.raises(
        ValueError, match="test_gpu: all_reduce must be measured or published at tp_degree 2, got 'assumed"
    ):
        iteration_time(hardware, LLAMA, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionSkew(block_s=-1), "block_s must be at least 0"),
        (lambda: AttentionSkew(block_s=0, min_seqs=0), "min_seqs must be at least 1"),
        (lambda: make_time(attention_streams=50.0), "num_sms must be at least 1"),
        (lambda: make_time(max_graph_tokens=0), "max_graph_tokens must be at least 1"),
        (lambda: make_time(flops_per_s=0.0), "flops_per_s must be above 0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_costs_nothing_leaves_the_plain_time():
    assert not isinstance(make_time(), SkewAwareIterationTime)

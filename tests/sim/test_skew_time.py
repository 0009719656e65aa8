from heapq import heappop, heappush
from random import Random

import pytest

from sim.hardware.hardware import hardware_from_config
from sim.hardware.iteration_time import SkewAwareIterationTime, iteration_time, unsplit_seqs
from sim.hardware.skew_time import IDLE_FRAC, AttentionSkew
from tests.factories import make_shape
from tests.sim.test_hardware import make_config

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
    skew, waits, scheduled = AttentionSkew(block_s=1.0, num_sms=num_sms, num_heads=num_heads), 0.0, 0.0
    for _ in range(10):
        lengths = [100 + draw.lognormvariate(6.5, 0.8) for _ in range(num_seqs)]
        scheduled += shared_makespan(lengths * num_heads, num_sms, streams) - sum(lengths) * num_heads / streams
        waits += skew.longest_wait_s(max(lengths), sum(lengths) / num_seqs)
    assert waits == pytest.approx(scheduled, rel=0.25)


def test_blocks_of_one_wave_take_as_long_as_the_longest_and_tiles_hide_shorter_decodes():
    skew = AttentionSkew(block_s=1e-9, num_sms=8, num_heads=2)
    # Two decodes and one tile of 10 tokens behind a context: six blocks on eight multiprocessors.
    assert skew.beside_prefill_s([(10, 0)], 2, 60.0, [20, 100]) == pytest.approx(1e-9 * 40)
    assert skew.beside_prefill_s([(10, 70)], 2, 60.0, [20, 100]) == pytest.approx(1e-9 * 20)
    assert skew.beside_prefill_s([(10, 90)], 2, 60.0, [20, 100]) == 0.0
    # A chunk of 65 tokens has two tiles, so that eight blocks still fit.
    assert skew.beside_prefill_s([(65, 0)], 2, 80.0, [60, 100]) == pytest.approx(1e-9 * 20)


def test_unequal_lengths_fill_what_equal_ones_leave_idle():
    # 1, 2, 8, 8 on two multiprocessors end at 10; 1, 6, 6, 6 at 12.
    skew = AttentionSkew(block_s=1e-9, num_sms=2, num_heads=1)
    assert skew.beside_prefill_s([(1, 0)], 3, 6.0, [2, 8, 8]) == pytest.approx(1e-9 * (10 - 12))
    plain, slow = make_time(), AttentionSkew(block_s=1.0, num_sms=2, num_heads=1)
    equal_s = plain.mixed_s([(1, 0)], 3, 18)
    assert SkewAwareIterationTime(plain, skew=slow).mixed_s([(1, 0)], 3, 18, [2, 8, 8]) == equal_s / 2


def test_many_waves_blur():
    skew = AttentionSkew(block_s=1e-9, num_sms=2, num_heads=4)
    assert skew.num_longest == 2
    assert skew.beside_prefill_s([(100, 10)], 3, 150.0, [300]) == pytest.approx(1e-9 * 150)
    assert skew.beside_prefill_s([(300, 10)], 3, 150.0, [300]) == 0.0


@pytest.mark.parametrize(("num_seqs", "counts"), [(16, False), (17, True)])
def test_skew_counts_from_the_batch_that_is_not_split(num_seqs, counts):
    # 108 multiprocessors and 8 heads: 22 sequences, and 17 are padded to 24.
    time = make_time(num_sms=108, attention_streams=60.0, graph_max_seqs=256)
    assert time.num_longest == 16
    extra = time.decode_span_s(num_seqs, 9000, 10, [100, 4000]) - time.decode_span_s(num_seqs, 9000, 10)
    waits_s = 10 * KV_TOKEN_S * 60 / 8 * (4000 - 9000 / num_seqs) * IDLE_FRAC
    assert extra == pytest.approx(waits_s if counts else 0.0)


def test_beside_a_prefill_decodes_are_never_split():
    time = make_time(num_sms=320, attention_streams=60.0)
    extra = time.mixed_s([(512, 0)], 2, 4100, [100, 4000]) - time.mixed_s([(512, 0)], 2, 4100)
    assert extra == pytest.approx(KV_TOKEN_S * 60 / 8 * (4000 - 2050))


def test_fewer_heads_need_more_sequences():
    fewer = make_shape(num_kv_heads=4)
    hardware = hardware_from_config(**make_config(num_sms=108, attention_streams=60.0))
    equal, skewed = iteration_time(hardware, LLAMA, 1), iteration_time(hardware, fewer, 1)
    # Half the tokens' bytes and half the streams' heads: a thread block is as fast as before.
    for time in (equal, skewed):
        extra = time.decode_span_s(64, 64_000, 1, [3000]) - time.decode_span_s(64, 64_000, 1)
        assert extra == pytest.approx(KV_TOKEN_S * 60 / 8 * 2000 * IDLE_FRAC)
    assert unsplit_seqs(108, 4) == 44


def test_beyond_the_longest_captured_length_a_step_takes_its_launches():
    graph, eager = make_time(cpu_base_s=1e-3), make_time(cpu_base_s=1e-3, max_graph_tokens=8192, eager_layer_s=7e-4)
    below = eager.decode_span_s(1, 8190, 3, [8190])
    assert below == pytest.approx(graph.decode_span_s(1, 8190, 3))
    both = eager.decode_span_s(1, 8190, 5, [8190])
    assert both - below == pytest.approx(2 * (1e-3 + 32 * 7e-4))


def test_a_large_batch_hides_its_launches():
    graph, eager = make_time(), make_time(max_graph_tokens=100, eager_layer_s=7e-4)
    assert graph.decode_span_s(256, 256_000, 1) > 32 * 7e-4
    assert eager.decode_span_s(256, 256_000, 9, [1000]) == pytest.approx(graph.decode_span_s(256, 256_000, 9))


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
        (lambda: AttentionSkew(block_s=-1, num_sms=1, num_heads=1), "block_s must be at least 0"),
        (lambda: AttentionSkew(block_s=0, num_sms=0, num_heads=1), "num_sms must be at least 1"),
        (lambda: AttentionSkew(block_s=0, num_sms=1, num_heads=0), "num_heads must be at least 1"),
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

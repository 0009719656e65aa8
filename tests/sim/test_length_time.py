import pytest

from mosaic.core.workload import ModelShape
from sim.hardware.hardware import hardware_from_config
from sim.hardware.iteration_time import iteration_time, unsplit_seqs
from sim.hardware.length_time import AttentionSkew, EagerDecode, LengthTime
from tests.sim.test_hardware import SHAPE, make_config

LLAMA = ModelShape(**SHAPE)
KV_TOKEN_S = 32 * 0.0026e-6


def make_time(**changes):
    return iteration_time(hardware_from_config(**make_config(**changes)), LLAMA, 1)


def test_skew_is_the_time_until_the_longest_is_read():
    skew = AttentionSkew(per_kv_token_s=1e-9, num_longest=2.5)
    # Of 100, 60 and 20 tokens: behind the longest are 40 of the second and half of 80 of the third.
    assert skew.step_s([10, 20, 60, 100]) == pytest.approx(1e-9 * (40 + 40))
    assert skew.step_s([60, 100]) == pytest.approx(1e-9 * 40)
    assert skew.step_s([100]) == skew.step_s([7, 7, 7, 7]) == 0.0


@pytest.mark.parametrize(("num_seqs", "counts"), [(16, False), (17, True)])
def test_skew_counts_from_the_batch_that_is_not_split(num_seqs, counts):
    # 108 multiprocessors and 8 heads: 22 sequences, and 17 are padded to 24.
    time = make_time(num_sms=108, attention_streams=60.0, graph_max_seqs=256)
    assert time.num_longest == 8
    longest = [100] * 7 + [4000]
    extra = time.decode_span_s(num_seqs, 9000, 10, longest) - time.decode_span_s(num_seqs, 9000, 10)
    assert extra == pytest.approx(10 * KV_TOKEN_S * (7.5 * 4000 - 4000 - 6.5 * 100) if counts else 0.0)


def test_beside_a_prefill_decodes_are_never_split():
    time = make_time(num_sms=108, attention_streams=60.0)
    extra = time.mixed_s([(512, 0)], 2, 4100, [100, 4000]) - time.mixed_s([(512, 0)], 2, 4100)
    assert extra == pytest.approx(KV_TOKEN_S * 3900)


def test_fewer_heads_need_more_sequences():
    fewer = ModelShape(**{**SHAPE, "num_kv_heads": 4})
    hardware = hardware_from_config(**make_config(num_sms=108, attention_streams=60.0))
    assert iteration_time(hardware, fewer, 1).num_longest == 15
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
        (lambda: AttentionSkew(per_kv_token_s=-1, num_longest=1), "per_kv_token_s must be at least 0"),
        (lambda: AttentionSkew(per_kv_token_s=0, num_longest=0), "num_longest must be above 0"),
        (lambda: EagerDecode(max_graph_tokens=0, launch_s=0.0), "max_graph_tokens must be at least 1"),
        (lambda: make_time(attention_streams=50.0), "num_sms must be at least 1"),
        (lambda: make_time(max_graph_tokens=0), "max_graph_tokens must be at least 1"),
        (lambda: make_time(flops_per_s=0.0), "flops_per_s must be above 0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_costs_nothing_leaves_the_plain_time():
    assert not isinstance(make_time(), LengthTime)

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.cluster import Gpu, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.kv_memory import activation_bytes, kv_capacity_tokens
from mosaic.core.workload import ModelShape
from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import iteration_time
from sim.hardware.moe_time import distinct_experts
from sim.hardware.rank_time import DecodeBatch, RankTime, rank_time
from tests.factories import make_expert, make_shape
from tests.sim.random_runs import committed_hardware
from tests.sim.test_hardware import grid_attention, make_config

EXPERTS = {"num_experts": 64, "num_active_experts": 4, "expert_ffn_size": 100}
EXPERTS_US = "16 32 64\n2 110 210 410\n1024 210 310 510"
"""10 + 6.25 us an expert + 0.1 us a token, about."""


def make_sparse_shape(**changes: Any) -> ModelShape:
    """One layer of 64 experts, 4 a token, beside a quarter of a billion parameters."""
    sizes = {"num_layers": 1, "hidden_size": 1000, "vocab_size": 1000, "num_parameters": 252_000_000}
    return make_shape(**{**sizes, **EXPERTS, **changes})


def sparse_hardware(**changes: Any) -> Hardware:
    """GPUs on which this shape was measured, at degrees 1 and 2; an all-reduce takes 1 us and 1 us per 1,000 bytes."""
    shape = {name: getattr(make_sparse_shape(), name) for name in ModelShape.__dataclass_fields__}
    config = make_config(all_reduce_us={"2": "0:1 1000:2"}, **changes)
    config["tables"]["llama_tp1"] |= {"attention": grid_attention(), "head_us": "1:700 256:800"}
    for degree in (1, 2):
        sparse = {"shape": shape, "tp_degree": degree, "dense_us": "1:30 1000:130", "experts_us": EXPERTS_US}
        config["tables"][f"sparse_tp{degree}"] = {**config["tables"]["llama_tp1"], **sparse}
    return hardware_from_config(**config)


def test_all_experts_weigh_and_those_outside_are_the_blocks() -> None:
    shape = make_sparse_shape(num_shared_experts=1)
    assert shape.num_expert_parameters == 3 * 1000 * 100
    assert shape.num_routed_parameters == 64 * 300_000
    assert shape.weight_bytes == 2 * 252_000_000
    assert shape.num_block_parameters == 252_000_000 - 2_000_000 - 19_200_000
    assert shape.active_ffn_size == 5 * 100
    assert make_shape().active_ffn_size == make_shape().ffn_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_active_experts": 65}, "shape.num_active_experts must be at most num_experts=64, got 65"),
        ({"num_active_experts": 0}, "shape.num_active_experts must be at least 1 with num_experts=64, got 0"),
        ({"expert_ffn_size": 0}, "shape.expert_ffn_size must be at least 1 with num_experts=64, got 0"),
        ({"num_experts": 0}, "shape.num_active_experts must be 0 where num_experts is, got 4"),
        ({"num_parameters": 21_200_000}, "above those of the embeddings and routed experts, 21200000, got 21200000"),
    ],
)
def test_experts_of_a_shape_belong_together(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sparse_shape(**changes)


@given(st.integers(1, 200), st.integers(1, 64))
def test_distinct_experts_are_those_of_a_token_and_at_last_all(num_tokens: int, num_active: int) -> None:
    assert distinct_experts(1, 64, num_active) == pytest.approx(num_active)
    here, more = (distinct_experts(n, 64, num_active) for n in (num_tokens, num_tokens + 1))
    assert num_active <= here + 1e-9 <= more + 2e-9 <= 64 + 3e-9
    assert distinct_experts(10_000, 64, num_active) == pytest.approx(64)


def test_distinct_experts_are_the_mean_of_draws() -> None:
    random, draws = Random(3), 4000
    found = [len({expert for _ in range(12) for expert in random.sample(range(64), 4)}) for _ in range(draws)]
    # One draw has a standard deviation of about 2.4.
    assert sum(found) / draws == pytest.approx(distinct_experts(12, 64, 4), abs=4 * 2.4 / draws**0.5)


def test_sparse_step_is_the_sum_of_its_hand_computed_parts() -> None:
    time = iteration_time(sparse_hardware(cpu_base_s=1e-3), make_sparse_shape(), 1)
    distinct = 64 * (1 - (60 / 64) ** 8)
    per_expert_us = 6.25
    experts_us = 110 + per_expert_us * (distinct - 16) + 100 * (8 - 2) / 1022
    attention_us = 8 + (20 - 8) * 7 / 63  # 8 sequences of 16 tokens
    head_us = 700 + 100 * 7 / 255
    rest_us = 30 + 100 * 7 / 999 + head_us + attention_us
    assert time.decode_span_s(8, 8 * 16, 1) == pytest.approx(1e-3 + 1e-6 * (rest_us + experts_us))
    # A chunk of 1,000 tokens reaches all experts, of which two decodes beside it are no news.
    alone, beside = time.mixed_s([(1000, 0)], 0, 0.0), time.mixed_s([(998, 0)], 2, 2.0)
    assert alone == pytest.approx(1e-3 + 1e-6 * (130 + 700 + 8 + 984 / 2032 * 162 + 410 + 100 * 998 / 1022))
    assert beside > alone


def test_span_of_a_sparse_model_is_the_sum_of_its_steps() -> None:
    time = iteration_time(sparse_hardware(graph_max_seqs=16), make_sparse_shape(), 1)
    steps = sum(time.decode_span_s(9, 900 + 9 * i, 1) for i in range(200))
    assert time.decode_span_s(9, 900, 200) == pytest.approx(steps)
    assert time.step_s(9, 450.0, 900.0, 0) == pytest.approx(time.decode_span_s(9, 450.0, 1))
    padded, full = (time.decode_span_s(n, 0, 1) - time.own.decode_span_s(n, 0, 1) for n in (9, 16))  # type: ignore[attr-defined]
    assert padded == pytest.approx(full)


def test_two_gpus_share_the_experts_and_their_pairs() -> None:
    one, two = (iteration_time(sparse_hardware(), make_sparse_shape(), degree) for degree in (1, 2))
    all_reduces_s = 2e-6 * (1 + 1000 * 2 * 1000 / 1000)
    # Of 1,000 tokens: half of the pairs, on half of the 64 experts.
    experts_s = 1e-6 * (410 - 210 + 100 * (998 - 498) / 1022)
    difference = one.mixed_s([(1000, 0)], 0, 0.0) - two.mixed_s([(1000, 0)], 0, 0.0)
    assert difference == pytest.approx(experts_s - all_reduces_s)


def ranks(num_ranks: int = 2, max_num_seqs: int = 4) -> RankTime:
    """Ranks of the sparse model, which pad batches up to 8 tokens."""
    hardware, settings = sparse_hardware(graph_max_seqs=512), EngineOptions(max_num_seqs=max_num_seqs)
    expert = make_expert(tp_degree=num_ranks, shape=make_sparse_shape(), dp_attention=True)
    return rank_time(iteration_time(hardware, expert.shape, 1), expert, num_ranks, hardware, settings)


def experts_us(num_tokens: float, num_experts: float) -> float:
    """Read the table between 32 and 64 experts."""
    return 210 + 6.25 * (num_experts - 32) + 100 * (num_tokens - 2) / 1022


def test_a_rank_that_prefills_makes_the_other_wait_and_sends_it_its_tokens() -> None:
    time = ranks()
    prefill_s = time.own.mixed_s([(900, 0)], 0, 0.0)
    decode_s = time.own.decode_span_s(20, 20 * 64, 1)
    # Two collectives, one of them of no bytes, and as many tokens from each rank as from the larger one.
    exchange_s = 1e-6 * (1 + 2 * 900 * 2 * 1000 / 1000 + 1)
    both = time.iteration_s([prefill_s, decode_s], [900, 20])
    assert both == pytest.approx(prefill_s + exchange_s + 1e-6 * experts_us(920 / 2, 64 / 2), rel=1e-4)
    # Who waits brings one token along, and sees all experts that the other reaches.
    alone = time.mixed_s([(900, 0)], 0, 0.0)
    assert both - alone == pytest.approx(1e-6 * 100 * 19 / 2 / 1022, rel=1e-3)


def test_small_batches_are_padded_to_the_largest_rank() -> None:
    time = ranks()
    alone = time.decode_span_s(5, 5 * 64, 1)
    reached = 64 * (1 - (60 / 64) ** 16)
    exchange_us = 2 + 2 * 8 * 2 * 1000 / 1000
    experts_us = 110 + 6.25 * (reached / 2 - 16) + 100 * (8 - 2) / 1022
    assert alone == pytest.approx(time.own.decode_span_s(5, 5 * 64, 1) + 1e-6 * (exchange_us + experts_us))
    batch, more = DecodeBatch(5, 5 * 64, 0), DecodeBatch(8, 8 * 64, 0)
    assert time.decodes_s([batch, batch], 1) == pytest.approx(alone)
    assert time.decodes_s([batch, more], 1) == pytest.approx(time.decodes_s([more], 1))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3000)), min_size=1, max_size=3), st.integers(1, 300))
def test_span_of_ranks_is_the_sum_of_the_slowest_steps(sizes: list[tuple[int, int]], num_steps: int) -> None:
    time = RANKS
    batches = [DecodeBatch(num_seqs, num_seqs * mean, 0) for num_seqs, mean in sizes]
    steps = [[batch.after(step) for batch in batches] for step in range(num_steps)]
    own = [[time.own.decode_span_s(batch.num_seqs, batch.kv_tokens, 1) for batch in step] for step in steps]
    by_step = sum(time.iteration_s(own_s, [batch.num_seqs for batch in batches]) for own_s in own)
    assert time.decodes_s(batches, num_steps) == pytest.approx(by_step, rel=1e-6)


RANKS = ranks(num_ranks=2)


def test_ranks_need_a_link_that_is_known() -> None:
    with pytest.raises(ValueError, match=r"all_reduce must be given for 3 data-parallel ranks of expert A, got \[2\]"):
        ranks(num_ranks=3)


def test_ranks_each_hold_what_is_not_shared() -> None:
    expert = make_expert(tp_degree=2, shape=make_sparse_shape(), dp_attention=True)
    shared, whole = 64 * 300_000 * 2, 252_000_000 * 2
    assert expert.weight_bytes_on_worker(2) == whole - shared + shared // 2
    assert (expert.num_ranks, expert.attention_degree(2)) == (2, 1)
    gpu, options = Gpu(name="g", memory_bytes=10**10, memory_utilization_frac=1.0), EngineOptions()
    workers = [Worker(number, gpu) for number in range(2)]
    free = 10**10 - expert.weight_bytes_on_worker(2) - activation_bytes(expert, options, 2)
    assert kv_capacity_tokens(expert, workers, options) == free // expert.shape.kv_bytes_per_token(1)
    sharded = replace(expert, dp_attention=False)
    assert (sharded.weight_bytes_on_worker(2), sharded.num_ranks, sharded.attention_degree(2)) == (whole // 2, 1, 2)


def test_experts_scale_with_their_size_and_their_number_a_token() -> None:
    hardware, shape = sparse_hardware(), make_sparse_shape()

    def experts_s(shape: ModelShape, num_tokens: int) -> float:
        time = iteration_time(hardware, shape, 1)
        return time.mixed_s([(num_tokens, 0)], 0, 0.0) - time.own.mixed_s([(num_tokens, 0)], 0, 0.0)  # type: ignore[attr-defined]

    wide = make_sparse_shape(expert_ffn_size=300, num_parameters=300_000_000)
    assert experts_s(wide, 1000) == pytest.approx(3 * experts_s(shape, 1000))
    twice = make_sparse_shape(num_active_experts=8)
    assert experts_s(twice, 500) == pytest.approx(experts_s(shape, 1000))


def test_with_many_tokens_the_products_are_all_there_is() -> None:
    time = iteration_time(sparse_hardware(), make_sparse_shape(), 1)
    own = time.own  # type: ignore[attr-defined]
    much, more = (time.mixed_s([(n, 0)], 0, 0.0) - own.mixed_s([(n, 0)], 0, 0.0) for n in (40_000, 80_000))
    assert more == pytest.approx(2 * much) == pytest.approx(80_000 * 210e-6 / 1024)


def test_a_model_takes_no_tables_of_the_other_kind() -> None:
    hardware = sparse_hardware()
    assert hardware.table_for(make_shape(num_parameters=1_100_000_000), 1).name == "llama_tp1"
    assert hardware.table_for(make_sparse_shape(num_parameters=9_000_000_000), 1).name == "sparse_tp1"
    dense_only = hardware_from_config(**make_config())
    with pytest.raises(ValueError, match=r"tables must be of a model with experts among them, got \['llama_tp1'\]"):
        dense_only.table_for(make_sparse_shape(), 1)
    config = make_config()
    config["tables"]["llama_tp1"]["experts_us"] = EXPERTS_US
    with pytest.raises(ValueError, match="experts must be given exactly where shape.num_experts=0 is above 0"):
        hardware_from_config(**config)


def test_committed_experts_are_never_read_faster_than_memory_allows() -> None:
    table = next(table for table in committed_hardware("rtxpro6000").tables if table.name == "qwen3_30b_a3b_tp1")
    assert table.experts is not None
    for experts, seconds in zip(table.experts.columns, table.experts.values_s[0], strict=True):
        least_s = experts * table.shape.num_expert_parameters * 2 / 1.792e12  # NVIDIA's data sheet
        assert least_s < seconds < 2 * least_s
    # The model's name: 30 billion parameters, 3 of them active.
    active = table.shape.num_parameters - table.shape.num_routed_parameters * (1 - 8 / 128)
    assert (table.shape.num_parameters, active) == pytest.approx((30.5e9, 3.35e9), rel=0.01)

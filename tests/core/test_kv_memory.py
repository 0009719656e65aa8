"""What an engine's memory goes to: weights, activations, and the KV cache that is left; what a sparse cache holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.cluster import Gpu, Worker
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.kv_memory import (
    activation_bytes,
    check_sparse_kv,
    describe_need,
    fits_memory,
    free_kv_bytes,
    kv_capacity_tokens,
)
from mosaic.core.workload import PAGE_TOKENS, SparseKv
from sim.engine.sparse_engine import PageSizes, SparseKvCache
from tests.factories import make_cluster, make_expert, make_gpu, make_shape

LLAMA = make_expert(shape=make_shape(num_parameters=8_030_261_248), context_tokens=32_768)
V0, V1 = EngineOptions(), EngineOptions(order=Order.MIXED)


def test_a_recorded_run_on_24_gb_is_met() -> None:
    # vLLM 0.19, Llama-3.1-8B on an RTX 4090: 2,048 tokens and 256 sequences an iteration left 41,408 tokens.
    gpu = Gpu(name="rtx4090", memory_bytes=25_250_627_584, memory_utilization_frac=0.9)
    assert kv_capacity_tokens(LLAMA, [Worker(0, gpu)], V1) == pytest.approx(41_408, rel=0.01)


def test_prompts_read_whole_need_what_the_papers_engine_kept() -> None:
    # vLLM 0.7.1 on 80 GB reads up to 32,768 tokens at once; 427k KV tokens are on record.
    gpu = Gpu(name="a100", memory_bytes=int(79.15 * 2**30), memory_utilization_frac=0.9)
    assert kv_capacity_tokens(LLAMA, [Worker(0, gpu)], V0) == pytest.approx(427_000, rel=0.02)


def test_activations_grow_with_each_limit_and_are_shared_out() -> None:
    def needed(tp_degree: int = 1, *, tokens: int = 2048, seqs: int = 128) -> int:
        return activation_bytes(LLAMA, EngineOptions(max_num_batched_tokens=tokens, max_num_seqs=seqs), tp_degree)

    assert needed(tokens=4096) - needed() == 2048 * (3 * 14336 + 4 * 4096) * 2
    assert needed(seqs=256) - needed() == 128 * 128_256 * 20
    assert needed(2) < needed()


def test_a_gang_has_the_capacity_of_its_smallest_gpu() -> None:
    big, small = make_gpu("big", memory_gib=80), make_gpu("small", memory_gib=24)
    expert = make_expert(tp_degree=2)
    mixed = kv_capacity_tokens(expert, (Worker(0, big), Worker(1, small)), V0)
    assert mixed == kv_capacity_tokens(expert, (Worker(0, small), Worker(1, small)), V0)


@given(num_kv_heads=st.sampled_from([2, 4, 8]), degrees=st.sampled_from([(1, 2), (2, 4), (4, 8)]))
def test_more_gpus_never_hold_fewer_kv_tokens(num_kv_heads: int, degrees: tuple[int, int]) -> None:
    expert = make_expert(shape=make_shape(num_kv_heads=num_kv_heads))
    workers = make_cluster(8).workers
    few, many = (kv_capacity_tokens(expert, workers[:degree], V0) for degree in degrees)
    assert many >= few


def test_a_gang_shares_the_weights() -> None:
    # 16.06 GB of weights, half of it on each of two GPUs.
    expert, workers = make_expert(), make_cluster(2, gpu=make_gpu(memory_gib=20)).workers
    free = workers[0].gpu.usable_bytes - 8_030_000_000 - activation_bytes(expert, V1, 2)
    assert kv_capacity_tokens(expert, workers, V1) == free // (131_072 // 2)


def test_weights_of_a_checkpoint_go_before_those_of_a_shape() -> None:
    gpu, expert = make_gpu(), make_expert()
    assert free_kv_bytes(gpu, expert, V0, 1) == free_kv_bytes(gpu, expert, V0, 1, expert.shape.weight_bytes)
    assert free_kv_bytes(gpu, expert, V0, 1, 0) - free_kv_bytes(gpu, expert, V0, 1) == expert.shape.weight_bytes


def test_the_capacity_is_what_is_given_or_what_the_weights_leave() -> None:
    expert, workers = make_expert(), make_cluster(2).workers
    per_token = expert.shape.kv_bytes_per_token(2)
    free = free_kv_bytes(make_gpu(), expert, V0, 2)
    assert kv_capacity_tokens(expert, workers, V0) == free // per_token
    assert kv_capacity_tokens(expert, workers, EngineOptions(kv_cache_tokens=77)) == 77
    assert kv_capacity_tokens(expert, workers, EngineOptions(kv_cache_memory_bytes=10 * per_token + 1)) == 10


def test_weights_larger_than_the_gpu_leave_nothing_and_a_capacity_that_is_given_is_believed() -> None:
    workers = make_cluster(1, gpu=make_gpu(memory_gib=12)).workers
    assert kv_capacity_tokens(make_expert(), workers, V0) <= 0
    assert not fits_memory(make_expert(), workers, V0)
    assert fits_memory(make_expert(), workers, EngineOptions(kv_cache_tokens=4096))
    assert fits_memory(make_expert(), workers, EngineOptions(kv_cache_memory_bytes=2**20))


def test_what_an_expert_needs_is_said_in_gib() -> None:
    assert describe_need(LLAMA) == "15.0 GiB of weights and 4.0 GiB of KV cache for one call of context_tokens=32768"


def test_an_expert_takes_its_settings_by_name():
    assert make_expert(kv={"policy": "flexicache", "budget_pages": 128}).kv == SparseKv(budget_pages=128)


def test_prefix_caching_is_refused():
    with pytest.raises(ValueError, match="enable_prefix_caching must be false with expert A's kv=flexicache"):
        check_sparse_kv("A", SparseKv(), EngineOptions(order="mixed"))
    check_sparse_kv("A", SparseKv(), EngineOptions(order="mixed", enable_prefix_caching=False))
    check_sparse_kv("A", None, EngineOptions(order="mixed"))


def resident_tokens(kv: SparseKv, num_tokens: int) -> float:
    """Count what a decoding sequence holds on the GPU, in tokens of a full KV cache.

    A summary is two vectors for 16 tokens of two vectors each: a sixteenth.
    """
    stable = (1 - kv.unstable_frac) * min(num_tokens, kv.dense_tokens)
    return kv.unstable_frac * num_tokens + stable + num_tokens / PAGE_TOKENS


def test_what_a_long_sequence_holds_and_reads_is_the_papers_arithmetic():
    kv = SparseKv()
    assert resident_tokens(kv, 20_000) == 20_000 / 4 + 3 / 4 * (1024 + 16) + 20_000 / 16
    assert kv.long_read_tokens() == 1024 + 3 / 4 * 8
    assert kv.scored_tokens_per_token() == (1 / 4 + 3 / 4 / 16) / 16


@given(
    st.integers(1, 5000),
    st.builds(
        SparseKv,
        budget_pages=st.integers(1, 64),
        rerank_every=st.integers(1, 40),
        unstable_frac=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
)
def test_the_cache_counts_in_pages_what_the_formula_counts_in_tokens(num_tokens, kv):
    num_heads = 8
    cache = SparseKvCache(kv_tokens=10**6, watermark_frac=0.0, sizes=PageSizes.of(kv, num_heads))
    held, tokens = cache.held(num_tokens) / num_heads, resident_tokens(kv, num_tokens)
    # A page that is begun counts in full.
    assert tokens - 1e-6 <= held <= tokens + 17
    assert held <= cache.blocks(num_tokens) / num_heads

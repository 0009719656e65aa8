import pytest

from mosaic.core.cluster import Gpu
from mosaic.core.workload import ModelShape
from sim.hardware.memory import activation_bytes, kv_capacity_tokens
from tests.sim.test_hardware import SHAPE

LLAMA = ModelShape(**{**SHAPE, "num_parameters": 8_030_261_248})


def test_a_recorded_run_on_24_gb_is_met() -> None:
    # vLLM 0.19, Llama-3.1-8B on an RTX 4090: 2,048 tokens and 256 sequences an iteration left 41,408 tokens.
    gpu = Gpu(name="rtx4090", memory_bytes=25_250_627_584, memory_utilization_frac=0.9)
    assert kv_capacity_tokens(gpu, LLAMA, batched_tokens=2048, max_num_seqs=256) == pytest.approx(41_408, rel=0.01)


def test_prompts_read_whole_need_what_the_papers_engine_kept() -> None:
    # vLLM 0.7.1 on 80 GB reads up to 32,768 tokens at once; 427k KV tokens are on record.
    gpu = Gpu(name="a100", memory_bytes=int(79.15 * 2**30), memory_utilization_frac=0.9)
    assert kv_capacity_tokens(gpu, LLAMA, batched_tokens=32_768, max_num_seqs=256) == pytest.approx(427_000, rel=0.02)


def test_activations_grow_with_each_limit_and_are_shared_out() -> None:
    base = activation_bytes(LLAMA, batched_tokens=2048, max_num_seqs=128)
    assert activation_bytes(LLAMA, batched_tokens=4096, max_num_seqs=128) - base == 2048 * (3 * 14336 + 4 * 4096) * 2
    assert activation_bytes(LLAMA, batched_tokens=2048, max_num_seqs=256) - base == 128 * 128_256 * 20
    assert activation_bytes(LLAMA, batched_tokens=2048, max_num_seqs=128, tp_degree=2) < base

"""FlexiCache on real vLLM: dense it is the stock engine, sparse it is what a plain forward pass says."""

import gc
import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import pytest

from mosaic.core.workload import SparseKv
from mosaic.engines import sparse_attention, vllm_engine
from mosaic.engines.engine import EngineSpec
from mosaic.engines.head_lists import UnstableHeads, spread_heads
from mosaic.engines.vllm_engines import VllmSettings
from tests.engines.endpoint_calls import make_request, serve
from tests.engines.executor_runs import OPTIONS
from tests.engines.tiny_checkpoint import CONTEXT, HEADS, LAYERS, write_tiny_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
UNCACHED = replace(OPTIONS, enable_prefix_caching=False)
NUM_OUTPUT = 48
DENSE = SparseKv(budget_pages=1000)
SPARSE = SparseKv(budget_pages=2, rerank_every=5, unstable_frac=0.5)
UNSTABLE = UnstableHeads(((0, 1), (0, 3), (1, 0), (1, 2)))


def prompts():
    """Of several lengths, a begun page and a full one among them; the last is one token."""
    return [tuple(1 + (7 * number + 13 * i * i) % 255 for i in range(length)) for number, length in
            enumerate((100, 160, 33, 250, 64, 1))]  # fmt: skip


def requests():
    """Greedy ones, and as many that are sampled."""
    return [
        make_request(number, prompt=prompt, temperature=heat, max_output_tokens=NUM_OUTPUT, output_tokens=NUM_OUTPUT)
        for number, (prompt, heat) in enumerate((p, t) for t in (0.0, 0.7) for p in prompts())
    ]  # fmt: skip


def serve_all(checkpoint):
    """Serve the same requests on engines of one process, one after the other: stock, dense, sparse, stock."""
    vllm_engine.prepare(UNCACHED)
    said = []
    settings = VllmSettings(
        checkpoint=checkpoint, with_tokenizer=False, gpu_memory_utilization=0.9,
        kv_cache_memory_bytes=UNCACHED.kv_cache_memory_bytes, options=UNCACHED,
    )  # fmt: skip
    for kv, heads in ((None, None), (DENSE, spread_heads(DENSE, LAYERS, HEADS)), (SPARSE, UNSTABLE), (None, None)):
        spec = EngineSpec(
            expert="A", context_tokens=CONTEXT, num_workers=1, max_num_seqs=8,
            settings=replace(settings, kv=kv, unstable=heads),
        )  # fmt: skip
        engine = vllm_engine.open_engine(spec)
        responses = serve(engine, requests())
        said.append(([responses[number].token_ids for number in sorted(responses)], asdict(sparse_attention.COUNTS)))
        del engine
        gc.collect()
    return said


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("sparse") / "A", seed=1)


@pytest.fixture(scope="module")
def said(checkpoint):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(
            zip(("stock", "dense", "sparse", "again"), pool.submit(serve_all, checkpoint).result(), strict=True)
        )


def test_dense_mode_says_token_by_token_what_the_stock_engine_says(said):
    assert said["dense"][0] == said["stock"][0]
    counts = said["dense"][1]
    assert counts["num_steps"] > 0, "the backend was not used"
    assert counts["held_pages"] == counts["read_pages"] == counts["all_pages"]
    assert counts["promoted_pages"] == 0


def test_an_engine_without_it_is_the_stock_engine_again(said):
    assert said["again"][0] == said["stock"][0]
    assert said["again"][1]["num_steps"] == said["sparse"][1]["num_steps"], "counted without the backend"


def test_fewer_pages_say_something_else(said):
    assert said["sparse"][0] != said["stock"][0]
    counts = said["sparse"][1]
    assert counts["read_pages"] < counts["held_pages"] < counts["all_pages"]
    assert 0 < counts["promoted_pages"] < counts["ranked_pages"]


def test_sparse_tokens_are_those_of_a_plain_forward_pass_that_reads_the_same_pages(said, checkpoint):
    import torch

    from experiments.kv_heads.attention import FlexiCacheReader, decode, load_checkpoint, prefill

    (model, _), reader = load_checkpoint(checkpoint), FlexiCacheReader(SPARSE, UNSTABLE)
    for prompt, output in zip(prompts()[:5], said["sparse"][0], strict=False):
        logits = decode(model, output[:-1], prefill(model, prompt), reader)
        chosen = logits.gather(1, torch.tensor(output[1:])[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 1e-3

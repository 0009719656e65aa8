"""FlexiCache: which pages are read, and real vLLM with it: dense the stock engine, sparse a plain forward pass's."""

import gc
import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from mosaic.core.engine_options import ModelLoading
from mosaic.core.errors import BackendError
from mosaic.core.workload import SparseKv
from mosaic.engines import vllm_engine
from mosaic.engines.engine import EngineSpec
from mosaic.engines.sparse_attention import (
    RequestPages,
    UnstableHeads,
    best_pages,
    page_scores,
    page_summaries,
    read_heads,
    spread_heads,
    tokens_of,
    write_heads,
)
from mosaic.engines.vllm_engines import VllmEngines
from tests.engines.engine_calls import make_request, make_vllm_settings, serve
from tests.engines.executor_runs import OPTIONS
from tests.engines.tiny_checkpoint import CONTEXT, HEADS, LAYERS, tiny_expert, write_tiny_checkpoint

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
UNCACHED = replace(OPTIONS, enable_prefix_caching=False)
NUM_OUTPUT = 48
DENSE = SparseKv(budget_pages=1000)
SPARSE = SparseKv(budget_pages=2, rerank_every=5, unstable_frac=0.5)
UNSTABLE = UnstableHeads(((0, 1), (0, 3), (1, 0), (1, 2)))


@needs_torch
def test_scores_are_the_papers_sum_and_the_largest_over_a_group():
    import torch

    torch.manual_seed(0)
    keys, queries = torch.randn(2, 37, 8), torch.randn(2, 3, 8)
    scores = page_scores(queries, *page_summaries(keys))
    assert scores.shape == (2, 3)
    for head in range(2):
        for page, (begin, end) in enumerate(((0, 16), (16, 32), (32, 37))):
            part = keys[head, begin:end]
            bounds = [
                sum(max(float(q[j] * part[:, j].min()), float(q[j] * part[:, j].max())) for j in range(8))
                for q in queries[head]
            ]
            assert float(scores[head, page]) == pytest.approx(max(bounds), rel=1e-5)
            assert max(bounds) >= float((queries[head] @ part.T).max()) - 1e-5, "no key scores above its page"


@needs_torch
def test_the_last_page_is_always_read_and_later_ones_never():
    import torch

    scores = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 9.0]]]).repeat(2, 1, 1)
    chosen = best_pages(scores, torch.tensor([4, 5]), 2)
    assert chosen[0, 0].tolist() == [True, False, False, True, False]
    assert chosen[1, 0].tolist() == [True, False, False, False, True]
    assert best_pages(scores[0], 3, 10)[0].tolist() == [True, True, True, False, False]
    assert tokens_of(chosen[1], 70).sum().item() == 16 + 6


@needs_torch
def test_a_request_reads_over_its_steps_what_a_text_at_once_reads():
    """Step by step as the engine goes, against the reader that takes all steps of a layer together."""
    import torch

    from experiments.kv_heads.attention import Layer
    from tests.engines.flexicache_reader import FlexiCacheReader

    torch.manual_seed(1)
    kv, first, num_steps = SparseKv(budget_pages=3, rerank_every=4), 70, 40
    keys, queries = torch.randn(2, first + num_steps, 8), torch.randn(num_steps, 2, 3, 8)
    at_once = FlexiCacheReader(kv, UnstableHeads(((0, 1),)))(0, Layer(queries, keys, first))
    request = RequestPages(kv, (1,), 2)
    for step in range(num_steps):
        num_tokens = first + step + 1
        read = request.choose(queries[step], keys[:, :num_tokens])
        assert torch.equal(read, at_once[step, :, :num_tokens])


@pytest.mark.parametrize(
    ("device", "kv", "message"),
    [
        ("gpu", {}, "expert A: kv must be null on GPUs: real vLLM has it on CPU, got 'flexicache'"),
        ("cpu", {"promoted_frac": 0.3}, "expert A: kv.promoted_frac must be null on real engines"),
        ("cached", {}, "engine.enable_prefix_caching must be false with expert A's kv=flexicache"),
    ],
)
def test_what_real_engines_cannot_do_is_refused(tmp_path, device, kv, message):
    options = replace(OPTIONS, enable_prefix_caching=device == "cached", order="mixed")
    if device == "gpu":
        options = replace(options, loading=ModelLoading())
    expert = replace(tiny_expert("A", write_tiny_checkpoint(tmp_path / "A")), kv=SparseKv(**kv))
    with pytest.raises(ValueError, match=message):
        VllmEngines(options=options).served(expert)


def test_the_policy_and_its_heads_decide_a_response(tmp_path):
    plain = tiny_expert("A", write_tiny_checkpoint(tmp_path / "A"))
    write_heads(tmp_path / "heads.json", UnstableHeads(((0, 1), (1, 1))))
    experts = [plain] + [
        replace(plain, kv=SparseKv(**kv))
        for kv in ({}, {"budget_pages": 2}, {"heads": str(tmp_path / "heads.json")})
    ]  # fmt: skip
    engines = VllmEngines(options=replace(OPTIONS, enable_prefix_caching=False))
    assert len({engines.served(expert).decides for expert in experts}) == 4
    assert len(engines.served(plain).decides) == 5, "journals from before stay valid"


def test_head_lists_are_read_as_they_were_written(tmp_path):
    kv, path = SparseKv(unstable_frac=0.25), tmp_path / "heads.json"
    heads = UnstableHeads(((3, 1), (0, 2), (1, 0)))
    write_heads(path, heads)
    assert read_heads(path, kv, 4, 3) == heads
    assert heads.of_layer(3) == (1,)
    with pytest.raises(ValueError, match="must be below 3 layers of 3 KV heads"):
        read_heads(path, SparseKv(unstable_frac=1 / 3), 3, 3)
    with pytest.raises(ValueError, match="must be 6 pairs, as unstable_frac=0.5 says, got 3"):
        read_heads(path, SparseKv(unstable_frac=0.5), 4, 3)
    path.write_text("[]")
    with pytest.raises(BackendError, match="expert.kv: heads"):
        read_heads(path, kv, 4, 3)
    assert len(spread_heads(kv, 30, 3).pairs) == 22


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
    for kv, heads in ((None, None), (DENSE, spread_heads(DENSE, LAYERS, HEADS)), (SPARSE, UNSTABLE), (None, None)):
        settings = make_vllm_settings(checkpoint, UNCACHED, with_tokenizer=False, kv=kv, unstable=heads)
        spec = EngineSpec(expert="A", context_tokens=CONTEXT, num_workers=1, max_num_seqs=8, settings=settings)
        engine = vllm_engine.open_engine(spec)
        responses = serve(engine, requests())
        said.append([responses[number].token_ids for number in sorted(responses)])
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


@pytest.mark.slow
@needs_vllm
def test_dense_mode_and_an_engine_without_it_say_what_the_stock_engine_says_and_fewer_pages_something_else(said):
    assert said["stock"] == said["dense"] == said["again"] != said["sparse"]


@pytest.mark.slow
@needs_vllm
def test_sparse_tokens_are_those_of_a_plain_forward_pass_that_reads_the_same_pages(said, checkpoint):
    import torch

    from experiments.kv_heads.attention import decode, load_checkpoint, prefill
    from tests.engines.flexicache_reader import FlexiCacheReader

    (model, _), reader = load_checkpoint(checkpoint), FlexiCacheReader(SPARSE, UNSTABLE)
    for prompt, output in zip(prompts()[:5], said["sparse"], strict=False):
        logits = decode(model, output[:-1], prefill(model, prompt), reader)
        chosen = logits.gather(1, torch.tensor(output[1:])[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 1e-3

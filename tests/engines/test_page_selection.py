"""Which pages are read: the rule against its own text, and the state of a request over many steps."""

import importlib.util

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def test_scores_are_the_papers_sum_and_the_largest_over_a_group():
    import torch

    from mosaic.engines.page_selection import page_scores, page_summaries

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


def test_the_last_page_is_always_read_and_later_ones_never():
    import torch

    from mosaic.engines.page_selection import best_pages, tokens_of

    scores = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 9.0]]]).repeat(2, 1, 1)
    chosen = best_pages(scores, torch.tensor([4, 5]), 2)
    assert chosen[0, 0].tolist() == [True, False, False, True, False]
    assert chosen[1, 0].tolist() == [True, False, False, False, True]
    assert best_pages(scores[0], 3, 10)[0].tolist() == [True, True, True, False, False]
    assert tokens_of(chosen[1], 70).sum().item() == 16 + 6


def test_a_request_reads_over_its_steps_what_a_text_at_once_reads():
    """Step by step as the engine goes, against the reader that takes all steps of a layer together."""
    import torch

    from experiments.kv_heads.attention import FlexiCacheReader, Layer
    from mosaic.core.workload import SparseKv
    from mosaic.engines.head_lists import UnstableHeads
    from mosaic.engines.sparse_attention import COUNTS, RequestPages

    torch.manual_seed(1)
    kv, first, num_steps = SparseKv(budget_pages=3, rerank_every=4), 70, 40
    keys, queries = torch.randn(2, first + num_steps, 8), torch.randn(num_steps, 2, 3, 8)
    at_once = FlexiCacheReader(kv, UnstableHeads(((0, 1),)))(0, Layer(queries, keys, first))
    request = RequestPages(kv, (1,), 2)
    COUNTS.clear()
    for step in range(num_steps):
        num_tokens = first + step + 1
        read = request.choose(queries[step], keys[:, :num_tokens])
        assert torch.equal(read, at_once[step, :, :num_tokens])
    assert COUNTS.num_steps == num_steps
    assert 0 < COUNTS.promoted_frac < 1
    assert COUNTS.read_pages < COUNTS.held_pages < COUNTS.all_pages


@pytest.mark.parametrize(
    ("device", "kv", "message"),
    [
        ("gpu", {}, "expert A: kv must be null on GPUs: real vLLM has it on CPU, got 'flexicache'"),
        ("cpu", {"promoted_frac": 0.3}, "expert A: kv.promoted_frac must be null on real engines: it is counted"),
        ("cached", {}, "engine.enable_prefix_caching must be false with expert A's kv=flexicache"),
    ],
)
def test_what_real_engines_cannot_do_is_refused(tmp_path, device, kv, message):
    from dataclasses import replace

    from mosaic.core.engine_options import ModelLoading
    from mosaic.core.workload import SparseKv
    from mosaic.engines.vllm_engines import VllmEngines
    from tests.engines.executor_runs import OPTIONS
    from tests.engines.tiny_checkpoint import tiny_expert, write_tiny_checkpoint

    options = replace(OPTIONS, enable_prefix_caching=device == "cached", order="mixed")
    if device == "gpu":
        options = replace(options, loading=ModelLoading())
    expert = replace(tiny_expert("A", write_tiny_checkpoint(tmp_path / "A")), kv=SparseKv(**kv))
    with pytest.raises(ValueError, match=message):
        VllmEngines(options=options).served(expert)


def test_the_policy_and_its_heads_decide_a_response(tmp_path):
    from dataclasses import replace

    from mosaic.core.workload import SparseKv
    from mosaic.engines.head_lists import UnstableHeads, write_heads
    from mosaic.engines.vllm_engines import VllmEngines
    from tests.engines.executor_runs import OPTIONS
    from tests.engines.tiny_checkpoint import tiny_expert, write_tiny_checkpoint

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
    from mosaic.core.errors import BackendError
    from mosaic.core.workload import SparseKv
    from mosaic.engines.head_lists import UnstableHeads, read_heads, spread_heads, write_heads

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

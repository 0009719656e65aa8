"""The study of KV heads: the forward pass, profiles by hand, lists, and what the report says of them."""

import csv
import importlib.util
import json

import pytest

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "tokenizers", "safetensors")),
    reason="torch and transformers' tokenizers are not installed",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tests.engines.tiny_checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("heads") / "A", seed=3)


@pytest.fixture(scope="module")
def model(checkpoint):
    from experiments.kv_heads.llama import Llama

    return Llama(checkpoint)


def some_tokens(length, step=7):
    return [1 + (step * i * i + 3 * i) % 255 for i in range(length)]


def test_the_forward_pass_is_transformers_own(model, checkpoint):
    import torch

    transformers = pytest.importorskip("transformers")
    tokens = torch.tensor(some_tokens(300))
    ours = model.logits(tokens[280:], model.prefill(tokens[:280]), None)
    theirs = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(tokens[None]).logits[0, 280:]
    assert torch.allclose(ours, expected, atol=1e-3)


def test_a_budget_that_holds_everything_changes_nothing(model):
    import torch

    from experiments.kv_heads.llama import FlexiCacheReader
    from mosaic.core.sparse_kv import SparseKv
    from mosaic.engines.head_lists import UnstableHeads

    tokens = torch.tensor(some_tokens(200))
    cache = model.prefill(tokens[:150])
    dense = model.logits(tokens[150:], cache, None)
    heads = UnstableHeads(((0, 1), (1, 2)))
    whole = model.logits(tokens[150:], cache, FlexiCacheReader(SparseKv(budget_pages=13), heads))
    few = model.logits(tokens[150:], cache, FlexiCacheReader(SparseKv(budget_pages=2), heads))
    assert torch.allclose(whole, dense, atol=1e-5)
    assert not torch.allclose(few, dense, atol=1e-2)


def test_changes_from_one_ranking_to_the_next_are_counted_by_hand():
    import torch

    from experiments.kv_heads.profile import window_changes

    # Two rankings of two heads, of three pages and then four: one head keeps its set, the other has page 0 come back
    # and page 3, which is new and was never away.
    ranked = torch.tensor([[[1, 1, 0, 0], [0, 1, 1, 0]], [[1, 1, 0, 0], [1, 0, 0, 1]]]).bool()
    overlap, promoted = window_changes(ranked, torch.tensor([3, 4]))
    assert overlap.tolist() == [1.0, 0.0]
    assert promoted.tolist() == [0.0, 0.5]


def test_the_unstable_heads_are_those_that_most_documents_name():
    import torch

    from experiments.kv_heads.profile import consensus, shared_frac
    from mosaic.core.sparse_kv import SparseKv

    kv = SparseKv(unstable_frac=0.5)
    one, two = torch.tensor([[0.1, 0.9], [0.2, 0.8]]), torch.tensor([[0.3, 0.1], [0.2, 0.9]])
    assert consensus([one], kv).pairs == ((0, 0), (1, 0))
    # Head (1, 0) is named twice; (0, 0) and (0, 1) once each, and (0, 0) is the less stable one on average.
    assert consensus([one, two], kv).pairs == ((0, 0), (1, 0))
    assert shared_frac(consensus([one], kv), consensus([two], kv)) == 0.5


def test_a_profile_is_of_shares(model):
    from experiments.kv_heads.profile import profile_document
    from mosaic.core.sparse_kv import SparseKv

    profile = profile_document(model, some_tokens(220), 60, SparseKv(budget_pages=4, rerank_every=8))
    for part in (profile.overlap, profile.promoted, profile.recall, profile.mass):
        assert part.shape == (2, 4)
        assert 0 <= part.min() <= part.max() <= 1 + 1e-6
    assert (profile.overlap + profile.promoted).max() <= 1 + 1e-6


def test_a_study_is_written_read_and_continued(checkpoint, tmp_path, monkeypatch, capsys):
    from experiments import flexicache
    from experiments.kv_heads import study

    for name, value in {
        "PROMPT_TOKENS": 96, "NUM_PROFILED": 2, "PROFILE_STEPS": 48, "RANKED_PAGES": 3, "NUM_TEXTS": 6,
        "SCORED_TOKENS": 24, "BUDGETS": (4, 2),
    }.items():  # fmt: skip
        monkeypatch.setattr(study, name, value)
    out = str(tmp_path / "out")
    assert flexicache.main(["heads", str(checkpoint), "--out", out]) == 0
    found = json.loads((tmp_path / "out" / "heads.json").read_text())
    assert len(found["prose"]) == len(found["code"]) == 2
    assert 0 <= found["overlap_frac"] <= 1
    assert "by chance 0.25" in (tmp_path / "out" / "heads.md").read_text()
    heads = str(tmp_path / "out" / "heads_prose.json")
    assert flexicache.main(["quality", str(checkpoint), "--heads", heads, "--out", out]) == 0
    table = tmp_path / "out" / "quality.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * (1 + 2 * 2)
    assert {row["agreement_frac"] for row in rows if row["protected"] == "dense"} == {"1"}
    text = (tmp_path / "out" / "quality.md").read_text()
    assert text.startswith("## Quality by budget")
    assert "6 of 6 texts" in text
    kept = "\n".join(table.read_text().splitlines()[: 1 + 3 * 5]) + "\n"
    whole = table.read_text()
    table.write_text(kept)
    capsys.readouterr()
    assert flexicache.main(["quality", str(checkpoint), "--heads", heads, "--out", out]) == 0
    assert table.read_text() == whole, "the missing texts, and no others, are scored again"
    assert capsys.readouterr().out.count("scored text") == 3


def test_the_verdict_reads_the_interval():
    from experiments.kv_heads.report import verdict
    from mosaic.comparison.estimate import estimate

    assert verdict(estimate([-0.1, -0.11, -0.09])) == "profiled heads are better"
    assert verdict(estimate([0.1, 0.11, 0.09])) == "random heads are better"
    assert verdict(estimate([0.1, -0.11, 0.02])) == "no difference shown"


def test_a_gguf_head_is_put_in_hugging_faces_order():
    import numpy as np

    from experiments.kv_heads.gguf_checkpoint import _in_halves

    # One head of four rows: GGUF has the pairs (a0, b0), (a1, b1), Hugging Face a0, a1, b0, b1.
    rows = np.array([["a0"], ["b0"], ["a1"], ["b1"]])
    assert _in_halves(rows, 1)[:, 0].tolist() == ["a0", "a1", "b0", "b1"]

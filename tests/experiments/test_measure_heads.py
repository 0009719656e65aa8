"""KV heads of a checkpoint: attention under a reader, profiles by hand, and lists of unstable heads."""

import json

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="transformers comes with the vLLM extras")

import torch
from transformers import AutoModelForCausalLM

from experiments import measure_heads
from experiments.kv_heads.attention import decode, load_checkpoint, prefill
from experiments.kv_heads.profile import consensus, shared_frac, window_changes
from mosaic.core.workload import SparseKv
from mosaic.engines.sparse_attention import UnstableHeads
from tests.engines.flexicache_reader import FlexiCacheReader
from tests.engines.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("heads") / "A", seed=3)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_checkpoint(checkpoint)[0]


def some_tokens(length):
    return [1 + (7 * i * i + 3 * i) % 255 for i in range(length)]


def test_without_a_reader_it_is_transformers_own_attention(model, checkpoint):
    tokens = some_tokens(300)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0, 280:]
    assert torch.allclose(decode(model, tokens[280:], prefill(model, tokens[:280])), expected, atol=1e-4)


def test_a_budget_that_holds_everything_changes_nothing_and_the_cache_stays_the_prompts(model):
    tokens = some_tokens(200)
    cache = prefill(model, tokens[:150])
    heads = UnstableHeads(((0, 1), (1, 2)))
    dense, whole, few, again = (
        decode(model, tokens[150:], cache, reader)
        for reader in (
            None,
            FlexiCacheReader(SparseKv(budget_pages=13), heads),
            FlexiCacheReader(SparseKv(budget_pages=2), heads),
            None,
        )
    )
    assert torch.allclose(whole, dense, atol=1e-5)
    assert not torch.allclose(few, dense, atol=1e-2)
    assert torch.equal(again, dense)


def test_changes_from_one_ranking_to_the_next_are_counted_by_hand():
    # Two rankings of two heads, of three pages and then four: one head keeps its set, the other has page 0 come back
    # and page 3, which is new and was never away.
    ranked = torch.tensor([[[1, 1, 0, 0], [0, 1, 1, 0]], [[1, 1, 0, 0], [1, 0, 0, 1]]]).bool()
    overlap, promoted = window_changes(ranked, torch.tensor([3, 4]))
    assert overlap.tolist() == [1.0, 0.0]
    assert promoted.tolist() == [0.0, 0.5]


def test_the_unstable_heads_are_those_that_most_documents_name():
    kv = SparseKv(unstable_frac=0.5)
    one, two = torch.tensor([[0.1, 0.9], [0.2, 0.8]]), torch.tensor([[0.3, 0.1], [0.2, 0.9]])
    assert consensus([one], kv).pairs == ((0, 0), (1, 0))
    # Head (1, 0) is named twice; (0, 0) and (0, 1) once each, and (0, 0) is the less stable one on average.
    assert consensus([one, two], kv).pairs == ((0, 0), (1, 0))
    assert shared_frac(consensus([one], kv), consensus([two], kv)) == 0.5


def test_profiles_are_written_with_a_list_of_unstable_heads(checkpoint, tmp_path, monkeypatch):
    for name, value in {"PROMPT_TOKENS": 96, "NUM_PROFILED": 2, "PROFILE_STEPS": 48, "RANKED_PAGES": 3}.items():
        monkeypatch.setattr(measure_heads, name, value)
    app = typer.Typer()
    app.command()(measure_heads.main)
    result = CliRunner().invoke(app, [str(checkpoint), "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = pl.read_csv(tmp_path / "heads.csv")
    assert found["set"].to_list() == ["prose", "prose", "code", "code"]
    assert (found["overlap_stable"] > found["overlap_unstable"]).all()
    assert found.select((pl.col("overlap_stable") + pl.col("promoted_stable")).max()).item() <= 1
    assert len(json.loads((tmp_path / "heads_prose.json").read_text())["pairs"]) == 2
    assert "by chance 0.25" in (tmp_path / "heads.md").read_text()

"""FlexiCache's throughput: nothing is fitted to it, its GPU is the fit, and the page says whether limits are kept."""

import polars as pl
import pytest

from experiments.studies import sparse_throughput
from experiments.studies.published_sparse_kv import FLEXICACHE_TOK_PER_S, VLLM_TOK_PER_S
from experiments.studies.sparse_throughput import STUDY, committed_fit, fit_vllm, hardware_yaml
from mosaic.config.compose import CONF
from mosaic.core.engine_options import Order

ROOT = CONF.parent


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    return {"sparse_throughput": pl.read_csv(ROOT / "results" / "flexicache" / "sparse_throughput.csv")}


def test_the_committed_hardware_is_the_fit_and_says_where_each_number_is_from(tables) -> None:
    file = (CONF / "hardware" / "flexicache_h100.yaml").read_text(encoding="utf-8")
    assert "_target_" + file.partition("_target_")[2] == hardware_yaml(committed_fit(tables))


def test_only_flexicaches_study_uses_its_gpu() -> None:
    """Its host time is that of FlexiCache's authors, and not ordinary vLLM's."""
    paths = [*CONF.rglob("*.yaml"), *(ROOT / "experiments" / "studies").rglob("*.py")]
    users = {path.name for path in paths if "flexicache_h100" in path.read_text(encoding="utf-8")}
    assert users == {"flexicache_h100.yaml", "sparse_throughput.py"}


def test_nothing_is_fitted_to_flexicaches_column(monkeypatch) -> None:
    def fit() -> sparse_throughput.Fit:
        fit_vllm.cache_clear()
        return fit_vllm(Order.PREFILL_FIRST, 0.6)

    monkeypatch.setattr(sparse_throughput, "NUM_REQUESTS", 20)
    monkeypatch.setattr(sparse_throughput, "NUM_DRAWS", 1)
    before = fit()
    monkeypatch.setattr(sparse_throughput, "FLEXICACHE_TOK_PER_S", tuple(10 * it for it in FLEXICACHE_TOK_PER_S))
    assert fit() == before
    monkeypatch.setattr(sparse_throughput, "VLLM_TOK_PER_S", tuple(it / 2 for it in VLLM_TOK_PER_S))
    assert fit() != before
    fit_vllm.cache_clear()


def test_the_page_says_where_a_limit_is_missed(tables) -> None:
    assert ": kept." in STUDY.report(tables)
    wrong = {name: table.with_columns(flexicache_tok_per_s=pl.lit(1.0)) for name, table in tables.items()}
    assert ": MISSED." in STUDY.report(wrong)

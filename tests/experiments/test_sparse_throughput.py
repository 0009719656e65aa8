"""FlexiCache's throughput: what is committed follows from the code, and keeps the limits it states."""

import csv

import pytest
import yaml

from experiments.studies import sparse_throughput
from experiments.studies.published_sparse_kv import FLEXICACHE_TOK_PER_S, OUTPUT_TOKENS, VLLM_TOK_PER_S
from experiments.studies.sparse_throughput import (
    ATTENTION_FRAC,
    Fit,
    Row,
    hardware_config,
    llama,
    memory_saved_frac,
    throughput,
)
from experiments.studies.sparse_throughput_report import figure, report, table_of, worst
from mosaic.config.compose import CONF
from mosaic.core.engine_options import Order
from mosaic.core.sparse_kv import SparseKv
from sim.hardware.hardware import hardware_from_config

TABLE = CONF.parent / "results" / "flexicache" / "throughput.csv"


@pytest.fixture(scope="module")
def committed():
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row_of(line):
    return Row(
        order=Order(line["order"]),
        fit=Fit(float(line["prefill_frac"]), float(line["host_s"])),
        output_tokens=int(line["output_tokens"]),
        **{
            name: float(line[name])
            for name in Row.__slots__
            if name not in ("order", "fit", "output_tokens")
        },
    )  # fmt: skip


def test_the_committed_table_keeps_the_limits(committed):
    found = worst([row_of(line) for line in committed])
    assert len(committed) == 2 * 4 * len(OUTPUT_TOKENS)
    assert found["absolute"] <= 0.12
    assert found["ratio"] <= 0.10


def test_the_committed_hardware_is_the_fit_and_says_where_each_number_is_from(committed):
    line = next(line for line in committed if (line["order"], line["attention_frac"]) == ("prefill_first", "0.7"))
    config = yaml.safe_load((CONF / "hardware" / "flexicache_h100.yaml").read_text(encoding="utf-8"))
    assert config.pop("_target_") == "sim.hardware.hardware_from_config"
    shape = llama().shape
    assert config == hardware_config(row_of(line).fit, ATTENTION_FRAC, shape)


def test_only_flexicaches_study_uses_its_gpu():
    """Its host time is that of FlexiCache's authors, and not ordinary vLLM's."""
    paths = [
        path for folder in ("conf", "experiments", "mosaic", "sim") for path in (CONF.parent / folder).rglob("*.*")
    ]
    users = {
        path.relative_to(CONF.parent).as_posix()
        for path in paths
        if path.suffix in (".py", ".yaml") and "flexicache_h100" in path.read_text(encoding="utf-8")
    }
    assert users == {
        "conf/hardware/flexicache_h100.yaml",
        "experiments/flexicache.py",
        "experiments/studies/sparse_throughput.py",
        "experiments/studies/sparse_throughput_report.py",
        "mosaic/config/errors.py",
    }


def test_the_committed_throughput_is_what_the_simulator_gives(committed):
    line = next(line for line in committed if (line["order"], line["attention_frac"]) == ("prefill_first", "0.7"))
    expert, row = llama(), row_of(line)
    hardware = hardware_from_config(**hardware_config(row.fit, 0.7, expert.shape))
    sparse = sparse_throughput.replace(expert, kv=SparseKv())
    ours = throughput(hardware, sparse, row.order, row.output_tokens, sparse_throughput.SEEDS)
    assert ours == pytest.approx(row.flexicache_tok_per_s, rel=1e-5)


def test_nothing_is_fitted_to_flexicaches_column(monkeypatch):
    expert = llama()
    monkeypatch.setattr(sparse_throughput, "NUM_REQUESTS", 20)
    before = sparse_throughput.fit_vllm(Order.PREFILL_FIRST, 0.6, expert, seeds=(0,))
    monkeypatch.setattr(sparse_throughput, "FLEXICACHE_TOK_PER_S", tuple(10 * it for it in FLEXICACHE_TOK_PER_S))
    assert sparse_throughput.fit_vllm(Order.PREFILL_FIRST, 0.6, expert, seeds=(0,)) == before
    monkeypatch.setattr(sparse_throughput, "VLLM_TOK_PER_S", tuple(it / 2 for it in VLLM_TOK_PER_S))
    assert sparse_throughput.fit_vllm(Order.PREFILL_FIRST, 0.6, expert, seeds=(0,)) != before


def test_the_report_says_where_a_limit_is_missed(committed):
    rows = [row_of(line) for line in committed]
    assert "kept." in report(rows, SparseKv())
    bad = [sparse_throughput.replace(rows[0], flexicache_tok_per_s=1.0), *rows[1:]]
    assert "MISSED." in report(bad, SparseKv())
    assert len(table_of(rows)) == 1 + len(rows)
    assert figure(rows).axes[1].get_ylabel() == "ratio (predicted)"


def test_memory_saved_is_what_is_not_resident():
    saved = memory_saved_frac(SparseKv(unstable_frac=1.0), 20_000)
    assert saved["keys and values alone"] == 0
    assert saved["with the summaries of all pages"] == -1 / 16

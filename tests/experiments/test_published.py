"""The published numbers."""

import csv
from pathlib import Path

import pytest

from experiments.studies import published
from experiments.studies.paper_figures import published_bars
from experiments.studies.paper_runs import TITLES

FIGURE_6 = Path(__file__).resolve().parents[2] / "results" / "paper" / "figure6_end_to_end.csv"


def test_the_table_is_the_papers() -> None:
    assert published.PREDICTED_ILP["mmlu_pro"].mean_s == pytest.approx(1616, abs=0.5)
    assert set(published.PREDICTED_ILP) == set(published.ROUND_ROBIN_WALL_S)
    assert max(published.ROUND_ROBIN_WORKER_S) == pytest.approx(published.ROUND_ROBIN_WALL_S["mmlu_pro"], rel=0.01)


@pytest.mark.parametrize("workload", published.PREDICTED_ILP)
def test_published_speedups_are_those_of_the_walls(workload: str) -> None:
    walls = published.PREDICTED_ILP[workload]
    assert published.ROUND_ROBIN_WALL_S[workload] / walls.runs_s[0] == pytest.approx(walls.speedup, abs=0.01)


@pytest.mark.parametrize("workload", published.END_TO_END_SPEEDUP)
def test_published_end_to_end_speedups_are_those_of_the_walls(workload: str) -> None:
    before_s = published.ROUND_ROBIN_WALL_S[workload] + published.ALWAYS_AGGREGATE_S[workload]
    after_s = published.PREDICTED_ILP[workload].runs_s[0] + published.GATED_AGGREGATE_S[workload]
    assert before_s / after_s == pytest.approx(published.END_TO_END_SPEEDUP[workload], abs=0.005)


@pytest.mark.parametrize("workload", published.END_TO_END_S)
def test_bars_called_published_are_what_was_published(workload: str) -> None:
    bars = published_bars(workload).values()
    shown = [(bar.total_s, bar.speedup) for bar in bars]
    before_s, after_s = published.END_TO_END_S[workload]
    assert shown == [(pytest.approx(before_s), None), (pytest.approx(after_s), published.END_TO_END_SPEEDUP[workload])]
    committed = [
        (float(row["total_s"]), float(row["speedup"]) if row["speedup"] else None)
        for row in csv.DictReader(FIGURE_6.read_text(encoding="utf-8").splitlines())
        if row["is_published"] == "True" and row["benchmark"] == TITLES[workload]
    ]
    assert committed == shown


def test_the_second_stages_tables_cover_every_benchmark() -> None:
    tables = (
        published.FITTED_ANSWERS, published.ALWAYS_AGGREGATE_S, published.GATED_AGGREGATE_S,
        published.ACCURACY_CHANGE_PP, published.END_TO_END_SPEEDUP,
    )  # fmt: skip
    for table in tables:
        assert set(table) == set(published.ROUND_ROBIN_WALL_S)
    for workload, answers in published.FITTED_ANSWERS.items():
        assert 0 < answers.distinct_frac < answers.unanimous_frac < 1 - answers.distinct_frac
        assert published.GATED_AGGREGATE_S[workload] < published.ALWAYS_AGGREGATE_S[workload]


def test_the_mean_over_all_calls_follows_from_the_buckets() -> None:
    assert pytest.approx(1646, abs=0.5) == published.TOKENS_PER_CALL


def test_published_tokens_by_agreement_are_in_order() -> None:
    assert list(published.BUCKET_TOKENS) == sorted(published.BUCKET_TOKENS)
    assert published.BUCKET_SPEARMAN < 0


def test_published_idle_share_is_that_of_the_workers() -> None:
    makespan_s = max(published.ROUND_ROBIN_WORKER_S)
    idle = 1 - sum(published.ROUND_ROBIN_WORKER_S) / (4 * makespan_s)
    assert idle == pytest.approx(published.ROUND_ROBIN_IDLE_FRAC, abs=0.01)

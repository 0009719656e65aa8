"""The published numbers, and how the report sets them beside the simulated ones."""

import math
import re

import pytest
from scipy.stats import t as student_t

from experiments.studies import published
from experiments.walls import _verdict, mean_interval


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


def test_the_wall_that_the_elasticity_is_fitted_to_is_mmlu_pros() -> None:
    assert published.GATED_AGGREGATE_S["mmlu_pro"] == published.FITTED_ELASTICITY_S


def test_published_tokens_by_agreement_are_in_order() -> None:
    assert list(published.BUCKET_TOKENS) == sorted(published.BUCKET_TOKENS)
    assert published.BUCKET_SPEARMAN < 0


def test_published_idle_share_is_that_of_the_workers() -> None:
    makespan_s = max(published.ROUND_ROBIN_WORKER_S)
    idle = 1 - sum(published.ROUND_ROBIN_WORKER_S) / (4 * makespan_s)
    assert idle == pytest.approx(published.ROUND_ROBIN_IDLE_FRAC, abs=0.01)


def test_intervals_by_hand() -> None:
    mean, half, predictive, spread = mean_interval([8.0, 10.0, 12.0])
    quantile = student_t.ppf(0.975, 2)
    assert (mean, spread) == (10.0, 2.0)
    assert half == pytest.approx(quantile * 2 / math.sqrt(3))
    assert predictive == pytest.approx(quantile * 2 * math.sqrt(4 / 3))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (90, 120, "every published wall is inside the range"),
        (100, 110, "every published wall is inside the range"),
        (105, 120, r"MISS: 1 of 2 published walls are outside the range, by up to \+5.0%"),
        (50, 88, r"MISS: 2 of 2 published walls are outside the range, by up to -20.0%"),
        (121, 130, r"MISS: 2 of 2 published walls are outside the range, by up to \+21.0%"),
    ],
)
def test_misses_are_reported_with_their_size(low: float, high: float, verdict: str) -> None:
    assert re.search(verdict, _verdict(low, high, [100.0, 110.0]))

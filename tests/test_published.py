"""The published numbers, and how the report sets them beside the simulated ones."""

import math
import re

import pytest
from scipy.stats import t as student_t

from experiments import published
from experiments.walls import _verdict, mean_interval


def test_the_table_is_the_papers() -> None:
    assert published.PREDICTED_ILP["mmlu_pro"].mean_s == pytest.approx(1616, abs=0.5)
    assert set(published.PREDICTED_ILP) == set(published.ROUND_ROBIN_WALL_S)
    assert max(published.ROUND_ROBIN_WORKER_S) == pytest.approx(published.ROUND_ROBIN_WALL_S["mmlu_pro"], rel=0.01)


@pytest.mark.parametrize("workload", published.PREDICTED_ILP)
def test_published_speedups_are_those_of_the_walls(workload: str) -> None:
    walls = published.PREDICTED_ILP[workload]
    assert published.ROUND_ROBIN_WALL_S[workload] / walls.runs_s[0] == pytest.approx(walls.speedup, abs=0.01)


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

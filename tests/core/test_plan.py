"""A plan, and the lengths that it expects."""

import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.plan import LengthPrediction, prediction_from_sample
from mosaic.planning.baselines import RoundRobin
from tests.factories import make_problem

PROBLEM = make_problem({"A": 3, "B": 2})
PLAN = RoundRobin().plan(PROBLEM)


def test_queue_keeps_the_total_order() -> None:
    plan = RoundRobin().plan(make_problem(dict.fromkeys("ABCDE", 1)))
    assert [session.expert for session in plan.worker_queue(0)] == ["A", "C", "E"]


def test_makespan_is_the_last_end() -> None:
    assert PLAN.predicted_makespan_s == 13.0
    assert replace(PLAN, sessions=(), predicted=()).predicted_makespan_s == 0.0


def test_moments_by_hand() -> None:
    prediction = prediction_from_sample([2, 4, 4, 4, 5, 5, 7, 9])
    assert prediction == LengthPrediction(mean=5.0, max=9.0, std=2.0)


@given(st.lists(st.integers(1, 32768), min_size=1, max_size=50))
def test_moments_are_those_of_the_sample(lengths: list[int]) -> None:
    prediction = prediction_from_sample(lengths)
    assert prediction.mean == pytest.approx(statistics.fmean(lengths))
    assert prediction.std == pytest.approx(statistics.pstdev(lengths), abs=1e-6)
    assert prediction.max == max(lengths)


def test_an_empty_sample_predicts_nothing() -> None:
    with pytest.raises(ValueError, match=r"length sample must be non-empty, got \[\]"):
        prediction_from_sample([])

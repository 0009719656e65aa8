"""Predicted lengths: moments of a sample."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.plan import LengthPrediction, prediction_from_sample


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": 0}, "length prediction: mean must be above 0, got 0"),
        ({"mean": "long"}, "length prediction: mean must be a number, got 'long'"),
        ({"max": float("nan")}, "length prediction: max must be finite, got nan"),
        ({"max": 99}, "length prediction: max must be at least the mean 100, got 99"),
        ({"std": -1}, "length prediction: std must be at least 0, got -1"),
    ],
)
def test_a_prediction_refuses_bad_moments(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LengthPrediction(**{"mean": 100, "max": 200, "std": 10, **change})  # type: ignore[arg-type]

"""What the study of plans draws, and how it takes a tail."""

import pytest

from experiments.studies.plans import draw_factor, quantile


def test_quantiles_are_values_that_enough_others_do_not_exceed() -> None:
    values = [float(value) for value in range(1, 51)]
    assert (quantile(values, 0.95), quantile(values, 0.5), quantile(values, 1.0)) == (48, 25, 50)
    assert quantile([3.0], 0.95) == 3.0


def test_factors_are_independent_and_within_the_error() -> None:
    drawn = {(name, draw): draw_factor(name, 2.0, draw) for name in "ABC" for draw in range(100)}
    assert all(0.5 < value < 2 for value in drawn.values())
    assert len(set(drawn.values())) == 300
    assert sum(value > 1 for value in drawn.values()) == pytest.approx(150, abs=40)
    assert draw_factor("A", 1.0, 5) == 1.0

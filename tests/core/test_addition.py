"""Sums that every Python computes alike."""

from statistics import fmean

import pytest

from mosaic.core.addition import add_in_order, weighted_mean
from mosaic.core.plan import prediction_from_sample
from tests.float_sums import GUARDED, guarded_sum

TENTHS = [0.1] * 10
"""Their exact sum rounds to 1, and so does the built-in one since Python 3.12."""


def test_numbers_are_added_one_after_the_other() -> None:
    assert add_in_order(TENTHS) == 0.9999999999999999
    assert add_in_order(iter(())) == 0.0


def test_products_of_a_weighted_mean_are_rounded_before_they_are_added() -> None:
    values, weights = [0.1, 0.7, 0.3], [0.3, 0.1, 0.7]
    assert weighted_mean(values, weights) == pytest.approx(fmean(values, weights))
    assert weighted_mean([1e308, 1.0], [1e-308, 1.0]) == pytest.approx(2.0)


def test_a_deviation_has_the_same_last_digit_on_every_python() -> None:
    lengths = [37 * number % 1009 for number in range(400)]
    assert prediction_from_sample(lengths).std == 290.1219646545223


def test_the_guard_refuses_floats_of_a_run_and_leaves_the_rest_alone() -> None:
    assert sum is guarded_sum
    assert sum(TENTHS) > 0.9
    assert sum([1, 2]) == 3
    code = compile("sum(values)", "a run", "eval")
    for prefix in GUARDED:
        assert eval(code, {"__name__": f"{prefix}module", "values": [1, 2]}) == 3
        with pytest.raises(AssertionError, match="add_in_order"):
            eval(code, {"__name__": f"{prefix}module", "values": TENTHS})

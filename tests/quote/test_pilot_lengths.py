"""Normal distributions behind censored values, and estimates that are drawn together."""

from math import log
from random import Random
from statistics import fmean, pstdev, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.quote.lengths import Censored, drawn_together, fit_normal


def normal(num: int, seed: int) -> list[float]:
    draw = Random(seed)
    return sorted(draw.gauss(5.0, 2.0) for _ in range(num))


@given(st.lists(st.floats(0, 12), min_size=2, max_size=50))
def test_values_that_are_all_known_have_their_own_mean_and_spread(values: list[float]) -> None:
    location, scale = fit_normal(Censored(sorted(values), 0, 0, 20.0))
    assert scale == pytest.approx(pstdev(values), abs=1e-4)
    assert location == pytest.approx(fmean(values), abs=1e-4)


def test_a_normal_distribution_is_found_behind_its_middle_third() -> None:
    values = normal(30_000, 1)
    location, scale = fit_normal(Censored(values[10_000:20_000], 10_000, 10_000, values[20_000]))
    assert location == pytest.approx(5.0, abs=0.05)
    assert scale == pytest.approx(2.0, rel=0.05)


def test_a_given_scale_is_kept() -> None:
    values = normal(100, 2)
    assert fit_normal(Censored(values[50:], 50, 0, 99.0), 3.0)[1] == 3.0


@pytest.mark.parametrize("low_frac", [0.0, 0.5])
def test_the_variance_and_bias_of_a_scale_are_what_samples_show(low_frac: float) -> None:
    slopes, num = [], 60
    for seed in range(600):
        values, low = normal(num, seed), int(low_frac * num)
        seen = Censored(values[low:], low, 0, 99.0)
        slopes.append(log(fit_normal(seen)[1] / 2.0))
    assert pvariance(slopes) == pytest.approx(seen.log_scale_variance, rel=0.3)
    assert fmean(slopes) == pytest.approx(seen.log_scale_bias, abs=0.02)


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(-2, 2), st.floats(0.01, 2)), min_size=1))
def test_estimates_move_towards_the_middle_of_their_kin_and_never_past_it(seen: dict[str, tuple[float, float]]) -> None:
    kin = {name: "x" if name < "d" else "y" for name in seen}
    drawn, middles = drawn_together({n: v for n, (v, _) in seen.items()}, {n: v for n, (_, v) in seen.items()}, kin)
    for name, (value, _) in seen.items():
        low, high = sorted((value, middles[kin[name]]))
        assert low - 1e-9 <= drawn[name] <= high + 1e-9


def test_estimates_that_differ_far_beyond_their_errors_stay() -> None:
    drawn, _ = drawn_together({"a": 0.0, "b": 10.0}, {"a": 0.01, "b": 0.01}, {"a": "", "b": ""})
    assert drawn == pytest.approx({"a": 0.0, "b": 10.0}, abs=0.01)

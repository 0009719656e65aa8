import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mosaic.pipelines.risk_control
from mosaic.pipelines.risk_control import (
    BETS,
    SettingTest,
    betting_p_values,
    fixed_sequence,
    learned_bet,
    smallest_promise_frac,
)

LOSSES = hnp.arrays(np.int8, st.integers(0, 40), elements=st.sampled_from([-1, 0, 1]))
ACCEPTED = st.floats(min_value=0, max_value=0.9)


def draw(mean: float, variance: float, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw losses of -1, 0 and 1."""
    second = variance + mean**2
    p_up, p_down = (second + mean) / 2, (second - mean) / 2
    assert min(p_up, p_down) >= 0
    uniform = np.random.default_rng(seed).random(shape)
    return np.where(uniform < p_up, 1, np.where(uniform < p_up + p_down, -1, 0)).astype(np.int8)


def p_value_step_by_step(losses: np.ndarray, accepted: float) -> float:
    """The definition, one question at a time."""
    stakes = np.array([share for share, _ in BETS]) / (1 - accepted)
    wealth = np.array([start for _, start in BETS])
    peak = 1.0
    for loss in losses:
        wealth *= 1 - stakes * (float(loss) - accepted)
        peak = max(peak, float(wealth.sum()))
    return 1 / peak


def test_by_hand() -> None:
    assert sum(wealth for _, wealth in BETS) == pytest.approx(1)
    # One loss of 0 at an accepted loss of 0.2; the mean stake is 0.05 x 0.03 + 0.19 x (0.1 + 0.25 + 0.5 + 0.75 + 0.95).
    gained = 1 + 0.486 * 0.2 / 0.8
    assert betting_p_values(np.array([0]), 0.2) == pytest.approx(1 / gained)
    assert betting_p_values(np.array([1]), 0.2) == 1
    # A later loss of 1 does not take back what was reached before it.
    assert betting_p_values(np.array([0, 1]), 0.2) == pytest.approx(1 / gained)
    assert betting_p_values(np.array([], dtype=int), 0.2) == 1


@given(losses=LOSSES, accepted=ACCEPTED)
def test_counting_is_the_wealth_process(losses: np.ndarray, accepted: float) -> None:
    assert betting_p_values(losses, accepted) == pytest.approx(p_value_step_by_step(losses, accepted), rel=1e-9)


def test_many_calibrations_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = draw(0.01, 0.2, (3, 4, 50), seed=1)
    each = [[float(betting_p_values(row, 0.05)) for row in rows] for rows in losses]
    assert betting_p_values(losses, 0.05) == pytest.approx(np.array(each))
    monkeypatch.setattr(mosaic.pipelines.risk_control, "_VALUES_PER_CHUNK", 130)
    assert betting_p_values(losses, 0.05) == pytest.approx(np.array(each))
    assert betting_p_values(np.zeros((0, 5)), 0.05).shape == (0,)


@given(losses=LOSSES, low=ACCEPTED, high=ACCEPTED)
def test_accepting_more_never_raises_the_p_value(losses: np.ndarray, low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    assert betting_p_values(losses, high) <= betting_p_values(losses, low) + 1e-12


@given(losses=LOSSES, accepted=ACCEPTED)
def test_another_question_never_raises_the_p_value(losses: np.ndarray, accepted: float) -> None:
    for loss in (-1, 0, 1):
        assert betting_p_values(np.append(losses, loss), accepted) <= betting_p_values(losses, accepted) + 1e-12


@pytest.mark.parametrize(("accepted", "variance"), [(0.005, 0.006), (0.01, 0.015), (0.02, 0.03), (0.05, 0.2)])
def test_a_mean_loss_at_the_accepted_one_is_rejected_at_most_at_the_risk(accepted: float, variance: float) -> None:
    num = 2000
    rejected = int((betting_p_values(draw(accepted, variance, (num, 1500), seed=7), accepted) <= 0.05).sum())
    # The 99% limit of a binomial with a share of 0.05: 123 of 2,000.
    assert rejected <= 123
    assert rejected > 0, "a test that never rejects would also pass"


def test_enough_questions_tell_any_margin() -> None:
    """44 losses and 36 gains in 1,000: 0.8 pp, where 1 is accepted. Large stakes alone would never see it."""
    losses = np.random.default_rng(2).permutation(np.repeat([1, -1, 0], [44 * 400, 36 * 400, 920 * 400]))
    assert betting_p_values(losses, 0.01) < 0.05
    assert betting_p_values(losses[:20_000], 0.01) > 0.05
    assert betting_p_values(losses, 0.008) > 0.05


def skipping(scores: np.ndarray, losses: np.ndarray) -> Callable[[float], np.ndarray]:
    return lambda threshold: np.where(scores >= threshold, losses, 0)


def test_choosing_stops_at_the_first_failure() -> None:
    # Shuffled: 600 are skipped at 1 without a loss, 200 more at 0.7 that lose all, 200 more at 0.4 that gain all.
    order = np.random.default_rng(0).permutation(1000)
    lost_at = skipping(
        np.repeat([1.0, 0.7, 0.4], [600, 200, 200])[order], np.repeat([0, 1, -1], [600, 200, 200])[order]
    )
    chosen, tests = fixed_sequence((0.9, 0.6, 0.3), lost_at, 0.05, 0.05)
    assert (chosen, [test.setting for test in tests]) == (0.9, [0.9, 0.6])
    passed, failed = tests
    assert passed.p_value == pytest.approx(p_value_step_by_step(np.zeros(1000), 0.05))
    assert (passed.mean_loss_frac, failed.mean_loss_frac) == (0.0, 0.2)
    assert failed.p_value > 0.05
    # Seen on its own, the lowest threshold would have been promised.
    assert betting_p_values(lost_at(0.3), 0.05) <= 0.05


def test_few_questions_refuse_and_all_settings_may_pass() -> None:
    few = fixed_sequence((1.0, 0.5), lambda _: np.zeros(50), 0.01, 0.05)
    assert few == (None, (SettingTest(1.0, 0.0, float(betting_p_values(np.zeros(50), 0.01))),))
    assert fixed_sequence((1.0, 0.5), lambda _: -np.ones(500), 0.0, 0.05)[0] == 0.5
    assert fixed_sequence((), lambda _: np.zeros(50), 0.01, 0.05) == (None, ())


@pytest.mark.parametrize("thresholds", [(1.0,), (1.0, 2 / 3), (1.0, 2 / 3, 1 / 3)])
def test_the_promise_of_several_thresholds_is_kept(thresholds: tuple[float, ...]) -> None:
    """The mean loss is above the accepted one from 2/3 on: choosing it, or lower, breaks the promise."""
    rng = np.random.default_rng(5)
    broken = 0
    for _ in range(400):
        scores = rng.choice([1.0, 2 / 3, 1 / 3], size=1000, p=[0.4, 0.4, 0.2])
        p_up = np.where(scores == 1.0, 0.0, 0.05)  # 0.4 * 0.05 = 0.02 at 2/3, more at 1/3
        losses = (rng.random(1000) < p_up).astype(int)
        chosen, _ = fixed_sequence(thresholds, skipping(scores, losses), 0.0199, 0.05)
        broken += chosen is not None and chosen < 1
    assert broken <= 31  # the 99% limit of a binomial of 400 with a share of 0.05


@settings(max_examples=30)
@given(losses=LOSSES, risk=st.floats(min_value=0.01, max_value=0.5))
def test_the_smallest_promise_is_where_the_test_turns(losses: np.ndarray, risk: float) -> None:
    promise = smallest_promise_frac(losses, risk)
    assert 0 <= promise <= 1
    if promise < 1 - 1e-6:
        assert betting_p_values(losses, promise) <= risk
    if promise > 1e-6:
        assert betting_p_values(losses, promise - 1e-6) > risk


@pytest.mark.parametrize("losses", [np.array([0.5]), np.array([2]), np.array([0, math.nan])])
def test_losses_are_of_three_values(losses: np.ndarray) -> None:
    with pytest.raises(ValueError, match="losses must be -1, 0 or 1"):
        betting_p_values(losses, 0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: betting_p_values(np.array(1), 0.01), "losses must be an array"),
        (lambda: betting_p_values(np.zeros(3), 1.0), "accepted_loss_frac must be below 1"),
        (lambda: betting_p_values(np.zeros(3), -0.01), "accepted_loss_frac must be at least 0"),
        (lambda: smallest_promise_frac(np.zeros(3), 0), "risk_frac must be above 0"),
        (lambda: fixed_sequence([1.0], lambda _: np.zeros(3), 0.01, 0), "risk_frac must be above 0"),
        (lambda: fixed_sequence([1.0], lambda _: np.zeros(3), 0.01, 1), "risk_frac must be below 1"),
        (lambda: fixed_sequence([1.0], lambda _: np.zeros(3), 1, 0.05), "accepted_loss_frac must be below 1"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_stake_that_was_learned_elsewhere_promises_more_often_and_is_broken_as_rarely() -> None:
    rng = np.random.default_rng(11)
    values, good, bad = [1, -1, 0], [0.012, 0.008, 0.98], [0.015, 0.005, 0.98]
    bets = learned_bet(rng.choice(values, p=good, size=1000), 4000, 0.05)
    promised = {
        (name, kind): int((betting_p_values(rng.choice(values, p=shares, size=(1000, 4000)), 0.01, of) <= 0.05).sum())
        for name, shares in (("good", good), ("bad", bad))
        for kind, of in (("mixture", BETS), ("learned", bets))
    }
    assert promised["bad", "learned"] <= 66, "the 99% limit of the binomial at a risk of 5%"
    assert promised["good", "learned"] > 1.2 * promised["good", "mixture"]


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=50), st.integers(1, 10_000))
def test_a_stake_never_takes_all(losses: list[int], num_certify: int) -> None:
    ((share, wealth),) = learned_bet(np.array(losses), num_certify, 0.05)
    assert 0 < share < 1
    assert wealth == 1

"""Certifies settings with a promised loss: Learn-then-Test with a betting bound.

NOTE: the idea. Skipping the aggregator on a question loses L = aggregator right - gate's answer right. L is -1, 0 or 1,
and 0 if the gate does not skip. "The mean loss is above what the user accepts" is the null hypothesis of a setting. Bet
against it with a wealth of 1: stake a share of the wealth, question by question. The share is such that each factor 1 -
lam (L - accepted) has a mean below 1 if the hypothesis is true. Then the wealth ever reaches 1 / risk with probability
at most risk (Ville); when it does, the setting is promised. Most losses are 0, and each of these pays a little. So the
bet profits from the small variance, which a bound on the range of L would ignore. Settings are tested from the most
conservative one on, each at the full risk, up to the first that fails.

References
----------
Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test", arXiv 2110.01052 (fixed-sequence testing).
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024, arXiv 2010.09686.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mosaic.core.checks import require, require_number

Floats: TypeAlias = NDArray[np.float64]

Bets: TypeAlias = tuple[tuple[float, float], ...]
"""Constant stakes, as shares of the largest that cannot go bankrupt, 1 / (1 - accepted); each with its wealth."""

BETS: Bets = ((0.03, 0.05), (0.1, 0.19), (0.25, 0.19), (0.5, 0.19), (0.75, 0.19), (0.95, 0.19))
"""Stakes without prior knowledge of the losses.

A mixture of constant bets is itself a bet that uses only past losses: it moves towards the stakes that paid. The stakes
were compared with the best stake known in advance. This was done for means of -0.003 to 0.005, variances of 0.005 to
0.05 and accepted losses of 0.005 to 0.05. Half of the calibrations are promised with 1.4 times its questions (at worst
2.0 times). 80% of them are promised with 1.4 times too (at worst 2.2 times); those worst cases need few questions. A
stake gains only if it is below twice the margin, accepted loss minus mean, over the variance. The smallest stake is for
margins that only tens of thousands of questions can show. They would never be promised without it, and it costs the
other stakes 2% more questions. The shares do not depend on the accepted loss. So the p value is monotone in the
accepted loss, as its inversion needs.
"""

LARGEST_SHARE = 0.95
"""Largest stake: at 1, a single loss takes all."""

_VALUES_PER_CHUNK = 4_000_000
"""Losses handled at a time: bounds memory to some tens of megabytes."""

_PROMISE_STEPS = 24
"""Bisections of 0 to 1: to 6e-8."""


Setting = TypeVar("Setting")
"""What is tested: a threshold, or budgets with a threshold."""
Losses: TypeAlias = NDArray[np.int8]


class SettingTest(NamedTuple, Generic[Setting]):
    """The test of a setting; the mean is over all questions that certify."""

    setting: Setting
    mean_loss_frac: float
    p_value: float


def learned_bet(losses: NDArray[Any], num_certify: int, risk_frac: float) -> Bets:
    """Choose one stake from losses of other questions, the best one for a setting that can barely be promised.

    A stake s earns about s x margin - s^2 x square / 2 per question, where square is the mean square of the losses. All
    questions that certify must together earn log(1 / risk). At the smallest margin that allows it, s = sqrt(2 log(1 /
    risk) / (num_certify x square)). So the stake depends on the variation of the losses, which few questions show. It
    does not depend on their mean, which needs many questions.

    Parameters
    ----------
    losses
        Of questions that are not used to certify, -1, 0 or 1, shape (num_questions,).
    num_certify
        Number of questions that certify.
    risk_frac
        Strictly between 0 and 1.

    Examples
    --------
    >>> [(round(share, 3), wealth) for share, wealth in learned_bet(np.array([1, -1, *[0] * 97]), 7_000, 0.05)]
    [(0.169, 1.0)]
    """
    require_number(risk_frac, "risk_frac", above=0, below=1)
    square = (float(np.abs(losses).sum()) + 1) / (len(losses) + 1)
    return ((min(LARGEST_SHARE, math.sqrt(2 * math.log(1 / risk_frac) / (num_certify * square))), 1.0),)


def fixed_sequence(
    settings: Iterable[Setting],
    losses: Callable[[Setting], Losses],
    accepted_loss_frac: float,
    risk_frac: float,
    bets: Callable[[Setting], Bets] = lambda setting: BETS,
) -> tuple[Setting | None, tuple[SettingTest[Setting], ...]]:
    """Test settings one after the other up to the first that fails; returns the last that passed, and all tests.

    The questions must be independent draws from the population of the promise, in an order that does not depend on
    their answers. Then with probability of at least 1 - risk, the setting's mean loss in this population is at most the
    accepted one. Gates, budgets and early exits are all certified here.

    Parameters
    ----------
    settings
        From the safest to the fastest, fixed before the questions that certify are used.
    losses
        Returns the loss of each of these questions under a setting, -1, 0 or 1, shape (num_questions,).
    accepted_loss_frac
        The mean loss to be promised, 0 to 1 (excluded).
    risk_frac
        Largest probability that the promise is broken; strictly between 0 and 1.
    bets
        Returns the stakes of a setting, fixed as early as the settings.

    Raises
    ------
    ValueError
        If a share is outside its limits, or a loss is not -1, 0 or 1.
    """
    require_number(risk_frac, "risk_frac", above=0, below=1)
    tests: list[SettingTest[Setting]] = []
    chosen: Setting | None = None
    for setting in settings:
        lost = losses(setting)
        p_value = float(betting_p_values(lost, accepted_loss_frac, bets(setting)))
        tests.append(SettingTest(setting, float(np.mean(lost)), p_value))
        if tests[-1].p_value > risk_frac:
            break
        chosen = setting
    return chosen, tuple(tests)


def betting_p_values(losses: NDArray[Any], accepted_loss_frac: float, bets: Bets = BETS) -> Floats:
    """Test "the mean loss is above the accepted one": p = min over time of 1 / wealth.

    Parameters
    ----------
    losses
        -1, 0 or 1 each, shape (..., num_questions); the questions of a calibration in an order fixed in advance.
    accepted_loss_frac
        0 to 1 (excluded).
    bets
        Chosen without these losses.

    Returns
    -------
    numpy.ndarray
        p values, shape (...); 1 without questions.

    Raises
    ------
    ValueError
        If a loss is not -1, 0 or 1.

    Examples
    --------
    >>> betting_p_values(np.zeros((1, 500)), 0.01).round(4)
    array([0.0292])
    """
    require_number(accepted_loss_frac, "accepted_loss_frac", at_least=0, below=1)
    values = np.asarray(losses)
    require(values.ndim >= 1, "losses", "an array of shape (..., num_questions)", losses)
    num_questions = values.shape[-1]
    rows = values.reshape(math.prod(values.shape[:-1]), num_questions)
    step = max(1, _VALUES_PER_CHUNK // max(1, num_questions))
    peaks = [_log_wealth_peaks(rows[at : at + step], accepted_loss_frac, bets) for at in range(0, len(rows), step)]
    log_wealth = np.concatenate(peaks) if peaks else np.zeros(0)
    p_values: Floats = np.exp(-np.maximum(log_wealth, 0.0)).reshape(values.shape[:-1])
    return p_values


def _log_wealth_peaks(rows: NDArray[Any], accepted: float, bets: Bets) -> Floats:
    """Find the largest log wealth over time of each calibration, shape (num_rows, num_questions) -> (num_rows,).

    Losses of 0 and -1 raise the wealth and losses of 1 lower it. So it peaks just before a 1 or at the end. The wealth
    of a constant stake depends only on the number of earlier losses of each value.
    """
    ups, downs = rows == 1, rows == -1
    if not np.all(ups | downs | (rows == 0)):
        raise ValueError("losses must be -1, 0 or 1")
    num_ups, num_downs = (np.count_nonzero(side, axis=1) for side in (ups, downs))
    row_of, at = np.nonzero(ups)
    ups_before = np.arange(len(row_of)) - (np.cumsum(num_ups) - num_ups)[row_of]
    downs_before = np.cumsum(downs, axis=1, dtype=np.int32)[row_of, at]
    before_ups = _log_wealth(ups_before, downs_before, at - ups_before - downs_before, accepted, bets)
    peaks = _log_wealth(num_ups, num_downs, rows.shape[1] - num_ups - num_downs, accepted, bets)
    np.maximum.at(peaks, row_of, before_ups)
    return peaks


def _log_wealth(ups: NDArray[Any], downs: NDArray[Any], zeros: NDArray[Any], accepted: float, bets: Bets) -> Floats:
    """Compute the log of a mixture's wealth after the given numbers of losses of 1, -1 and 0, shape (n,)."""
    shares, wealths = np.array(bets).T[:, :, None]
    of_stakes = (
        ups * np.log1p(-shares)
        + downs * np.log1p(shares * (1 + accepted) / (1 - accepted))
        + zeros * np.log1p(shares * accepted / (1 - accepted))
    )
    mixed: Floats = np.logaddexp.reduce(of_stakes + np.log(wealths), axis=0)
    return mixed


def smallest_promise_frac(losses: NDArray[Any], risk_frac: float, bets: Bets = BETS) -> float:
    """Find the smallest accepted loss at which a threshold with these losses alone would have been promised.

    It is an upper confidence bound of the mean loss at level 1 - risk, by inverting the test; never below 0.

    Parameters
    ----------
    losses
        -1, 0 or 1 each, shape (num_questions,).
    risk_frac
        Strictly between 0 and 1.
    bets
        As in ``betting_p_values``.
    """
    require_number(risk_frac, "risk_frac", above=0, below=1)
    if betting_p_values(losses, 0.0, bets) <= risk_frac:
        return 0.0
    low, high = 0.0, 1.0  # a mean loss of at most 1 needs no test
    for _ in range(_PROMISE_STEPS):
        middle = (low + high) / 2
        if betting_p_values(losses, middle, bets) <= risk_frac:
            high = middle
        else:
            low = middle
    return high

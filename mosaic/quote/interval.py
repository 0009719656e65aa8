"""From simulated draws to P50 and P90: a spread by bootstrap, calibrated on pilots whose truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt
from statistics import fmean, median

from mosaic.core.checks import require, require_number


@dataclass(frozen=True, slots=True)
class Calibration:
    """What pilots with known truth showed of the bootstrap.

    A score is (log truth - log central) / spread. Its median corrects a bias, its upper quantile is how many spreads
    P90 lies above the centre.
    """

    median_score: float
    p90_score: float
    source: str

    def __post_init__(self) -> None:
        require_number(self.median_score, "calibration: median_score")
        require_number(self.p90_score, "calibration: p90_score")
        rule = f"at least median_score={self.median_score}"
        require(self.p90_score >= self.median_score, "calibration: p90_score", rule, self.p90_score)


@dataclass(frozen=True, slots=True)
class Interval:
    """Seconds."""

    p50_s: float
    p90_s: float


def conformal_quantile(scores: Sequence[float], share: float) -> float:
    """Give the score that a new one stays below with this probability, if it is exchangeable with these.

    The ceil((n + 1) share)-th smallest, or the largest where that is more than there are.

    References
    ----------
    Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005: split conformal prediction.

    Examples
    --------
    >>> conformal_quantile([3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 0.9)
    9.0
    """
    require(len(scores) > 0, "conformal quantile: scores", "at least one", 0)
    place = min(len(scores), ceil((len(scores) + 1) * share - 1e-9))
    return sorted(scores)[place - 1]


def calibrate(scores: Sequence[float], source: str, share: float = 0.9) -> Calibration:
    """Read a calibration off the scores of pilots whose truth is known."""
    middle = median(scores)
    return Calibration(middle, max(middle, conformal_quantile(scores, share)), source)


def spread_of(draws_s: Sequence[float]) -> float:
    """Give the standard deviation of the logarithms of draws."""
    require(len(draws_s) >= 2, "spread: draws", "at least two", len(draws_s))
    logs = [log(value) for value in draws_s]
    middle = fmean(logs)
    return sqrt(sum((value - middle) ** 2 for value in logs) / (len(logs) - 1))


def widened(spread: float) -> float:
    """Add what a bootstrap cannot see: a pilot that met no long call by luck would think itself sure."""
    return sqrt(spread**2 + UNSEEN**2)


def score_of(truth_s: float, central_s: float, spread: float) -> float:
    """Say by how many spreads a truth lies above what was foretold."""
    return (log(truth_s) - log(central_s)) / spread


def interval(central_s: float, spread: float, calibration: Calibration, hardware_error: float = 0.0) -> Interval:
    """Put P50 and P90 together.

    Parameters
    ----------
    central_s
        What the pilot's own lengths give.
    spread
        Of the logarithm of the time, by bootstrap.
    calibration
        Of the bootstrap.
    hardware_error
        Standard deviation of the logarithm of real over simulated seconds, where it was measured; it adds to the
        spread in squares.
    """
    unit = widened(spread)
    middle = log(central_s) + calibration.median_score * unit
    above = (calibration.p90_score - calibration.median_score) * unit
    return Interval(exp(middle), exp(middle + sqrt(above**2 + (NORMAL_P90 * hardware_error) ** 2)))


UNSEEN = 0.1
"""Spread of the logarithm that is added, in squares, to every bootstrap's."""
NORMAL_P90 = 1.2816
"""Of the standard normal distribution."""
CALIBRATION = Calibration(-0.084, 1.032, "62 pilots of six workloads, results/quote/report.md")
"""Of `experiments/quote_study.py`."""

"""From simulated draws to P50 and P90: a spread by bootstrap, calibrated on pilots whose truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, log, sqrt
from statistics import fmean
from typing import NamedTuple

from mosaic.core.checks import require, require_number


class Known(NamedTuple):
    """A pilot whose truth is known."""

    truth_s: float
    central_s: float
    spread: float

    @property
    def error(self) -> float:
        """Logarithm of the truth over what was predicted."""
        return log(self.truth_s / self.central_s)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What pilots with known truth showed of the bootstrap.

    NOTE: a plan is chosen as the shortest of many by the same forecast that says how long it takes, which is too short
    then; and the wider a pilot's spread, the more a forecast hangs on tails, which come out too long. The logarithm of
    the truth over the forecast is therefore shifted by a line in the spread.
    """

    shift: float
    """Of the logarithm, at spread 0."""
    shift_per_spread: float
    spreads: tuple[float, float]
    """Narrowest and widest of the pilots: beyond them the shift is that of the nearest."""
    p90_score: float
    """How many widened spreads P90 lies above P50."""
    source: str

    def __post_init__(self) -> None:
        require_number(self.shift, "calibration: shift")
        require_number(self.shift_per_spread, "calibration: shift_per_spread")
        require_number(self.p90_score, "calibration: p90_score")
        require(self.p90_score >= 0, "calibration: p90_score", "at least 0", self.p90_score)

    def shift_at(self, spread: float) -> float:
        """Give the shift of a pilot with this spread."""
        narrowest, widest = self.spreads
        return self.shift + self.shift_per_spread * min(max(spread, narrowest), widest)


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


def calibrate(pilots: Sequence[Known], source: str, share: float = 0.9) -> Calibration:
    """Fit the line by least squares, each pilot weighed by its widened spread, and read P90's score off what is left.

    Raises
    ------
    ValueError
        If there is no pilot.
    """
    require(len(pilots) > 0, "calibrate: pilots", "at least one", 0)
    weights = [widened(pilot.spread) ** -2 for pilot in pilots]
    spreads, errors = [pilot.spread for pilot in pilots], [pilot.error for pilot in pilots]
    spread, error = fmean(spreads, weights), fmean(errors, weights)
    apart = fmean([(one - spread) ** 2 for one in spreads], weights)
    together = fmean([(x - spread) * (y - error) for x, y in zip(spreads, errors, strict=True)], weights)
    slope = together / apart if apart > 1e-9 else 0.0
    line = Calibration(error - slope * spread, slope, (min(spreads), max(spreads)), 0.0, source)
    scores = [(pilot.error - line.shift_at(pilot.spread)) / widened(pilot.spread) for pilot in pilots]
    return replace(line, p90_score=max(0.0, conformal_quantile(scores, share)))


def spread_of(draws_s: Sequence[float]) -> float:
    """Give the standard deviation of the logarithms of draws."""
    require(len(draws_s) >= 2, "spread: draws", "at least two", len(draws_s))
    logs = [log(value) for value in draws_s]
    middle = fmean(logs)
    return sqrt(sum((value - middle) ** 2 for value in logs) / (len(logs) - 1))


def widened(spread: float) -> float:
    """Add what a bootstrap cannot see: a pilot that met no long call by luck would think itself sure."""
    return sqrt(spread**2 + UNSEEN**2)


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
    middle = log(central_s) + calibration.shift_at(spread)
    above = calibration.p90_score * widened(spread)
    return Interval(exp(middle), exp(middle + sqrt(above**2 + (NORMAL_P90 * hardware_error) ** 2)))


UNSEEN = 0.1
"""Spread of the logarithm that is added, in squares, to every bootstrap's."""
NORMAL_P90 = 1.2816
"""Of the standard normal distribution."""
CALIBRATION = Calibration(0.059, -0.578, (0.012, 0.364), 1.089, "88 pilots of six workloads, results/quote/report.md")
"""Of `experiments/quote_study.py`."""

"""From simulated draws to P90: a spread by bootstrap, calibrated on pilots whose truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt
from statistics import fmean
from typing import NamedTuple

from mosaic.core.addition import add_in_order
from mosaic.core.checks import require, require_number

UNSEEN = 0.2
"""Spread of the logarithm that is added, in squares, to every bootstrap's."""
NORMAL_P90 = 1.2816
"""Of the standard normal distribution."""


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
    """How far above P50 nine of ten pilots with known truth ended."""

    p90_score: float
    """In widened spreads."""
    source: str

    def __post_init__(self) -> None:
        require_number(self.p90_score, "calibration: p90_score", at_least=0)


CALIBRATION = Calibration(0.969, "260 simulated pilots of five workloads, results/quote/quotes.md")
"""By `experiments/study.py quotes`; UNSEEN was chosen on its seeds 0 to 15."""


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
    """Read the score of P90 off pilots.

    NOTE: P50 stays what the pilot's own lengths give. Workloads differ in the sign of its bias, so that a shift learned
    on others makes it no better for a workload that none of them is.

    Raises
    ------
    ValueError
        If there is no pilot.
    """
    scores = [pilot.error / widened(pilot.spread) for pilot in pilots]
    return Calibration(max(0.0, conformal_quantile(scores, share)), source)


def spread_of(draws_s: Sequence[float]) -> float:
    """Give the standard deviation of the logarithms of draws."""
    require(len(draws_s) >= 2, "spread: draws", "at least two", len(draws_s))
    logs = [log(value) for value in draws_s]
    middle = fmean(logs)
    return sqrt(add_in_order((value - middle) ** 2 for value in logs) / (len(logs) - 1))


def widened(spread: float) -> float:
    """Add what a bootstrap cannot see: a pilot that met no long call by luck would think itself sure."""
    return sqrt(spread**2 + UNSEEN**2)


def p90_of(p50_s: float, spread: float, calibration: Calibration, hardware_error: float = 0.0) -> float:
    """Say when nine of ten batches have ended, in seconds.

    Parameters
    ----------
    p50_s
        What the pilot's own lengths give.
    spread
        Of the logarithm of the time, by bootstrap.
    calibration
        Of the bootstrap.
    hardware_error
        Standard deviation of the logarithm of real over simulated seconds, where it was measured; it adds to the
        spread in squares.
    """
    above = calibration.p90_score * widened(spread)
    return p50_s * exp(sqrt(above**2 + (NORMAL_P90 * hardware_error) ** 2))

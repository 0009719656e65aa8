"""Computes a mean over seeds with its 95% interval by Student's t, the same interval for all studies."""

from collections.abc import Sequence
from math import exp, inf, log, sqrt
from typing import NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order

Interval: TypeAlias = tuple[float, float] | tuple[None, None]

MIN_SHOWN = 3
"""Fewest values for which an interval is shown: t of one degree of freedom spans 12.7 standard errors."""


class Estimate(NamedTuple):
    """A mean with its 95% interval, None for a single value.

    Examples
    --------
    >>> f"{Estimate(0.5, 0.42, 0.58, 10):.1%} of {Estimate(1234.5):,.0f} s"
    '50.0% [42.0%, 58.0%] of 1,234 s'
    """

    mean: float
    low: float | None = None
    high: float | None = None
    num: int = 1

    def __format__(self, form: str) -> str:
        """Write the mean, and its interval if it is shown, both in this format."""
        ends = self.shown()
        return f"{self.mean:{form}}" + ("" if ends is None else f" [{ends[0]:{form}}, {ends[1]:{form}}]")

    def shown(self, least: float = -inf, most: float = inf) -> tuple[float, float] | None:
        """Cut the interval to the possible range; None if there are too few values to show one."""
        if self.low is None or self.high is None or self.num < MIN_SHOWN:
            return None
        return max(least, self.low), min(most, self.high)


def t_interval(values: Sequence[float], num_future: int | None = None) -> Interval:
    """95% interval of a mean by Student's t; None for fewer than two values.

    With ``num_future`` it is that of the mean of so many further values instead.
    """
    n = len(values)
    if n < 2:
        return None, None
    from scipy.special import stdtrit

    center = add_in_order(values) / n
    variance = add_in_order((value - center) ** 2 for value in values) / (n - 1)
    half = float(stdtrit(n - 1, 0.975)) * sqrt(variance * (1 / n + (1 / num_future if num_future else 0.0)))
    return center - half, center + half


def estimate(values: Sequence[float]) -> Estimate:
    """Compute mean and interval."""
    low, high = t_interval(values)
    return Estimate(add_in_order(values) / len(values), low, high, len(values))


def geometric(ratios: Sequence[float]) -> Estimate:
    """Compute the geometric mean of ratios, with the interval of the mean logarithm."""
    mean, low, high, num = estimate([log(ratio) for ratio in ratios])
    return Estimate(exp(mean), None if low is None else exp(low), None if high is None else exp(high), num)

"""A normal distribution behind values of which some are known only to lie below or above a bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import NormalDist, fmean

from mosaic.core.addition import add_in_order, weighted_mean

_NORMAL = NormalDist()
_STEPS, _STILL = 100, 1e-6
"""Of the fit, and by how little its last one moves where it ends sooner."""
LOG_SCALE_VARIANCE, LOG_SCALE_BIAS = 0.6, -1.2
"""Of the logarithm of a fitted scale, times the number of known values: by simulated normal samples of 20 to 400, of
which the upper half is known or all."""


@dataclass(frozen=True, slots=True)
class Censored:
    """Values, sorted, and how many more lie below the first of them and above a bound."""

    known: Sequence[float]
    num_below: int
    num_above: int
    bound: float
    middle: float = field(init=False)
    squares: float = field(init=False)
    """Of the known values around their middle, summed."""

    def __post_init__(self) -> None:
        middle = fmean(self.known) if self.known else self.bound
        object.__setattr__(self, "middle", middle)
        object.__setattr__(self, "squares", add_in_order((value - middle) ** 2 for value in self.known))

    @property
    def log_scale_variance(self) -> float:
        """Of the logarithm of a fitted scale."""
        return LOG_SCALE_VARIANCE / len(self.known)

    @property
    def log_scale_bias(self) -> float:
        """The same: what is expected of it, less the truth."""
        return LOG_SCALE_BIAS / len(self.known)


def fit_normal(values: Censored, scale: float | None = None) -> tuple[float, float]:
    """Find the location and the scale of greatest likelihood; a given scale is kept.

    Values that are all the same have scale 0.

    References
    ----------
    Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977: values beyond a bound
    are replaced by what is expected of them, until nothing moves.

    Examples
    --------
    >>> fit_normal(Censored([1.0, 2.0, 3.0], 0, 0, 9.0))
    (2.0, 0.816496580927726)
    """
    num = len(values.known)
    if scale is None and values.squares <= 1e-9 * num:
        return values.known[0], 0.0
    below, above = values.known[0], values.bound
    location, spread = values.middle, scale or sqrt(values.squares / num)
    for _ in range(_STEPS):
        before = spread
        low = -spread * _beyond((location - below) / spread)
        high = spread * _beyond((above - location) / spread)
        shift = (num * (values.middle - location) + values.num_below * low + values.num_above * high) / _count(values)
        if scale is None:
            # NOTE: around a mean m, values below b have the second moment s^2 + (b - m) E[value - m], those above too.
            second = values.squares + num * (values.middle - location) ** 2
            second += values.num_below * (spread**2 + (below - location) * low)
            second += values.num_above * (spread**2 + (above - location) * high)
            spread = sqrt(second / _count(values) - shift**2)
        location += shift
        if abs(shift) + abs(spread - before) < _STILL:
            break
    return location, spread


def _count(values: Censored) -> int:
    return len(values.known) + values.num_below + values.num_above


def _beyond(z: float) -> float:
    """Give the mean of a standard normal variable above z."""
    share = _NORMAL.cdf(-z)
    return _NORMAL.pdf(z) / share if share > 0 else z


def drawn_together(
    values: Mapping[str, float], variances: Mapping[str, float], kin: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Draw estimates to the middle of their kin, by as much as their variances explain how far they lie apart.

    Parameters
    ----------
    values, variances
        Estimates, and how uncertain each is.
    kin
        Which belong together. How far kin differ is estimated from all of them.

    Returns
    -------
    values, middles
        Estimates by name, and the middle by kin.

    References
    ----------
    DerSimonian, Laird, Meta-analysis in clinical trials, 1986: the variance between estimates beyond their own.
    Efron, Morris, Data analysis using Stein's estimator, 1975.

    Examples
    --------
    >>> drawn_together({"a": 1.0, "b": 3.0, "c": 9.0}, {"a": 4.0, "b": 4.0, "c": 4.0}, {"a": "x", "b": "x", "c": "y"})
    ({'a': 2.0, 'b': 2.0, 'c': 9.0}, {'x': 2.0, 'y': 9.0})
    """
    groups: dict[str, list[str]] = {}
    for name in values:
        groups.setdefault(kin[name], []).append(name)
    surplus = room = 0.0
    for group in groups.values():
        weights = [1 / variances[name] for name in group]
        middle = weighted_mean([values[name] for name in group], weights)
        surplus += add_in_order((values[name] - middle) ** 2 / variances[name] for name in group) - (len(group) - 1)
        room += add_in_order(weights) - add_in_order(weight**2 for weight in weights) / add_in_order(weights)
    between = max(0.0, surplus / room) if len(values) > len(groups) else 0.0
    drawn, middles = {}, {}
    for its_kin, group in groups.items():
        middles[its_kin] = weighted_mean(
            [values[name] for name in group], [1 / (variances[name] + between) for name in group]
        )
        for name in group:
            share = between / (between + variances[name])
            drawn[name] = share * values[name] + (1 - share) * middles[its_kin]
    return drawn, middles

"""Fits the distribution of lengths to samples of calls, since a batch has longer calls than its pilot.

The lower half of a sample is kept; its upper half is smoothed by a normal distribution of logarithms. Some values of
that distribution are known only to lie below or above a bound.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, lgamma, log, sqrt
from statistics import NormalDist, fmean

from mosaic.core.addition import add_in_order, weighted_mean

_NORMAL = NormalDist()
_STEPS, _STILL = 100, 1e-6
"""Most steps of the fit, and the change of a step below which it ends."""
LOG_SCALE_VARIANCE, LOG_SCALE_BIAS = 0.6, -1.2
"""Variance and bias of the logarithm of a fitted scale, times the number of known values.

From simulated normal samples of 20 to 400 values, of which the upper half or all are known.
"""


@dataclass(frozen=True)
class Censored:
    """Sorted values, and the numbers of values below the first of them and above a bound."""

    known: Sequence[float]
    num_below: int
    num_above: int
    bound: float

    @cached_property
    def middle(self) -> float:
        """Mean of the known values."""
        return fmean(self.known) if self.known else self.bound

    @cached_property
    def squares(self) -> float:
        """Sum of squared deviations of the known values from their mean."""
        return add_in_order((value - self.middle) ** 2 for value in self.known)

    @property
    def log_scale_variance(self) -> float:
        """Variance of the logarithm of a fitted scale."""
        return LOG_SCALE_VARIANCE / len(self.known)

    @property
    def log_scale_bias(self) -> float:
        """Bias of the logarithm of a fitted scale: its expectation minus the truth."""
        return LOG_SCALE_BIAS / len(self.known)


def fit_normal(values: Censored, scale: float | None = None) -> tuple[float, float]:
    """Find the location and the scale of greatest likelihood; a given scale is kept.

    Equal values have scale 0.

    References
    ----------
    Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977: values beyond a bound
    are replaced by their expectation, until the fit no longer changes.

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
        low = -spread * _mean_above((location - below) / spread)
        high = spread * _mean_above((above - location) / spread)
        shift = (num * (values.middle - location) + values.num_below * low + values.num_above * high) / _count(values)
        if scale is None:
            # NOTE: around a mean m, values below b have the second moment s^2 + (b - m) E[value - m]; those above
            # likewise.
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


def _mean_above(z: float) -> float:
    """Return the mean of a standard normal variable above z."""
    share = _NORMAL.cdf(-z)
    return _NORMAL.pdf(z) / share if share > 0 else z


def drawn_together(
    values: Mapping[str, float], variances: Mapping[str, float], kin: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Shrink estimates to the mean of their group, by as much as their variances explain their differences.

    Parameters
    ----------
    values, variances
        Estimates, and their variances.
    kin
        Group of each estimate. The spread within groups is estimated from all of them.

    Returns
    -------
    values, middles
        Estimates by name, and the mean by group.

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


UPPER = 0.5
"""From this quantile on a sample is smoothed."""
MIN_SAMPLE = 8
"""A smaller sample has no tail of its own: it gets that of its group, or of all others."""
SAME = 2.5
"""Standard errors by which the slope of an upper half may differ from that of its sample."""
CHANCE = 0.001
"""If the tail gives so many calls at the limit a smaller probability, they were in a loop: their share is kept."""
AT_LIMIT = 0.98
"""A call that wrote this share of its limit counts as cut off: its full length is not known."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Output tokens by quantile.

    A batch has several times the calls of its pilot. So its longest calls are longer than the pilot's, and they decide
    when a session ends. The upper half is a lognormal tail. The sample itself is not used there, since its mean depends
    on its longest calls.
    """

    sample: tuple[int, ...]
    """Sorted, without calls that were cut off."""
    cut_frac: float
    limit: int
    location: float = 0.0
    scale: float = 0.0
    """Of the logarithms' normal distribution; 0: no smoothing."""
    over_frac: float = 0.0
    """Share of that distribution beyond the limit."""

    def at(self, u: float) -> int:
        """Return a quantile."""
        free = 1.0 - self.cut_frac
        if u >= free or not self.sample:
            return self.limit
        u /= free
        if u < UPPER or self.scale <= 0:
            return self.sample[min(len(self.sample) - 1, int(u * len(self.sample)))]
        place = min(max(u * (1.0 - self.over_frac), 1e-9), 1 - 1e-9)
        smooth = exp(self.location + self.scale * _NORMAL.inv_cdf(place))
        return max(self.sample[int(UPPER * len(self.sample))], min(self.limit, round(smooth)))


def fit_lengths(samples: Mapping[str, tuple[Sequence[int], int]], kin: Mapping[str, str]) -> dict[str, Lengths]:
    """Fit distributions to samples of calls' lengths, each with the most tokens that a call may write.

    A tail is fitted to a sample by likelihood, with calls that were cut off as longer than the limit. It is fitted to
    the whole sample, or to its upper half if that has a slope of its own. Models in a loop are cut off more often than
    a tail explains: their calls are counted, and left out of the fit. A sample determines the slope least well, and a
    batch's longest calls depend on it. So slopes of a group are shrunk to each other by as much as chance explains
    their differences.

    Parameters
    ----------
    samples
        Lengths and the limit, by name.
    kin
        By name: the group of samples with similar tails.

    Examples
    --------
    >>> fit_lengths({"A": ([5, 5, 5, 5], 100)}, {"A": "family"})["A"].at(0.99)
    5
    """
    tails = {name: _tail(sample, limit) for name, (sample, limit) in samples.items()}
    slopes = {name: tail.log_slope for name, tail in tails.items() if tail.log_slope is not None}
    if not slopes:
        return {name: tail.smoothed(None) for name, tail in tails.items()}
    drawn, middles = drawn_together(slopes, {name: tails[name].values.log_scale_variance for name in slopes}, kin)
    middle = fmean(middles.values())
    few = {name: middles.get(kin[name], middle) for name, tail in tails.items() if len(tail.sample) < MIN_SAMPLE}
    return {name: tail.smoothed((drawn | few).get(name)) for name, tail in tails.items()}


@dataclass(frozen=True, slots=True)
class _Tail:
    """A sorted sample, and the number of calls that were cut off at the limit."""

    sample: tuple[int, ...]
    num_cut: int
    limit: int
    values: Censored
    """Logarithms to which the tail is fitted."""
    log_slope: float | None = None
    """Logarithm of the tail's scale; None: the sample is too small, or all values are equal."""
    has_loops: bool = False
    """More calls were cut off than the tail explains, so cut calls do not count for the tail."""

    def smoothed(self, log_scale: float | None) -> Lengths:
        """Return the lengths with a tail of this slope; None: no smoothing."""
        counted_frac = self.num_cut / (self.num_cut + len(self.sample))
        if log_scale is None or not self.sample:
            return Lengths(self.sample, counted_frac, self.limit)
        location, scale = fit_normal(self.values, exp(log_scale))
        over_frac = _share_above(self.limit, location, scale)
        cut_frac = counted_frac if self.has_loops else over_frac
        return Lengths(self.sample, cut_frac, self.limit, location, scale, over_frac)


def _tail(sample: Sequence[int], limit: int) -> _Tail:
    tokens = sorted(sample)
    num_cut = len(tokens) - bisect_left(tokens, AT_LIMIT * limit)
    free = tuple(tokens[: len(tokens) - num_cut])
    logs = [log(max(1, value)) for value in free]
    values, slope = _fitted_to(logs, 0, limit)
    if slope is None:
        return _Tail(free, num_cut, limit, Censored(logs, 0, num_cut, log(limit)))
    expected = len(tokens) * _share_above(limit, *fit_normal(values, exp(slope)))
    if num_cut and _chance_of(num_cut, expected) < CHANCE:
        return _Tail(free, num_cut, limit, values, slope, has_loops=True)
    return _Tail(free, num_cut, limit, *_fitted_to(logs, num_cut, limit))


def _fitted_to(logs: Sequence[float], num_cut: int, limit: int) -> tuple[Censored, float | None]:
    """Choose the data of a tail's fit, the whole or the upper half; returns also the logarithm of its scale."""
    whole, half = (Censored(logs[low:], low, num_cut, log(limit)) for low in (0, int(UPPER * len(logs))))
    if len(logs) < MIN_SAMPLE:
        return whole, None
    scales = [fit_normal(values)[1] for values in (whole, half)]
    if min(scales) <= 0:
        return half, None
    slopes = [log(scale) - values.log_scale_bias for scale, values in zip(scales, (whole, half), strict=True)]
    # NOTE: Hausman, 1978: the difference of an efficient and a cautious estimate has the difference of their variances.
    apart = half.log_scale_variance - whole.log_scale_variance
    return (whole, slopes[0]) if (slopes[1] - slopes[0]) ** 2 <= SAME**2 * apart else (half, slopes[1])


def _share_above(limit: int, location: float, scale: float) -> float:
    return _NORMAL.cdf((location - log(limit)) / scale)


def _chance_of(num: int, expected: float) -> float:
    """Return the probability of at least so many rare events, by Poisson's law."""
    rate = max(expected, 1e-300)
    return 1 - add_in_order(exp(fewer * log(rate) - rate - lgamma(fewer + 1)) for fewer in range(num))

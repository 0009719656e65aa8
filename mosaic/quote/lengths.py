"""The lengths behind samples of calls, where a batch meets longer ones than its pilot.

The lower half of a sample stays as it is; its upper half is smoothed by a normal distribution of logarithms, of which
some values are known only to lie below or above a bound.
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
"""Of the fit, and by how little its last one moves where it ends sooner."""
LOG_SCALE_VARIANCE, LOG_SCALE_BIAS = 0.6, -1.2
"""Of the logarithm of a fitted scale, times the number of known values: by simulated normal samples of 20 to 400, of
which the upper half is known or all."""


@dataclass(frozen=True)
class Censored:
    """Values, sorted, and how many more lie below the first of them and above a bound."""

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
        """Of the known values around their middle, summed."""
        return add_in_order((value - self.middle) ** 2 for value in self.known)

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
        low = -spread * _mean_above((location - below) / spread)
        high = spread * _mean_above((above - location) / spread)
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


def _mean_above(z: float) -> float:
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


UPPER = 0.5
"""From this quantile on a sample is smoothed."""
MIN_SAMPLE = 8
"""A smaller sample says nothing of its tail: it gets that of its kin, or of all others."""
SAME = 2.5
"""Standard errors by which the slope of an upper half may differ from that of its sample."""
CHANCE = 0.001
"""Where the tail gives so many calls at the limit a smaller probability, they were in a loop, and their share stays."""
AT_LIMIT = 0.98
"""A call that wrote so much of what it may was cut off: how long it would have been is not known."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Output tokens by quantile.

    A batch has several times the calls of its pilot, and its longest calls are longer than the pilot's, which decide
    when a session ends. The upper half is a lognormal tail, and not the sample, whose mean hangs on its longest calls.
    """

    sample: tuple[int, ...]
    """Sorted, without what was cut off."""
    cut_frac: float
    limit: int
    location: float = 0.0
    scale: float = 0.0
    """Of the logarithms' normal distribution; 0: nothing is smoothed."""
    over_frac: float = 0.0
    """Share of that distribution beyond the limit."""

    def at(self, u: float) -> int:
        """Give a quantile."""
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
    """Fit the lengths behind samples of calls, each with the most tokens that a call may write.

    A tail is fitted to a sample by likelihood, with calls that were cut off as longer than the limit: to the whole
    sample, or to its upper half where that has a slope of its own. Models in a loop are cut off more often than a tail
    explains: their calls are counted, and left out of the fit. The slope is what a sample says least well, and a
    batch's longest calls hang on it, so that slopes of kin are drawn together by as much as chance explains how they
    differ.

    Parameters
    ----------
    samples
        Lengths and the limit, by name.
    kin
        By name: which samples have tails alike.

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
    """A sample, sorted, and how many more were cut off at the limit."""

    sample: tuple[int, ...]
    num_cut: int
    limit: int
    values: Censored
    """Logarithms to which the tail is fitted."""
    log_slope: float | None = None
    """Logarithm of the tail's scale; None: the sample is too small, or all the same."""
    has_loops: bool = False
    """More was cut off than the tail explains, so that what was cut off says nothing of the tail."""

    def smoothed(self, log_scale: float | None) -> Lengths:
        """Give the tail this slope; None: there is nothing to smooth."""
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
    """Choose what a tail is fitted to, the whole or the upper half; give the logarithm of its scale too."""
    whole, half = (Censored(logs[low:], low, num_cut, log(limit)) for low in (0, int(UPPER * len(logs))))
    if len(logs) < MIN_SAMPLE:
        return whole, None
    scales = [fit_normal(values)[1] for values in (whole, half)]
    if min(scales) <= 0:
        return half, None
    slopes = [log(scale) - values.log_scale_bias for scale, values in zip(scales, (whole, half), strict=True)]
    # NOTE: Hausman, 1978: an efficient estimate differs from a cautious one by as much as their variances differ.
    apart = half.log_scale_variance - whole.log_scale_variance
    return (whole, slopes[0]) if (slopes[1] - slopes[0]) ** 2 <= SAME**2 * apart else (half, slopes[1])


def _share_above(limit: int, location: float, scale: float) -> float:
    return _NORMAL.cdf((location - log(limit)) / scale)


def _chance_of(num: int, expected: float) -> float:
    """Give the probability of so many rare events or more, by Poisson's law."""
    rate = max(expected, 1e-300)
    return 1 - add_in_order(exp(fewer * log(rate) - rate - lgamma(fewer + 1)) for fewer in range(num))

"""The lengths behind a sample: itself in its lower half, smoothed above, where a batch meets longer calls than it."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist, fmean

from mosaic.core.checks import require

UPPER = 0.5
"""From this quantile on a sample is smoothed."""
MIN_SAMPLE = 8
"""A smaller sample is taken as it is."""
AT_LIMIT = 0.98
"""A call that wrote so much of what it may was cut off: such calls are counted, and no tail is fitted to them."""
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Lengths:
    """Output tokens by quantile.

    A batch has several times the calls of its pilot, and its longest calls are longer than the pilot's, which decide
    when a session ends. The logarithms of the upper half are a line over normal quantiles (a lognormal tail, fitted by
    weighted least squares to the sample's own order), and not the sample, whose mean hangs on its few longest calls.
    What was cut off at the limit keeps its share.
    """

    sample: tuple[int, ...]
    """Sorted, without what was cut off."""
    cut_frac: float
    limit: int
    location: float
    scale: float
    """Of the logarithms' line; 0: nothing is smoothed."""

    def at(self, u: float) -> int:
        """Give a quantile."""
        free = 1.0 - self.cut_frac
        if u >= free:
            return self.limit
        u /= free
        if u < UPPER or self.scale <= 0:
            return self.sample[min(len(self.sample) - 1, int(u * len(self.sample)))]
        smooth = exp(self.location + self.scale * _NORMAL.inv_cdf(min(u, 1 - 1e-9)))
        return max(self.sample[int(UPPER * len(self.sample))], min(self.limit, round(smooth)))


def lengths_of(sample: Sequence[int], limit: int) -> Lengths:
    """Fit the lengths behind a sample of calls that may write so many tokens.

    Raises
    ------
    ValueError
        If the sample is empty.

    Examples
    --------
    >>> lengths_of([5, 5, 5, 5], 100).at(0.99)
    5
    """
    require(len(sample) > 0, "lengths: sample", "at least one call", 0)
    values = sorted(sample)
    first_cut = bisect_left(values, AT_LIMIT * limit)
    free, cut_frac = tuple(values[:first_cut]), 1 - first_cut / len(values)
    if not free:
        return Lengths(tuple(values), 1.0, limit, 0.0, 0.0)
    location, scale = _upper_line(free)
    return Lengths(free, cut_frac, limit, location, scale)


def _upper_line(free: Sequence[int]) -> tuple[float, float]:
    num = len(free)
    if num < MIN_SAMPLE:
        return 0.0, 0.0
    shares = [(place + 0.5) / num for place in range(int(UPPER * num), num)]
    x = [_NORMAL.inv_cdf(share) for share in shares]
    y = [log(max(1, tokens)) for tokens in free[-len(shares) :]]
    # NOTE: an order statistic's variance is p (1 - p) / pdf^2: the longest call says little, and has most leverage.
    weights = [_NORMAL.pdf(z) ** 2 / (share * (1 - share)) for z, share in zip(x, shares, strict=True)]
    mean_x, mean_y = fmean(x, weights), fmean(y, weights)
    apart = [weight * (z - mean_x) for weight, z in zip(weights, x, strict=True)]
    along = sum(weight * (z - mean_x) for weight, z in zip(apart, x, strict=True))
    scale = sum(weight * (value - mean_y) for weight, value in zip(apart, y, strict=True)) / along
    return mean_y - scale * mean_x, scale

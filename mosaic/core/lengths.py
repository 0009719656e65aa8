"""Output-length distributions: what the simulated world draws from, every parameter with its source."""

from dataclasses import dataclass, field, replace
from math import ceil, erf, exp, log, sqrt
from statistics import NormalDist, fmean, pstdev
from typing import Annotated, Literal, Protocol, TypeAlias, get_args

from mosaic.core.checks import AtLeast1, Limit, checked, require, require_number

_STANDARD_NORMAL = NormalDist()

Source: TypeAlias = Literal["published", "fitted", "assumed", "measured"]
"""A paper, a fit to its baseline, an assumption, or an engine."""
SOURCES: tuple[Source, ...] = get_args(Source)


class LengthDistribution(Protocol):
    """Distribution of one expert's output tokens per call."""

    @property
    def mean(self) -> float:
        """Mean output tokens per call."""

    @property
    def std(self) -> float:
        """Standard deviation in tokens."""

    @property
    def max(self) -> int:
        """Most tokens a call can write."""

    def quantile(self, u: float) -> int:
        """Map a uniform number in (0, 1) to output tokens, at least 1."""

    def scaled(self, factor: float) -> "LengthDistribution":
        """Return the distribution with its mean multiplied by a factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("")
class ClippedLognormal:
    """min(X, clip_tokens) with X lognormal: a generation that runs into its limit stops there.

    The mean is given *after* clipping, because that is what a run measures and a paper publishes;
    the lognormal's own location is solved for at construction.

    Examples
    --------
    >>> lengths = ClippedLognormal(mean=3146, sigma=1.05, clip_tokens=32768)
    >>> lengths.quantile(0.5), lengths.quantile(0.9999), lengths.max
    (1838, 32768, 32768)
    """

    mean: Annotated[float, Limit(at_least=1)]
    """Tokens, after clipping."""
    sigma: Annotated[float, Limit(above=0, at_most=4)]
    """Standard deviation of log X."""
    clip_tokens: Annotated[int, Limit(at_least=2)]
    """The output limit."""
    mean_source: Source = "assumed"
    sigma_source: Source = "assumed"
    clip_source: Source = "assumed"
    mu: float = field(init=False, repr=False, compare=False)
    """Mean of log X, solved so that the clipped mean is ``mean``."""

    def __post_init__(self) -> None:
        require(self.mean < self.clip_tokens, "mean", f"below clip_tokens={self.clip_tokens}", self.mean)
        object.__setattr__(self, "mu", _solve_mu(self.mean, self.sigma, self.clip_tokens))

    @property
    def std(self) -> float:
        second = _clipped_moment(2, self.mu, self.sigma, self.clip_tokens)
        return sqrt(max(0.0, second - self.mean**2))

    @property
    def max(self) -> int:
        return self.clip_tokens

    def quantile(self, u: float) -> int:
        require_uniform(u)
        tokens = exp(self.mu + self.sigma * _STANDARD_NORMAL.inv_cdf(u))
        return max(1, min(self.clip_tokens, round(tokens)))

    def scaled(self, factor: float) -> "ClippedLognormal":
        """Multiply the mean; the shape (sigma) and the limit stay."""
        require_number(factor, "length scale", above=0)
        return replace(self, mean=self.mean * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("")
class Empirical:
    """The inverse distribution function of a sample of lengths.

    Examples
    --------
    >>> lengths = Empirical(sample=(30, 10, 20))
    >>> [lengths.quantile(u) for u in (0.01, 0.5, 0.99)]
    [10, 20, 30]
    """

    sample: tuple[AtLeast1, ...]
    """Output tokens; kept sorted."""
    source: Source = "measured"

    def __post_init__(self) -> None:
        require(len(self.sample) > 0, "sample", "non-empty", list(self.sample))
        object.__setattr__(self, "sample", tuple(sorted(self.sample)))

    @property
    def mean(self) -> float:
        return fmean(self.sample)

    @property
    def std(self) -> float:
        return pstdev(self.sample)

    @property
    def max(self) -> int:
        return self.sample[-1]

    def quantile(self, u: float) -> int:
        require_uniform(u)
        return self.sample[ceil(u * len(self.sample)) - 1]

    def scaled(self, factor: float) -> "Empirical":
        """Multiply every length, which scales the mean up to rounding."""
        require_number(factor, "length scale", above=0)
        return Empirical(sample=tuple(max(1, round(tokens * factor)) for tokens in self.sample), source=self.source)


def require_uniform(u: float) -> None:
    """Check a number strictly between 0 and 1."""
    if not 0.0 < u < 1.0:
        raise ValueError(f"u must be above 0 and below 1, got {u!r}")


def _clipped_moment(order: int, mu: float, sigma: float, clip: float) -> float:
    """Compute E[min(X, clip)^order] of a lognormal X."""
    z = (log(clip) - mu) / sigma
    # NOTE: the uncapped part is exp(k mu + k^2 sigma^2 / 2) Phi(z - k sigma), the rest sits at the cap.
    below = exp(order * mu + (order * sigma) ** 2 / 2) * _normal_cdf(z - order * sigma)
    return below + clip**order * _normal_cdf(-z)


def _normal_cdf(z: float) -> float:
    return 0.5 * (1.0 + erf(z / sqrt(2.0)))


def _solve_mu(mean: float, sigma: float, clip: float) -> float:
    """Find the lognormal's location by bisection; the clipped mean grows with it."""
    low = log(mean) - sigma**2 / 2  # right without a cap, and a cap only lowers the mean
    step = 1.0
    while _clipped_moment(1, low + step, sigma, clip) < mean:
        step *= 2
    high = low + step
    for _ in range(60):
        middle = (low + high) / 2
        if _clipped_moment(1, middle, sigma, clip) < mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2

"""Output-length distributions: what the simulated world draws from."""

from dataclasses import dataclass, field, replace
from math import ceil, erf, exp, log, sqrt
from statistics import NormalDist, fmean
from typing import Annotated, Literal, TypeAlias, get_args

from mosaic.core.checks import AtLeast1, Limit, checked, require, require_number

_STANDARD_NORMAL = NormalDist()

Source: TypeAlias = Literal["published", "fitted", "assumed", "measured"]
"""A paper, a fit to its baseline, an assumption, or an engine."""
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("")
class ClippedLognormal:
    """min(X, clip_tokens) with X lognormal: a generation that runs into its limit stops there.

    The mean is given *after* clipping, because that is what a run measures and a paper publishes;
    the lognormal's own location is solved for at construction.

    Examples
    --------
    >>> lengths = ClippedLognormal(mean=3146, sigma=1.05, clip_tokens=32768)
    >>> lengths.quantile(0.5), lengths.quantile(0.9999)
    (1838, 32768)
    """

    mean: Annotated[float, Limit(at_least=1)]
    """Tokens, after clipping."""
    sigma: Annotated[float, Limit(above=0, at_most=4)]
    """Standard deviation of log X."""
    clip_tokens: Annotated[int, Limit(at_least=2)]
    """The output limit."""
    mu: float = field(init=False, repr=False, compare=False)
    """Mean of log X, solved so that the clipped mean is ``mean``."""

    def __post_init__(self) -> None:
        require(self.mean < self.clip_tokens, "mean", f"below clip_tokens={self.clip_tokens}", self.mean)
        object.__setattr__(self, "mu", _solve_mu(self.mean, self.sigma, self.clip_tokens))

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

    def __post_init__(self) -> None:
        require(len(self.sample) > 0, "sample", "non-empty", list(self.sample))
        object.__setattr__(self, "sample", tuple(sorted(self.sample)))

    @property
    def mean(self) -> float:
        return fmean(self.sample)

    def quantile(self, u: float) -> int:
        require_uniform(u)
        return self.sample[ceil(u * len(self.sample)) - 1]

    def scaled(self, factor: float) -> "Empirical":
        """Multiply every length, which scales the mean up to rounding."""
        require_number(factor, "length scale", above=0)
        return Empirical(sample=tuple(max(1, round(tokens * factor)) for tokens in self.sample))


LengthDistribution: TypeAlias = ClippedLognormal | Empirical
"""Of one expert's output tokens per call."""


def require_uniform(u: float) -> None:
    """Check a number strictly between 0 and 1."""
    if not 0.0 < u < 1.0:
        raise ValueError(f"u must be above 0 and below 1, got {u!r}")


def _clipped_mean(mu: float, sigma: float, clip: float) -> float:
    """Compute E[min(X, clip)] of a lognormal X."""
    z = (log(clip) - mu) / sigma
    # NOTE: the uncapped part is exp(mu + sigma^2 / 2) Phi(z - sigma), the rest sits at the cap.
    return exp(mu + sigma**2 / 2) * _normal_cdf(z - sigma) + clip * _normal_cdf(-z)


def _normal_cdf(z: float) -> float:
    return 0.5 * (1.0 + erf(z / sqrt(2.0)))


def _solve_mu(mean: float, sigma: float, clip: float) -> float:
    """Find the lognormal's location by bisection; the clipped mean grows with it."""
    low = log(mean) - sigma**2 / 2  # right without a cap, and a cap only lowers the mean
    step = 1.0
    while _clipped_mean(low + step, sigma, clip) < mean:
        step *= 2
    high = low + step
    for _ in range(60):
        middle = (low + high) / 2
        if _clipped_mean(middle, sigma, clip) < mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2

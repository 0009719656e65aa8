"""Output lengths that the simulated world draws from, as configured or from an earlier run's calls.parquet.

A distribution is configured per expert in one of three forms; every parameter declares its source::

    LlamaR1:
      mean: {value: 3146, source: published}        # after clipping
      sigma: {value: 1.05, source: fitted}
      clip_tokens: {value: 32768, source: published}
    Gemma: {sample: [120, 310, 85], source: measured}
    GLM: {calls: results/runs/mine/calls.parquet}

Instead of the whole mapping, one path to a calls.parquet covers every expert in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, erf, exp, log, sqrt
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args

from mosaic.core.checks import AtLeast1, Limit, checked, require, require_number
from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE, ExpertName

Config: TypeAlias = Mapping[str, Any]

_PARAMETERS = ("mean", "sigma", "clip_tokens")
_CALL_COLUMNS = ("expert", "role", "status", "output_tokens")
_STANDARD_NORMAL = NormalDist()

Source: TypeAlias = Literal["published", "fitted", "assumed", "measured"]
"""A paper, a fit to its baseline, an assumption, or an engine."""
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("")
class ClippedLognormal:
    """min(X, clip_tokens) with X lognormal: a generation that reaches its limit stops there.

    The mean is given *after* clipping, because a run measures it and a paper publishes it in this form. The lognormal's
    own location is computed at construction.

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
    """Mean of log X, computed such that the clipped mean is ``mean``."""

    def __post_init__(self) -> None:
        require(self.mean < self.clip_tokens, "mean", f"below clip_tokens={self.clip_tokens}", self.mean)
        object.__setattr__(self, "mu", _solve_mu(self.mean, self.sigma, self.clip_tokens))

    def quantile(self, u: float) -> int:
        require_uniform(u)
        tokens = round(exp(self.mu + self.sigma * _STANDARD_NORMAL.inv_cdf(u)))
        return tokens if 1 <= tokens <= self.clip_tokens else max(1, min(self.clip_tokens, tokens))

    def scaled(self, factor: float) -> "ClippedLognormal":
        """Multiply the mean; the shape (sigma) and the limit do not change."""
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
    # NOTE: the part below the cap is exp(mu + sigma^2 / 2) Phi(z - sigma); the rest is at the cap.
    return exp(mu + sigma**2 / 2) * _normal_cdf(z - sigma) + clip * _normal_cdf(-z)


def _normal_cdf(z: float) -> float:
    return 0.5 * (1.0 + erf(z / sqrt(2.0)))


def _solve_mu(mean: float, sigma: float, clip: float) -> float:
    """Find the lognormal's location by bisection; the clipped mean grows with it."""
    low = log(mean) - sigma**2 / 2  # exact without a cap, and a cap only lowers the mean
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


def length_distributions(
    config: Config | str | Path, *, length_scale: Config | None = None
) -> dict[ExpertName, LengthDistribution]:
    """Build the distributions of a world.

    Parameters
    ----------
    config
        ``world.output_tokens``: one form (see the module) per expert, or a path that covers every expert.
    length_scale
        ``world.length_scale``, e.g. ``{"value": 0.8, "source": "fitted"}``: multiplies every mean.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    lengths: dict[ExpertName, LengthDistribution]
    if isinstance(config, str | Path):
        lengths = {name: Empirical(sample=tuple(sample)) for name, sample in _samples_in_calls(config).items()}
    elif isinstance(config, Mapping):
        lengths = {name: length_distribution(entry, expert=name) for name, entry in config.items()}
    else:
        raise TypeError(f"output_tokens must be a mapping of experts or a path, got {config!r}")
    if length_scale is None:
        return lengths
    factor, _ = declared_parameter(length_scale, "length_scale")
    require_number(factor, "length_scale.value", above=0)
    return {name: entry.scaled(factor) for name, entry in lengths.items()}


def length_distribution(config: Config, *, expert: ExpertName, key: str = "output_tokens") -> LengthDistribution:
    """Build one expert's distribution from its configuration (the forms are in the module's docstring).

    ``key`` is the name of the configuration of all experts in errors.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.

    Examples
    --------
    >>> length_distribution({"sample": [5, 7], "source": "measured"}, expert="Gemma").mean
    6.0
    """
    label = f"{key}.{expert}"
    if not isinstance(config, Mapping):
        raise TypeError(f"{label} must be a mapping, got {config!r}")
    keys = set(config)
    if keys == {"calls"}:
        samples = _samples_in_calls(config["calls"])
        require(
            expert in samples, f"{label}: {config['calls']}", f"a run that has calls of {expert!r}", sorted(samples)
        )
        return Empirical(sample=tuple(samples[expert]))
    if keys == {"sample", "source"}:
        return _from_sample(config, label)
    if keys == set(_PARAMETERS):
        return _from_parameters(config, label)
    rule = "one of {mean, sigma, clip_tokens}, {sample, source}, {calls}"
    raise ValueError(f"{label}: keys must be {rule}, got {sorted(keys)}")


def _from_parameters(config: Config, label: str) -> ClippedLognormal:
    values = {name: declared_parameter(config[name], f"{label}.{name}")[0] for name in _PARAMETERS}
    try:
        return ClippedLognormal(**values)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{label}: {error}") from None


def _from_sample(config: Config, label: str) -> Empirical:
    sample = config["sample"]
    if isinstance(sample, str) or not isinstance(sample, Sequence):
        raise TypeError(f"{label}.sample must be a list of output tokens, got {sample!r}")
    try:
        require(config["source"] in SOURCES, "source", f"one of {list(SOURCES)}", config["source"])
        return Empirical(sample=tuple(sample))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{label}: {error}") from None


def declared_parameter(entry: object, label: str) -> tuple[Any, Source]:
    """Split {value, source}; a bare number is refused because its source is not known.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    if not isinstance(entry, Mapping) or set(entry) != {"value", "source"}:
        raise ValueError(f"{label} must be {{value: NUMBER, source: one of {list(SOURCES)}}}, got {entry!r}")
    require(entry["source"] in SOURCES, f"{label}.source", f"one of {list(SOURCES)}", entry["source"])
    require_number(entry["value"], f"{label}.value")
    return entry["value"], cast(Source, entry["source"])


def _samples_in_calls(path: str | Path) -> dict[ExpertName, list[int]]:
    """Read the lengths of finished proposals; the output of an aggregator has another distribution."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:  # NOTE: pyarrow's own errors derive from these two
        raise ValueError(f"output_tokens: {path} must be a readable parquet file ({error})") from error
    missing = [name for name in _CALL_COLUMNS if name not in table.column_names]
    rule = f"a superset of {list(_CALL_COLUMNS)}"
    require(not missing, f"output_tokens: columns of {path}", rule, table.column_names)
    samples: dict[ExpertName, list[int]] = {}
    for name, node, status, tokens in zip(*(table[column].to_pylist() for column in _CALL_COLUMNS), strict=True):
        if node == PROPOSE and status == CallStatus.FINISHED:
            samples.setdefault(name, []).append(tokens)
    return samples

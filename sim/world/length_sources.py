"""Where length distributions come from: configuration, or an earlier run's calls.parquet.

A distribution is configured per expert in one of three forms; every parameter declares its source::

    LlamaR1:
      mean: {value: 3146, source: published}        # after clipping
      sigma: {value: 1.05, source: fitted}
      clip_tokens: {value: 32768, source: published}
    Gemma: {sample: [120, 310, 85], source: measured}
    GLM: {calls: results/runs/mine/calls.parquet}

In place of the whole mapping, one path to a calls.parquet covers every expert in it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from mosaic.core.checks import require, require_number
from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE, ExpertName
from sim.world.lengths import SOURCES, ClippedLognormal, Empirical, LengthDistribution, Source

Config: TypeAlias = Mapping[str, Any]

_PARAMETERS = ("mean", "sigma", "clip_tokens")
_CALL_COLUMNS = ("expert", "role", "status", "output_tokens")


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

    ``key`` is what errors call the configuration of all experts.

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
    """Split {value, source}; a bare number is refused because it hides where it comes from.

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
    """Read the lengths of finished proposals; what an expert writes as an aggregator is another distribution."""
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

"""The second stage's part of the configuration: gate, aggregator, and how the simulated experts answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.utils import get_method

from experiments.config_checks import check_fit, require_section
from experiments.instantiation import call, make
from mosaic.answers import Comparison
from mosaic.checks import require, require_count, require_name
from mosaic.cluster import Cluster
from mosaic.costs import fits_memory
from mosaic.final_answers import Comparisons
from mosaic.gate import Gate
from mosaic.length_sources import declared_parameter, length_distribution
from mosaic.lengths import LengthDistribution
from mosaic.second_stage import Aggregator, comparisons
from mosaic.workload import Expert, ExpertName
from sim.answer_model import AnswerModel

ANSWER_KEYS = (
    "mean_ability", "discrimination", "distractor_std", "length_loading", "aggregator_gain", "deference",
    "aggregator_length_loading", "aggregator_elasticity",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedAnswers:
    """How the simulated experts answer."""

    model: AnswerModel | None
    """None: calls have lengths only."""
    visible_tokens: int = 0
    """Most that a reasoning expert's response has after its thinking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSetup:
    """Gate and aggregator."""

    gate: Gate
    aggregator: Aggregator
    lengths: Mapping[ExpertName, LengthDistribution]
    """What the simulated aggregator writes."""
    compare: Comparisons


def simulated_answers(config: Mapping[str, Any] | None) -> SimulatedAnswers:
    """Build the answer model of ``workload.answers``; every parameter declares its source.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    if config is None:
        return SimulatedAnswers(model=None)
    keys = {*ANSWER_KEYS, "ability_by_expert", "visible_tokens"}
    require(set(config) == keys, "workload.answers: keys", f"{sorted(keys)}", sorted(config))
    values = {key: declared_parameter(config[key], f"workload.answers.{key}") for key in ANSWER_KEYS}
    require_section(config, ("ability_by_expert",), "workload.answers.")
    abilities = {
        name: declared_parameter(entry, f"workload.answers.ability_by_expert.{name}")[0]
        for name, entry in config["ability_by_expert"].items()
    }
    visible, _ = declared_parameter(config["visible_tokens"], "workload.answers.visible_tokens")
    require_count(visible, "workload.answers.visible_tokens.value", at_least=1)
    model = AnswerModel(
        **{key: value for key, (value, _) in values.items()},
        ability_by_expert=abilities,
        source=values["mean_ability"][1],
    )
    return SimulatedAnswers(model=model, visible_tokens=visible)


def second_stage(
    config: Mapping[str, Any],
    of_workload: Mapping[str, Any] | None,
    of_pool: Mapping[str, Any] | None,
    experts: Sequence[Expert],
    cluster: Cluster,
) -> StageSetup | None:
    """Build gate and aggregator; aggregator.expert goes before the workload's choice, and that before the pool's.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    settings = dict(config["aggregator"])
    require_name(settings.get("name"), "aggregator.name")
    if settings["name"] == "none":
        require(len(settings) == 1, "aggregator", "without settings where its name is none", settings)
        return None
    gate = make(config["gate"], "gate")
    compare = comparisons(_comparison(settings.pop("comparison", None)))
    expert, lengths = _choose(settings.pop("expert", None), of_workload, of_pool, experts)
    aggregator = call(Aggregator, "aggregator", expert=expert, **settings)
    return StageSetup(
        gate=gate,
        aggregator=replace(aggregator, tp_degrees=_placeable(aggregator, cluster)),
        lengths={} if lengths is None else {expert.name: lengths},
        compare=compare,
    )


def _choose(
    name: str | None,
    of_workload: Mapping[str, Any] | None,
    of_pool: Mapping[str, Any] | None,
    experts: Sequence[Expert],
) -> tuple[Expert, LengthDistribution | None]:
    """Find the aggregator in the pool, and what the simulated one writes."""
    label, entry = ("workload.aggregator", of_workload) if of_workload is not None else ("pool.aggregator", of_pool)
    if entry is None and name is None:
        raise ValueError(
            "aggregator.expert must be given, or workload.aggregator or pool.aggregator, got none of them: "
            "add one, or run the expert stage alone with aggregator=none"
        )
    if entry is not None:
        if not isinstance(entry, Mapping):
            raise TypeError(f"{label} must be a group of the configuration, with keys, got {entry!r}")
        unknown = sorted(set(entry) - {"expert", "output_tokens"})
        require(not unknown, f"{label}: keys", "expert and output_tokens", unknown)
    entry = entry or {}
    field, wanted = (f"{label}.expert", entry.get("expert")) if name is None else ("aggregator.expert", name)
    names = [expert.name for expert in experts]
    require(wanted in names, field, f"one of the pool {names}", wanted)
    expert = experts[names.index(wanted)]
    lengths = entry.get("output_tokens")
    if lengths is None:
        return expert, None
    try:
        return expert, length_distribution(lengths, expert=expert.name)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{label}: {error}") from error


def _placeable(aggregator: Aggregator, cluster: Cluster) -> tuple[int, ...]:
    """List the degrees at which the cluster has the workers and the memory for it."""
    degrees = tuple(degree for degree in aggregator.tp_degrees if degree <= cluster.num_workers)
    if not degrees:
        raise ValueError(
            f"aggregator.tp_degrees must be at most cluster.num_workers={cluster.num_workers}, "
            f"got {list(aggregator.tp_degrees)}: choose aggregator=dp4, or none for the expert stage alone"
        )
    shaped = {degree: aggregator.shaped(degree) for degree in degrees}
    fitting = tuple(degree for degree in degrees if fits_memory(shaped[degree], cluster.workers[:degree]))
    if not fitting:
        check_fit(shaped[max(degrees)], cluster)
    return fitting


def _comparison(path: str | None) -> Comparison | None:
    if path is None:
        return None
    require_name(path, "aggregator.comparison")
    try:
        found: Comparison = get_method(path)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"aggregator.comparison must be importable, got {path!r} ({reason})") from error
    return found

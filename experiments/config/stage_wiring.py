"""The second stage's part of the configuration: gate, aggregator, and how the simulated experts answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

from hydra.utils import get_method

from experiments.config.config_checks import check_fit, require_section
from experiments.config.instantiation import call, make
from mosaic.answers.extraction import Comparison
from mosaic.core.checks import require, require_count, require_name
from mosaic.core.cluster import Cluster
from mosaic.core.lengths import LengthDistribution
from mosaic.core.workload import Expert, ExpertName, Workload
from mosaic.pipelines.final_answers import Comparisons
from mosaic.pipelines.gates.calibrated import Calibrated
from mosaic.pipelines.gates.gate import Gate
from mosaic.planning.costs import fits_memory
from mosaic.planning.profiles import load_profile
from mosaic.runtime.second_stage import Aggregator, comparisons
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import iteration_time
from sim.world.answer_model import AnswerModel
from sim.world.length_sources import declared_parameter, length_distribution

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

    @property
    def source(self) -> str:
        """Whether their agreement was fitted or assumed."""
        return self.model.source if self.model else "assumed"


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
    if not isinstance(config, Mapping):
        raise TypeError(f"workload.answers must be a group of the configuration, with keys, or null, got {config!r}")
    keys = (*ANSWER_KEYS, "ability_by_expert", "visible_tokens")
    for key in keys:
        require(key in config, f"workload.answers.{key}", "given, or workload.answers null", None)
    for key in config:
        require(key in keys, "workload.answers: key", f"one of {list(keys)}", key)
    values = {key: declared_parameter(config[key], f"workload.answers.{key}") for key in ANSWER_KEYS}
    require_section(config, ("ability_by_expert",), "workload.answers.")
    abilities = {
        name: declared_parameter(entry, f"workload.answers.ability_by_expert.{name}")[0]
        for name, entry in config["ability_by_expert"].items()
    }
    visible, _ = declared_parameter(config["visible_tokens"], "workload.answers.visible_tokens")
    require_count(visible, "workload.answers.visible_tokens.value", at_least=1)
    try:
        model = AnswerModel(
            **{key: value for key, (value, _) in values.items()},
            ability_by_expert=abilities,
            source=values["mean_ability"][1],
        )
    except ValueError as error:
        raise ValueError(f"workload.{error}") from error
    return SimulatedAnswers(model=model, visible_tokens=visible)


def second_stage(
    config: Mapping[str, Any],
    of_workload: Mapping[str, Any] | None,
    of_pool: Mapping[str, Any] | None,
    experts: Sequence[Expert],
    cluster: Cluster,
    hardware: Hardware,
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
        aggregator=replace(aggregator, tp_degrees=_placeable(aggregator, cluster, hardware)),
        lengths={} if lengths is None else {expert.name: lengths},
        compare=compare,
    )


def check_batch(stage: StageSetup, workload: Workload) -> None:
    """Check that a gate which promises something was not calibrated on the batch's own questions."""
    if not isinstance(stage.gate, Calibrated):
        return
    shared = [question.id for question in workload.questions if question.id in stage.gate.question_ids]
    if shared:
        raise ValueError(
            f"gate.calibration must hold other questions than the batch, got {len(shared)} of the batch's own, "
            f"{shared[0]!r} among them: it promises nothing for questions that it was calibrated on. A published "
            "workload gives others with workload.part=calibration gate=never"
        )


def check_simulated(stage: StageSetup, answers: SimulatedAnswers) -> None:
    """Check that it is known what the simulated calls say and write, before the experts have run in vain."""
    if answers.model is None:
        raise ValueError(
            "workload.answers must be given where a gate reads simulated answers, got null: "
            "add one of conf/answers, or run the expert stage alone with aggregator=none"
        )
    name = stage.aggregator.expert.name
    rule = f"a length distribution for aggregator {name!r}: add workload.aggregator.output_tokens, or the pool's"
    require(name in stage.lengths, "aggregator: output_tokens", rule, None)


def check_profile(stage: StageSetup, path: str, cluster: Cluster) -> None:
    """Check that a saved profile can be read and covers the aggregator at each of its degrees."""
    profile = load_profile(path)
    for degree in stage.aggregator.tp_degrees:
        profile.entry(stage.aggregator.expert.name, cluster.workers[0].gpu.name, degree)


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


def _placeable(aggregator: Aggregator, cluster: Cluster, hardware: Hardware) -> tuple[int, ...]:
    """List the degrees at which the cluster has the workers, the iteration times and the memory for it."""
    degrees = tuple(degree for degree in aggregator.tp_degrees if degree <= cluster.num_workers)
    if not degrees:
        raise ValueError(
            f"aggregator.tp_degrees must be at most cluster.num_workers={cluster.num_workers}, "
            f"got {list(aggregator.tp_degrees)}: choose aggregator=dp4, or none for the expert stage alone"
        )
    degrees, untimed = _timed(aggregator, hardware, degrees)
    if not degrees:
        raise ValueError(
            f"aggregator.tp_degrees must be degrees that {hardware.gpu.name} was measured at, "
            f"got {list(aggregator.tp_degrees)} ({untimed}): choose aggregator=dp4"
        )
    shaped = {degree: aggregator.shaped(degree) for degree in degrees}
    fitting = tuple(degree for degree in degrees if fits_memory(shaped[degree], cluster.workers[:degree]))
    if not fitting:
        check_fit(shaped[max(degrees)], cluster)
    return fitting


def _timed(aggregator: Aggregator, hardware: Hardware, degrees: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Tell the degrees at which the hardware's operators were measured, and why the last of the others is none."""
    timed, reason = [], ""
    for degree in degrees:
        try:
            iteration_time(hardware, aggregator.expert.shape, degree)
            timed.append(degree)
        except ValueError as error:
            reason = str(error)
    return tuple(timed), reason


def _comparison(path: str | None) -> Comparison | None:
    if path is None:
        return None
    require_name(path, "aggregator.comparison")
    try:
        found: Comparison = get_method(path)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"aggregator.comparison must be importable, got {path!r} ({reason})") from error
    try:
        signature(found).bind("one answer", "another")
    except TypeError as error:
        raise TypeError(f"aggregator.comparison must take two answers, got {path!r} ({error})") from error
    except ValueError:
        pass  # written in C, and silent about its arguments
    return found

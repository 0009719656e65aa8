"""Builds the simulator's site and the world that it simulates, and defines the inputs of all sites."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from mosaic.config.machines import Machines
from mosaic.config.sections import Group, WorldSection, by_number, keys_of, require_group, require_keys, section
from mosaic.core.checks import require, require_count
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.rules.faster_moa import Embed
from mosaic.runtime.site import Site
from sim.cluster.expert_on_gpu import GpuUse, Keep
from sim.site import SimSite
from sim.world.answer_model import AnswerModel
from sim.world.lengths import declared_parameter, length_distribution, length_distributions
from sim.world.world import SimulatedWorld

USE_KEYS = ("keep", "load_ahead_gib", "experts_per_gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteInputs:
    """Inputs of sites."""

    workload: Workload
    calibration: Callable[[], Workload]
    """Returns the workload's calibration part, or its own questions if it has none."""
    experts: tuple[Expert, ...]
    machines: Machines
    graph: CallGraph
    world: SimulatedWorld
    seed: int
    profile_seed: int
    length_error: float
    journal: Path | None
    """Where a real run keeps its finished calls."""

    @property
    def called_experts(self) -> list[Expert]:
        """The experts that the batch may call; an aggregator with the degree of its sessions."""
        upper = {expert.name: expert for expert in self.graph.experts}
        first = self.workload.num_calls_by_expert.keys() - upper.keys()
        return [*upper.values(), *(expert for expert in self.experts if expert.name in first)]

    @property
    def draws(self) -> str:
        """Description of the draws for a profile's source."""
        error = f", mean lengths off by up to x{self.length_error:g}" if self.length_error != 1 else ""
        return f", seed {self.profile_seed}{error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A site that runs plans, as named in conf/backend."""

    name: str
    site: Callable[[SiteInputs], Site]
    options: EngineOptions = field(default_factory=EngineOptions)
    """Of its engines."""
    embed_by: Callable[[Expert], Embed] | None = None
    """Returns an expert's embedder of texts; None: no text is written."""
    runs: bool = True
    """False: plans are only explained."""
    places: bool = True
    """False: servers have the experts, so no machine needs to hold one."""


def simulated(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=sim``: what sessions share, and the options of the simulated engines."""
    require_keys(config, "backend", keys_of(EngineOptions, GpuUse, unread=("loading", "is_alone")))
    shared = {key: value for key, value in config.items() if key in USE_KEYS}
    use = section(shared, GpuUse, "backend")
    options = section({key: config[key] for key in config if key not in shared}, EngineOptions, "backend")
    return Backend(name="sim", site=partial(sim_site, options=options, use=use), options=options)


def explained(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=none``: the profile of a plan that is only explained is the simulator's."""
    require_keys(config, "backend", ())
    return Backend(name="none", site=partial(sim_site, options=EngineOptions()), runs=False)


def sim_site(inputs: SiteInputs, options: EngineOptions, use: GpuUse | None = None) -> SimSite:
    """Build the simulator.

    Raises
    ------
    ValueError
        If a gate reads simulated answers and no answer model is known.
    """
    if inputs.graph.upper_nodes and inputs.world.answers is None:
        raise ValueError(
            "world.answers must be given where a gate reads simulated answers, got null: "
            "add one of conf/answers, or run the expert stage alone with aggregator=none"
        )
    experts = inputs.experts
    world = inputs.world.draw(inputs.workload, experts, "test", seed=inputs.seed)
    calibration_world = inputs.world.draw(
        inputs.workload, experts, "calibration", seed=inputs.profile_seed, length_error=inputs.length_error
    )
    if inputs.graph.rule.reads_confidence:
        world, calibration_world = (replace(each, tells_confidence=True) for each in (world, calibration_world))
    use, (hardware, *more_hardware) = use or GpuUse(), inputs.machines.kinds
    if use.keep is not Keep.NOTHING:
        for kind in inputs.machines.kinds:
            rule = "given with a host_link_bytes_per_s where backend.keep is weights or engines"
            require(kind.host is not None and kind.host_link_bytes_per_s is not None, "hardware.host", rule, kind.host)
    return SimSite(
        experts=experts,
        cluster=inputs.machines.cluster,
        hardware=hardware,
        more_hardware=tuple(more_hardware),
        batch=inputs.workload,
        world=world,
        calibration_world=calibration_world,
        settings=options,
        use=use,
        draws=inputs.draws,
    )


def simulated_world(given: WorldSection) -> SimulatedWorld:
    """Build the world of the group.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    answers, visible = (None, 0) if given.answers is None else _answer_model(given.answers)
    return SimulatedWorld(
        lengths=length_distributions(given.output_tokens or {}, length_scale=given.length_scale),
        merged_lengths={
            name: length_distribution(entry, expert=name, key="world.merged_tokens")
            for name, entry in (given.merged_tokens or {}).items()
        },
        answers=answers,
        question_seed=given.question_seed,
        visible_tokens=visible,
    )


def _answer_model(given: Group) -> tuple[AnswerModel, int]:
    """Build the answer model and the visible tokens; every parameter declares its source."""
    keys = [each.name for each in fields(AnswerModel) if each.default is MISSING and each.default_factory is MISSING]
    needed = [*keys, "ability_by_expert", "visible_tokens"]
    require_keys(given, "world.answers", [*needed, "kv_loss_frac"])
    for key in needed:
        require(key in given, f"world.answers.{key}", "given", None)
    values = {key: declared_parameter(given[key], f"world.answers.{key}") for key in keys}
    abilities = {
        name: declared_parameter(entry, f"world.answers.ability_by_expert.{name}")[0]
        for name, entry in require_group(given["ability_by_expert"], "world.answers.ability_by_expert").items()
    }
    visible, _ = declared_parameter(given["visible_tokens"], "world.answers.visible_tokens")
    require_count(visible, "world.answers.visible_tokens.value", at_least=1)
    kv_losses = _kv_losses(require_group(given.get("kv_loss_frac") or {}, "world.answers.kv_loss_frac"))
    try:
        model = AnswerModel(
            **{key: value for key, (value, _) in values.items()},
            ability_by_expert=abilities,
            kv_loss_frac=kv_losses,
            source=values["mean_ability"][1],
        )
    except ValueError as error:
        raise ValueError(f"world.{error}") from error
    return model, visible


def _kv_losses(config: Group) -> dict[int, float]:
    """Read the share of right answers that is lost, by KV budget in tokens."""
    key = "world.answers.kv_loss_frac"
    named = by_number(config, key, "by KV budgets in tokens")
    return {budget: declared_parameter(entry, f"{key}.{budget}")[0] for budget, entry in named.items()}

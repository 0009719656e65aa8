"""The simulator's site from the configuration, and what every site is built from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mosaic.config.instantiation import call
from mosaic.config.sections import RaySection, Section, section
from mosaic.core.checks import require
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.rules.faster_moa import Embed
from mosaic.runtime.site import Site
from sim.cluster.expert_on_gpu import GpuUse, Keep
from sim.hardware.hardware import Hardware
from sim.site import SimSite
from sim.world.world import SimulatedWorld

USE_KEYS = ("keep", "load_ahead_gib", "experts_per_gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What sites are built from."""

    options: EngineOptions
    """Of the backend's engines."""
    workload: Workload
    calibration: Callable[[], Workload]
    """Gives the workload's calibration part, or its own questions where it has none."""
    experts: tuple[Expert, ...]
    cluster: Cluster
    hardware: Hardware
    """Of the first worker."""
    graph: CallGraph
    world: SimulatedWorld
    seed: int
    profile_seed: int
    length_error: float
    journal: Path | None
    """Where a real run keeps what has finished."""
    more_hardware: tuple[Hardware, ...] = ()
    """Of workers of other kinds."""
    ray: RaySection | None = None
    """Where the workers are those of a Ray cluster."""

    @property
    def called_experts(self) -> list[Expert]:
        """The experts that the batch may call; an aggregator as it spans its workers."""
        upper = {expert.name: expert for expert in self.graph.experts}
        first = self.workload.num_calls_by_expert.keys() - upper.keys()
        return [*upper.values(), *(expert for expert in self.experts if expert.name in first)]

    @property
    def luck(self) -> str:
        """What a profile's source says of its draws."""
        error = f", mean lengths off by up to x{self.length_error:g}" if self.length_error != 1 else ""
        return f", seed {self.profile_seed}{error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What runs plans, as conf/backend names it."""

    name: str
    site: Callable[[Parts], Site]
    options: EngineOptions = field(default_factory=EngineOptions)
    """Of its engines."""
    embed_by: Callable[[Expert], Embed] | None = None
    """Gives what embeds texts by an expert; None: nothing is written."""
    runs: bool = True
    """False: plans are only explained."""


def simulated(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=sim``: what sessions share, and the options of the simulated engines."""
    shared = {key: value for key, value in config.items() if key in USE_KEYS}
    use: GpuUse = call(GpuUse, "backend", **shared)
    options: EngineOptions = call(EngineOptions, "backend", **{key: config[key] for key in config if key not in shared})
    return Backend(name="sim", site=partial(sim_site, options=options, use=use), options=options)


def explained(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=none``: the profile of a plan that is only explained is the simulator's."""
    section(config, Section, "backend")
    return Backend(name="none", site=partial(sim_site, options=EngineOptions()), runs=False)


def sim_site(parts: Parts, options: EngineOptions, use: GpuUse | None = None) -> SimSite:
    """Build the simulator.

    Raises
    ------
    ValueError
        If it is not known how the simulated calls answer, where a gate asks.
    """
    if parts.graph.upper_nodes and parts.world.answers is None:
        raise ValueError(
            "world.answers must be given where a gate reads simulated answers, got null: "
            "add one of conf/answers, or run the expert stage alone with aggregator=none"
        )
    experts = parts.experts
    world = parts.world.test(parts.workload, experts, parts.seed)
    calibration_world = parts.world.calibration(parts.workload, experts, parts.profile_seed, parts.length_error)
    if parts.graph.rule.reads_confidence:
        world, calibration_world = (replace(each, tells_confidence=True) for each in (world, calibration_world))
    use = use or GpuUse()
    if use.keep is not Keep.NOTHING:
        for kind in (parts.hardware, *parts.more_hardware):
            rule = "given with a host_link_bytes_per_s where backend.keep is weights or engines"
            require(kind.host is not None and kind.host_link_bytes_per_s is not None, "hardware.host", rule, kind.host)
    return SimSite(
        experts=experts,
        cluster=parts.cluster,
        hardware=parts.hardware,
        more_hardware=parts.more_hardware,
        batch=parts.workload,
        world=world,
        calibration_world=calibration_world,
        settings=options,
        use=use,
        luck=parts.luck,
    )

"""The simulator's site from the configuration, and what every site is built from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mosaic.config.checks import require_keys
from mosaic.config.instantiation import call
from mosaic.config.machines import RaySettings
from mosaic.config.world import SimulatedWorld
from mosaic.core.checks import require
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.call_graph import CallGraph
from sim.cluster.gpu_use import GpuUse, Keep
from sim.hardware.hardware import Hardware
from sim.site import SimSite

USE_KEYS = ("keep", "load_ahead_gib", "experts_per_gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What sites are built from."""

    config: Mapping[str, Any]
    """Of the backend, without its name."""
    options: EngineOptions
    """Of its engines; the default ones where nobody says."""
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
    ray: RaySettings | None = None
    """Where the workers are those of a Ray cluster."""

    @property
    def luck(self) -> str:
        """What a profile's source says of its draws."""
        error = f", mean lengths off by up to x{self.length_error:g}" if self.length_error != 1 else ""
        return f", seed {self.profile_seed}{error}"


def simulated_site(parts: Parts) -> SimSite:
    """Build what ``backend=sim`` says."""
    return sim_site(parts, parts.options)


def gpu_use(backend: Mapping[str, Any]) -> GpuUse:
    """Build what sessions share from the keys of ``backend=sim`` that its engines know nothing of."""
    use: GpuUse = call(GpuUse, "backend", **{key: value for key, value in backend.items() if key in USE_KEYS})
    return use


def engine_options(backend: Mapping[str, Any]) -> EngineOptions:
    """Build the options of the simulated engines."""
    options: EngineOptions = call(
        EngineOptions, "backend", **{key: value for key, value in backend.items() if key not in USE_KEYS}
    )
    return options


def explained_site(parts: Parts) -> SimSite:
    """Build what ``backend=none`` says: the profile of a plan that is only explained is the simulator's."""
    require_keys(parts.config, (), "backend.")
    return sim_site(parts, parts.options)


def sim_site(parts: Parts, settings: EngineOptions) -> SimSite:
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
    if parts.graph.exit is not None and parts.graph.exit.reads_confidence:
        world, calibration_world = (replace(each, tells_confidence=True) for each in (world, calibration_world))
    use = gpu_use(parts.config)
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
        settings=settings,
        use=use,
        luck=parts.luck,
    )

"""The simulator's site from the configuration, and what every site is built from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from experiments.config.checks import require_keys
from experiments.config.world import SimulatedWorld
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.runtime.planner import CostFactory
from mosaic.runtime.site import Site
from sim.hardware.hardware import Hardware
from sim.site import SimSite

Built: TypeAlias = tuple[Site, Callable[[CostFactory], CostFactory]]
"""A site, and how it changes the cost model."""


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
    more_hardware: tuple[Hardware, ...] = ()
    """Of workers of other kinds."""
    """Where a real run keeps what has finished."""

    @property
    def luck(self) -> str:
        """What a profile's source says of its draws."""
        error = f", mean lengths off by up to x{self.length_error:g}" if self.length_error != 1 else ""
        return f", seed {self.profile_seed}{error}"


def simulated_site(parts: Parts) -> Built:
    """Build what ``backend=sim`` says."""
    return sim_site(parts, parts.options), lambda costs: costs


def explained_site(parts: Parts) -> Built:
    """Build what ``backend=none`` says: the profile of a plan that is only explained is the simulator's."""
    require_keys(parts.config, (), "backend.")
    return sim_site(parts, parts.options), lambda costs: costs


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
    return SimSite(
        experts=experts,
        cluster=parts.cluster,
        hardware=parts.hardware,
        more_hardware=parts.more_hardware,
        batch=parts.workload,
        world=parts.world.test(parts.workload, experts, parts.seed),
        calibration_world=parts.world.calibration(parts.workload, experts, parts.profile_seed, parts.length_error),
        settings=settings,
        luck=parts.luck,
    )

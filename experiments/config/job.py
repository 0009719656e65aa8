"""Turns a resolved Hydra configuration into the plain values of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.checks import check_calls, require_keys, require_path, require_section
from experiments.config.compose import compose_config
from experiments.config.effects import check_effects
from experiments.config.instantiation import call, make
from experiments.config.pipeline import check_batch, check_upper_profile, pipeline_from
from experiments.config.world import SimulatedWorld, check_length_error, simulated_world
from mosaic.core.checks import require, require_count, require_unique
from mosaic.core.cluster import Cluster, uniform_cluster
from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.planning.plan_file import load_plans
from mosaic.planning.profiles import load_profile
from mosaic.runtime.planner import CostFactory
from mosaic.runtime.run import Job
from mosaic.runtime.site import Site
from mosaic.runtime.store import Store
from mosaic.runtime.sweep import Sweep
from sim.engine.engine_settings import EngineSettings
from sim.hardware.hardware import Hardware
from sim.site import SimSite

SECTIONS = (
    "pool", "workload", "world", "profile", "backend", "hardware", "cluster", "costs", "scheduler", "plan", "pipeline",
    "gate", "aggregator",
)  # fmt: skip
KEYS = {
    "pool": ("name", "experts", "aggregator"),
    "profile": ("path", "aggregator_path", "length_error", "seed", "sweep"),
    "plan": ("path",),
}
"""Of the groups that are no arguments of a function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What sites are built from."""

    config: Mapping[str, Any]
    """Of the backend, without its name."""
    workload: Workload
    calibration: Callable[[], Workload]
    """Gives the workload's calibration part, or its own questions where it has none."""
    experts: tuple[Expert, ...]
    cluster: Cluster
    hardware: Hardware
    graph: CallGraph
    world: SimulatedWorld
    seed: int
    profile_seed: int
    length_error: float
    journal: Path | None
    """Where a real run keeps what has finished."""

    @property
    def luck(self) -> str:
        """What a profile's source says of its draws."""
        error = f", mean lengths off by up to x{self.length_error:g}" if self.length_error != 1 else ""
        return f", seed {self.profile_seed}{error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job, with what a report says of it beside."""

    job: Job
    seed: int
    aggregator: str | None
    """Name of the choice."""
    runs: bool
    """False: the plan is only explained."""
    report: str | None
    """What is reported beside: replay, against a log's own times."""


def job_from(
    config: Mapping[str, Any],
    journal: Path | None = None,
    store: Path | None = None,
    overrides: Sequence[str] = (),
) -> Prepared:
    """Build the values of a run.

    Parameters
    ----------
    config
        Resolved.
    journal
        Where a real run keeps what has finished.
    store
        Where measurements are kept; None: nowhere.
    overrides
        What a user asked for; what has no effect on the run is refused.

    Raises
    ------
    ValueError, TypeError, MosaicError
        Naming the field, the rule and the value.
    """
    require_count(config.get("seed"), "seed")
    require_section(config, SECTIONS)
    require_keys(config, ("seed", *SECTIONS))
    for name, keys in KEYS.items():
        require_keys(config[name], keys, f"{name}.")
    pool, source, profile, backend = (dict(config[name]) for name in ("pool", "workload", "profile", "backend"))
    require_section(profile, ("sweep",), "profile.")
    require_count(profile.get("seed"), "profile.seed")
    for key in ("path", "aggregator_path"):
        require_path(profile.get(key), f"profile.{key}")
    check_length_error(profile)
    require_path(config["plan"].get("path"), "plan.path")
    experts = _pool(pool)
    hardware = make(config["hardware"], "hardware")
    cluster = call(uniform_cluster, "cluster", **config["cluster"], gpu=hardware.gpu)
    world = simulated_world(config["world"])
    source.pop("aggregator", None)
    report = source.pop("report", None)
    require(report in (None, "replay"), "workload.report", "null or replay", report)
    workload = make(source, "workload")
    pipeline = pipeline_from(config, experts, cluster, hardware)
    check_calls(workload, experts, cluster)
    check_batch(pipeline.graph, workload)
    if profile.get("aggregator_path") is not None:
        check_upper_profile(pipeline, profile["aggregator_path"], cluster)
    name = backend.pop("name", None)
    require(name in SITES, "backend.name", f"one of {list(SITES)}", name)
    parts = Parts(
        config=backend,
        workload=workload,
        calibration=lambda: _calibration(source, workload),
        experts=experts,
        cluster=cluster,
        hardware=hardware,
        graph=pipeline.graph,
        world=world,
        seed=config["seed"],
        profile_seed=profile["seed"],
        length_error=profile["length_error"],
        journal=journal,
    )
    site, wrap = SITES[name](parts)
    costs: CostFactory = make(config["costs"], "costs")
    plan_path = config["plan"].get("path")
    job = Job(
        workload=workload,
        experts=experts,
        cluster=cluster,
        graph=pipeline.graph,
        scheduler=make(config["scheduler"], "scheduler"),
        costs=wrap(costs),
        site=site,
        sweep=call(Sweep, "profile.sweep", **profile["sweep"]),
        profile=None if profile.get("path") is None else load_profile(profile["path"]),
        upper_profile=None if profile.get("aggregator_path") is None else load_profile(profile["aggregator_path"]),
        placements=pipeline.placements,
        plans=() if plan_path is None else load_plans(plan_path),
        has_barrier=pipeline.has_barrier,
        store=None if store is None else Store(store),
    )
    check_effects(overrides, config, job)
    return Prepared(job=job, seed=config["seed"], aggregator=pipeline.aggregator, runs=name != "none", report=report)


def simulated(overrides: Sequence[str]) -> tuple[Job, SimSite]:
    """Compose the job of a simulated point, for studies that change it."""
    job = job_from(compose_config([*overrides])).job
    assert isinstance(job.site, SimSite)
    return job, job.site


def _sim(parts: Parts) -> tuple[Site, Callable[[CostFactory], CostFactory]]:
    return sim_site(parts, call(EngineSettings, "backend", **parts.config)), lambda costs: costs


def _explained(parts: Parts) -> tuple[Site, Callable[[CostFactory], CostFactory]]:
    """The profile of a plan that is only explained comes from the simulator's defaults."""
    require_keys(parts.config, (), "backend.")
    return sim_site(parts, EngineSettings()), lambda costs: costs


def sim_site(parts: Parts, settings: EngineSettings) -> SimSite:
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
        batch=parts.workload,
        world=parts.world.test(parts.workload, experts, parts.seed),
        calibration_world=parts.world.calibration(parts.workload, experts, parts.profile_seed, parts.length_error),
        settings=settings,
        luck=parts.luck,
    )


SITES: Mapping[str, Callable[[Parts], tuple[Site, Callable[[CostFactory], CostFactory]]]] = {
    "sim": _sim,
    "none": _explained,
}
"""By name of the backend: builds its site, and says how it changes costs."""


def _calibration(source: Mapping[str, Any], workload: Workload) -> Workload:
    """Make the workload again from its calibration part; one without parts lends its own questions."""
    if source.get("part") != "test":
        return workload
    calibration: Workload = make({**source, "part": "calibration"}, "workload")
    return calibration


def _pool(pool: Mapping[str, Any]) -> tuple[Expert, ...]:
    require_section(pool, ("experts",), "pool.")
    require_section(pool["experts"], pool["experts"], "pool.experts.")
    made = {key: make(entry, f"pool.experts.{key}") for key, entry in pool["experts"].items()}
    for key, expert in made.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"pool.experts.{key}._target_ must make a mosaic.core.Expert, got {expert!r}")
    require_unique((expert.name for expert in made.values()), "pool.experts: name")
    return tuple(made.values())

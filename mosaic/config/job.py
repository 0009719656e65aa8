"""Turns a resolved Hydra configuration into the plain values of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mosaic.config.budgets import Calibration, budgeted
from mosaic.config.checks import check_calls, require_keys, require_path, require_section
from mosaic.config.compose import compose_config
from mosaic.config.effects import check_effects
from mosaic.config.exits import asks_embeddings, exit_from, no_embeddings
from mosaic.config.instantiation import call, make, make_once, once
from mosaic.config.machines import RaySettings, asked_of_ray, is_ray, machines
from mosaic.config.pipeline import (
    Pipeline,
    check_batch,
    check_calibration,
    check_other_questions,
    check_same_setting,
    check_upper_profile,
    pipeline_from,
)  # fmt: skip
from mosaic.config.prefill import check_prefill_ahead
from mosaic.config.sites import Parts, engine_options, explained_site, simulated_site
from mosaic.config.world import check_length_error, simulated_world
from mosaic.core.checks import require, require_count, require_number, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.exits.faster_moa import Embed
from mosaic.pipelines.gates.setting import Setting, describe_setting
from mosaic.pipelines.read_ahead import ReadAhead
from mosaic.planning.plan_file import load_plans
from mosaic.planning.profiles import load_profile
from mosaic.runtime.job import Job, ProfileSource
from mosaic.runtime.planner import CostFactory
from mosaic.runtime.site import Site
from mosaic.runtime.store import Store
from mosaic.runtime.sweep import Sweep
from sim.cluster.session_times import SimulatedSessions
from sim.site import SimSite


def _vllm(parts: Parts) -> Site:
    from mosaic.config.engines import vllm_site

    return vllm_site(parts)


def _vllm_options(backend: Mapping[str, Any]) -> EngineOptions:
    from mosaic.config.engines import vllm_options

    return vllm_options(backend)


def _vllm_embeddings(backend: Mapping[str, Any], options: EngineOptions) -> Callable[[Expert], Embed]:
    from mosaic.config.engines import embed_by

    return embed_by(backend, options)


def _endpoint(parts: Parts) -> Site:
    from mosaic.config.engines import endpoint_site

    return endpoint_site(parts)


SITES: Mapping[str, Callable[[Parts], Site]] = {
    "sim": simulated_site,
    "vllm": _vllm,
    "endpoint": _endpoint,
    "none": explained_site,
}
"""By name of the backend: builds its site. Engines are imported where they are used."""
OPTIONS: Mapping[str, Callable[[Mapping[str, Any]], EngineOptions]] = {
    "sim": engine_options,
    "vllm": _vllm_options,
}
"""By name of the backend: builds its engines' options; servers and plans that are only explained have the default."""
EMBEDDINGS = {"vllm": _vllm_embeddings}
"""By name of the backend: gives what embeds texts that were written."""
SECTIONS = (
    "pool", "workload", "world", "profile", "backend", "hardware", "cluster", "costs", "scheduler", "plan", "pipeline",
    "topology", "exit", "gate", "aggregator",
)  # fmt: skip
KEYS = {
    "pool": ("name", "experts", "aggregator"),
    "profile": ("path", "aggregator_path", "store", "length_error", "seed", "source", "max_batch_frac", "sweep"),
    "plan": ("path",),
}
"""Of the groups that are no arguments of a function."""


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
    setting: Setting
    """What its answers are of."""
    calibration: Calibration | None = None
    """Of budgets and hedge, where they are asked for: what was chosen, and on what."""


def job_from(
    config: Mapping[str, Any],
    journal: Path | None = None,
    overrides: Sequence[str] = (),
) -> Prepared:
    """Build the values of a run.

    Parameters
    ----------
    config
        Resolved.
    journal
        Where a real run keeps what has finished.
    overrides
        What a user asked for; what has no effect on the run is refused.

    Raises
    ------
    ValueError, TypeError, MosaicError
        Naming the field, the rule and the value.
    """
    config = asked_of_ray(config)
    _check_shape(config)
    pool, source, profile, backend = (dict(config[name]) for name in ("pool", "workload", "profile", "backend"))
    experts = _pool(pool)
    cluster, (hardware, *more) = machines(config)
    rule = "none on a cluster of several kinds: it is measured on workers of one kind"
    is_merged = config["aggregator"].get("name") != "none" and config["topology"].get("layers") is None
    require(not (more and is_merged), "aggregator", rule, config["aggregator"].get("name"))
    world = once(config["world"], "world", lambda: simulated_world(config["world"]))
    source.pop("aggregator", None)
    report = source.pop("report", None)
    require(report in (None, "replay"), "workload.report", "null or replay", report)
    workload = make_once(source, "workload")
    name = backend.pop("name", None)
    require(name in SITES, "backend.name", f"one of {list(SITES)}", name)
    options = OPTIONS[name](backend) if name in OPTIONS else EngineOptions()
    pipeline = pipeline_from(config, experts, cluster, hardware, options, workload)
    check_calls(workload, experts, cluster, options)
    pipeline, calibration = _steered(config, pipeline, experts, workload, cluster, options)
    if profile.get("aggregator_path") is not None:
        check_upper_profile(pipeline, profile["aggregator_path"], cluster)
    parts = Parts(
        config=backend,
        options=options,
        workload=workload,
        calibration=lambda: _calibration(source, workload),
        experts=experts,
        cluster=cluster,
        hardware=hardware,
        more_hardware=tuple(more),
        graph=pipeline.graph,
        world=world,
        seed=config["seed"],
        profile_seed=profile["seed"],
        length_error=profile["length_error"],
        journal=journal,
        ray=RaySettings(**config["cluster"]) if is_ray(config) else None,
    )
    site = SITES[name](parts)
    setting = describe_setting(
        workload,
        experts,
        pipeline.graph.nodes,
        benchmark=source.get("name", workload.name),
        answers=site.answers_source,
    )
    check_calibration(pipeline.graph, setting)
    if calibration is not None:
        again = "gate=never pipeline.leave_one_out=true"
        check_same_setting("pipeline.promise.calibration", calibration.path, setting, again)
    costs: CostFactory = make(config["costs"], "costs")
    plan_path = config["plan"].get("path")
    job = Job(
        workload=workload,
        experts=experts,
        cluster=cluster,
        graph=pipeline.graph,
        scheduler=make(config["scheduler"], "scheduler"),
        costs=partial(costs, options=options),
        site=site,
        sweep=call(Sweep, "profile.sweep", **profile["sweep"]),
        profile=None if profile.get("path") is None else load_profile(profile["path"]),
        profile_source=ProfileSource(profile["source"]),
        max_batch_frac=profile.get("max_batch_frac"),
        upper_profile=None if profile.get("aggregator_path") is None else load_profile(profile["aggregator_path"]),
        placements=pipeline.placements,
        plans=() if plan_path is None else load_plans(plan_path),
        has_barrier=pipeline.has_barrier,
        has_quorum="quorum" in pipeline.reactions,
        has_overlap="overlap" in pipeline.reactions,
        has_moves="moves" in pipeline.reactions,
        has_forecast="forecast" in pipeline.reactions,
        has_replan="replan" in pipeline.reactions,
        session_model=SimulatedSessions({kind.gpu.name: kind for kind in (hardware, *more)}, cluster, options),
        host_loads=site.host_loads if isinstance(site, SimSite) else None,
        store=None if profile.get("store") is None else Store(Path(profile["store"])),
    )
    check_effects(overrides, config, job)
    return Prepared(
        job=job,
        seed=config["seed"],
        aggregator=pipeline.aggregator,
        runs=name != "none",
        report=report,
        setting=setting,
        calibration=calibration,
    )


def _check_shape(config: Mapping[str, Any]) -> None:
    """Check that sections and keys are there and no others, and the values that no constructor checks."""
    require_count(config.get("seed"), "seed")
    require_count(config.get("question_seed"), "question_seed")
    require_section(config, SECTIONS)
    require_keys(config, ("seed", "question_seed", *SECTIONS))
    for name, keys in KEYS.items():
        require_keys(config[name], keys, f"{name}.")
    profile = config["profile"]
    require_section(profile, ("sweep",), "profile.")
    require_count(profile.get("seed"), "profile.seed")
    for key in ("path", "aggregator_path", "store"):
        require_path(profile.get(key), f"profile.{key}")
    check_length_error(profile)
    if profile.get("max_batch_frac") is not None:
        require_number(profile["max_batch_frac"], "profile.max_batch_frac", above=0)
    sources = [source.value for source in ProfileSource]
    require(profile.get("source") in sources, "profile.source", f"one of {sources}", profile.get("source"))
    require_path(config["plan"].get("path"), "plan.path")


def _steered(
    config: Mapping[str, Any],
    pipeline: Pipeline,
    experts: tuple[Expert, ...],
    workload: Workload,
    cluster: Cluster,
    options: EngineOptions,
) -> tuple[Pipeline, Calibration | None]:
    """Add what decides while a batch runs: early exit, budgets, and prompts that are laid out to be prefilled ahead."""
    backend = config["backend"]
    name, graph = backend["name"], pipeline.graph
    embed_by = EMBEDDINGS[name](backend, options) if name in EMBEDDINGS and asks_embeddings(config["exit"]) else None
    is_flat = config["topology"].get("layers") is None
    early = exit_from(config["exit"], experts, embed_by or no_embeddings, is_flat=is_flat)
    if graph.upper_nodes:
        graph = replace(graph, exit=early)
    if config["pipeline"].get("count_tokens") and graph.upper_nodes:
        readers = {node.name for node in graph.layers[1]}
        nodes = tuple(replace(node, counts_tokens=node.name in readers) for node in graph.nodes)
        graph = replace(graph, nodes=nodes)
    check_batch(graph, workload)
    graph, calibration = budgeted(graph, config["pipeline"], experts, workload, cluster, options)
    if "prefill_ahead" in pipeline.reactions:
        check_prefill_ahead(pipeline, name, options)
        graph = replace(graph, read_ahead=ReadAhead())
    if calibration is not None:
        check_other_questions("pipeline.promise.calibration", calibration.question_ids, workload)
    return pipeline._replace(graph=graph), calibration


def simulated(overrides: Sequence[str]) -> tuple[Job, SimSite]:
    """Compose the job of a simulated point, for studies that change it.

    Raises
    ------
    ValueError, TypeError, MosaicError
        Naming the field, the rule and the value.
    """
    prepared = job_from(compose_config([*overrides]))
    site = prepared.job.site
    if not (isinstance(site, SimSite) and prepared.runs):
        raise ValueError(f"overrides must be those of a simulated backend (backend=sim), got {list(overrides)}")
    return prepared.job, site


def _calibration(source: Mapping[str, Any], workload: Workload) -> Workload:
    """Make the workload again from its calibration part; one without parts lends its own questions."""
    if source.get("part") != "test":
        return workload
    calibration: Workload = make_once({**source, "part": "calibration"}, "workload")
    return calibration


def _pool(pool: Mapping[str, Any]) -> tuple[Expert, ...]:
    require_section(pool, ("experts",), "pool.")
    require_section(pool["experts"], pool["experts"], "pool.experts.")
    made = {key: make_once(entry, f"pool.experts.{key}") for key, entry in pool["experts"].items()}
    for key, expert in made.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"pool.experts.{key}._target_ must make a mosaic.core.Expert, got {expert!r}")
    require_unique((expert.name for expert in made.values()), "pool.experts: name")
    return tuple(made.values())

"""Turns a resolved Hydra configuration into the plain values of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mosaic.config.compose import compose_config
from mosaic.config.effects import check_effects
from mosaic.config.instantiation import TARGET, import_callable, make, make_once, once
from mosaic.config.machines import machines, resolve_ray
from mosaic.config.pipeline import Pipeline, pipeline_from
from mosaic.config.saved_profile import with_profiles
from mosaic.config.sections import Group, PoolSection, Sections, require_group, section
from mosaic.config.sites import Backend, SiteInputs, simulated_world
from mosaic.core.checks import require, require_unique
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, Workload
from mosaic.pipelines.budget_choice import Calibration
from mosaic.pipelines.rules.calibration_file import (
    CalibrationContext,
    check_rule,
    check_same_context,
    describe_context,
    load_context,
)
from mosaic.planning.feasibility import without_misfits
from mosaic.planning.plan_file import load_plans
from mosaic.runtime.job import Job
from mosaic.runtime.site import Site
from mosaic.runtime.store import Store
from mosaic.workloads.loaders import BadLines
from sim.cluster.session_times import SimulatedSessions
from sim.site import SimSite


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A job, with further data for its report."""

    job: Job
    seed: int
    aggregator: str | None
    """Name of the choice; None: the pipeline names its nodes, or has none beside the experts."""
    runs: bool
    """False: the plan is only explained."""
    report: str | None
    """An additional report: replay, against a log's own times."""
    setting: CalibrationContext
    """The settings that its answers depend on."""
    calibration: Calibration | None = None
    """Of budgets and hedge, if configured: the choice, and its basis."""


def build_job(
    config: Mapping[str, Any],
    journal: Path | None = None,
    overrides: Sequence[str] = (),
) -> RunSpec:
    """Build the values of a run.

    Parameters
    ----------
    config
        Resolved.
    journal
        Where a real run keeps its finished calls.
    overrides
        The user's settings; those without an effect on the run are refused.

    Raises
    ------
    ValueError, TypeError, MosaicError
        Naming the field, the rule and the value.
    """
    given = resolve_ray(section(config, Sections))
    profile = given.profile
    rule = f"1 where profile.path={profile.path!r} names a profile"
    require(profile.path is None or profile.length_error == 1, "profile.length_error", rule, profile.length_error)
    experts = _pool(given.pool)
    made = machines(given.cluster, given.hardware)
    report = given.workload.get("report")
    require(report in (None, "replay"), "workload.report", "null or replay", report)
    source = {key: value for key, value in given.workload.items() if key not in ("aggregator", "report")}
    workload: Workload = make_once(source, "workload")
    if source.get("bad_lines") == BadLines.LEAVE_OUT:
        workload = without_misfits(workload, experts)
    backend = backend_from(given.backend)
    pipeline = pipeline_from(given, experts, made, backend, workload)
    inputs = SiteInputs(
        workload=workload,
        calibration=lambda: _calibration_part(source, workload),
        experts=experts,
        machines=made,
        graph=pipeline.graph,
        world=once(config["world"], "world", lambda: simulated_world(given.world)),
        seed=given.seed,
        profile_seed=profile.seed,
        length_error=profile.length_error,
        journal=journal,
    )
    site = backend.site(inputs)
    setting = _setting(source.get("name", workload.name), workload, experts, pipeline, site)
    job = with_profiles(_job(given, inputs, pipeline, site, backend.options), profile, config)
    check_effects(overrides, config, job)
    return RunSpec(
        job=job,
        seed=given.seed,
        aggregator=given.aggregator["name"] if pipeline.placements else None,
        runs=backend.runs,
        report=report,
        setting=setting,
        calibration=pipeline.calibration,
    )


def _job(given: Sections, inputs: SiteInputs, pipeline: Pipeline, site: Site, options: EngineOptions) -> Job:
    profile, (cluster, kinds, _) = given.profile, inputs.machines
    return Job(
        workload=inputs.workload,
        experts=inputs.experts,
        cluster=cluster,
        graph=pipeline.graph,
        scheduler=make(given.scheduler, "scheduler"),
        costs=partial(make(given.costs, "costs"), options=options),
        site=site,
        sweep=profile.sweep,
        profile_source=profile.source,
        max_batch_frac=profile.max_batch_frac,
        placements=pipeline.placements,
        plans=() if given.plan.path is None else load_plans(given.plan.path),
        reactions=given.pipeline.wanted,
        session_model=SimulatedSessions({kind.gpu.name: kind for kind in kinds}, cluster, options),
        host_loads=site.host_loads if isinstance(site, SimSite) else None,
        store=None if profile.store is None else Store(Path(profile.store)),
        summary=given.summary,
    )


def _pool(pool: PoolSection) -> tuple[Expert, ...]:
    for key, entry in pool.experts.items():
        require_group(entry, f"pool.experts.{key}")
    made = {key: make_once(entry, f"pool.experts.{key}") for key, entry in pool.experts.items()}
    for key, expert in made.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"pool.experts.{key}._target_ must make a mosaic.core.Expert, got {expert!r}")
    require_unique((expert.name for expert in made.values()), "pool.experts: name")
    return tuple(made.values())


def backend_from(config: Group) -> Backend:
    """Build the backend by its _target_, from the group's other keys."""
    target = import_callable(config.get(TARGET), f"backend.{TARGET}")
    made = target({key: value for key, value in config.items() if key not in (TARGET, "name")})
    if not isinstance(made, Backend):
        raise TypeError(f"backend.{TARGET} must make a mosaic.config.sites.Backend, got {made!r}")
    require(config.get("name") == made.name, "backend.name", f"{made.name}, as {config[TARGET]} is", config.get("name"))
    return made


def _calibration_part(source: Mapping[str, Any], workload: Workload) -> Workload:
    """Make the workload's calibration part; a workload without inputs provides its own questions."""
    if source.get("part") != "test":
        return workload
    calibration: Workload = make_once({**source, "part": "calibration"}, "workload")
    return calibration


def _setting(
    benchmark: str, workload: Workload, experts: tuple[Expert, ...], pipeline: Pipeline, site: Site
) -> CalibrationContext:
    """Describe the settings that the run's answers depend on, and check the calibration against them."""
    graph, calibration = pipeline.graph, pipeline.calibration
    context = describe_context(workload, experts, graph.nodes, benchmark=benchmark, answers=site.answers_source)
    check_rule(graph.rule, context)
    if calibration is not None:
        again = "gate=never pipeline.leave_one_out=true"
        path = calibration.promised.calibration
        check_same_context("pipeline.promise.calibration", path, load_context(path), context, again)
    return context


def simulated_job(overrides: Sequence[str]) -> tuple[Job, SimSite]:
    """Compose the job of a simulated point, for studies that change it.

    Raises
    ------
    ValueError, TypeError, MosaicError
        Naming the field, the rule and the value.
    """
    prepared = build_job(compose_config([*overrides]))
    site = prepared.job.site
    if not (isinstance(site, SimSite) and prepared.runs):
        raise ValueError(f"overrides must be those of a simulated backend (backend=sim), got {list(overrides)}")
    return prepared.job, site

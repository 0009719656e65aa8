"""Turns a resolved Hydra configuration into the plain values of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mosaic.config.compose import compose_config
from mosaic.config.effects import check_effects
from mosaic.config.exits import exit_from, no_embeddings
from mosaic.config.instantiation import TARGET, call, import_callable, make, make_once, once
from mosaic.config.machines import asked_of_ray, is_ray, machines
from mosaic.config.pipeline import Pipeline, check_prefill_ahead, check_upper_profile, pipeline_from
from mosaic.config.saved_profile import first_profile, upper_profile
from mosaic.config.sections import (
    PlanSection,
    PoolSection,
    ProfileSection,
    PromiseSection,
    RaySection,
    Sections,
    require_group,
    section,
)
from mosaic.config.sites import Backend, Parts
from mosaic.config.world import simulated_world
from mosaic.core.checks import require, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.workload import AGGREGATE, PROPOSE, Expert, Workload
from mosaic.pipelines.budget_choice import Calibration, Kinds, budgeted
from mosaic.pipelines.call_graph import CallGraph, PrefillOrder
from mosaic.pipelines.rules.calibration_file import (
    CalibrationContext,
    check_other_questions,
    check_rule,
    check_same_context,
    describe_context,
    load_context,
)
from mosaic.pipelines.rules.rule import Promised
from mosaic.planning.feasibility import check_calls
from mosaic.planning.plan_file import load_plans
from mosaic.runtime.job import Job, Reaction
from mosaic.runtime.planner import CostFactory
from mosaic.runtime.site import Site
from mosaic.runtime.store import Store
from mosaic.runtime.sweep import Sweep
from sim.cluster.session_times import SimulatedSessions
from sim.hardware.hardware import Hardware
from sim.site import SimSite


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A job, with what a report says of it beside."""

    job: Job
    seed: int
    aggregator: str | None
    """Name of the choice."""
    runs: bool
    """False: the plan is only explained."""
    report: str | None
    """What is reported beside: replay, against a log's own times."""
    setting: CalibrationContext
    """What its answers are of."""
    calibration: Calibration | None = None
    """Of budgets and hedge, where they are wanted: what was chosen, and on what."""


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
        Where a real run keeps what has finished.
    overrides
        What a user sets; what has no effect on the run is refused.

    Raises
    ------
    ValueError, TypeError, MosaicError
        Naming the field, the rule and the value.
    """
    config = asked_of_ray(config)
    given = section(config, Sections, "")
    profile = _profile(given)
    experts = _pool(section(given.pool, PoolSection, "pool"))
    cluster, kinds = machines(config)
    source, report = _source(given)
    workload = make_once(source, "workload")
    backend = backend_from(given.backend)
    pipeline = pipeline_from(config, experts, cluster, kinds[0], backend.options, workload)
    check_calls(workload, experts, cluster, backend.options)
    pipeline, calibration = _steered(config, pipeline, backend, experts, workload, cluster)
    site = backend.site(
        Parts(
            options=backend.options,
            workload=workload,
            calibration=lambda: _calibration(source, workload),
            experts=experts,
            cluster=cluster,
            hardware=kinds[0],
            more_hardware=kinds[1:],
            graph=pipeline.graph,
            world=once(given.world, "world", lambda: simulated_world(given.world)),
            seed=given.seed,
            profile_seed=profile.seed,
            length_error=profile.length_error,
            journal=journal,
            ray=section(given.cluster, RaySection, "cluster") if is_ray(config) else None,
        )
    )
    setting = _setting(source.get("name", workload.name), workload, experts, pipeline, calibration, site)
    job = _job(given, profile, pipeline, backend, site, workload, experts, cluster, kinds)
    job = _with_profiles(job, profile, config, pipeline)
    check_effects(overrides, config, job)
    return RunSpec(
        job=job,
        seed=given.seed,
        aggregator=pipeline.aggregator,
        runs=backend.runs,
        report=report,
        setting=setting,
        calibration=calibration,
    )


def _setting(
    benchmark: str,
    workload: Workload,
    experts: tuple[Expert, ...],
    pipeline: Pipeline,
    calibration: Calibration | None,
    site: Site,
) -> CalibrationContext:
    """Describe what the run's answers are of, and check that what was calibrated is of the same."""
    nodes = pipeline.graph.nodes
    context = describe_context(workload, experts, nodes, benchmark=benchmark, answers=site.answers_source)
    check_rule(pipeline.graph.rule, context)
    if calibration is not None:
        again = "gate=never pipeline.leave_one_out=true"
        path = calibration.promised.calibration
        check_same_context("pipeline.promise.calibration", path, load_context(path), context, again)
    return context


def _job(
    given: Sections,
    profile: ProfileSection,
    pipeline: Pipeline,
    backend: Backend,
    site: Site,
    workload: Workload,
    experts: tuple[Expert, ...],
    cluster: Cluster,
    kinds: Sequence[Hardware],
) -> Job:
    plan = section(given.plan, PlanSection, "plan")
    costs: CostFactory = make(given.costs, "costs")
    return Job(
        workload=workload,
        experts=experts,
        cluster=cluster,
        graph=pipeline.graph,
        scheduler=make(given.scheduler, "scheduler"),
        costs=partial(costs, options=backend.options),
        site=site,
        sweep=call(Sweep, "profile.sweep", **profile.sweep),
        profile_source=profile.source,
        max_batch_frac=profile.max_batch_frac,
        placements=pipeline.placements,
        plans=() if plan.path is None else load_plans(plan.path),
        reactions=pipeline.reactions,
        session_model=SimulatedSessions({kind.gpu.name: kind for kind in kinds}, cluster, backend.options),
        host_loads=site.host_loads if isinstance(site, SimSite) else None,
        store=None if profile.store is None else Store(Path(profile.store)),
    )


def _with_profiles(job: Job, profile: ProfileSection, config: Mapping[str, Any], pipeline: Pipeline) -> Job:
    """Add the profiles that are given."""
    if profile.path is not None:
        first = first_profile(profile.path, config, job.cluster, job.graph, job.workload, job.experts)
        job = replace(job, profile=first)
    if profile.aggregator_path is not None:
        upper = upper_profile(profile.aggregator_path, config, job.cluster, job.graph)
        check_upper_profile(pipeline, upper, job.cluster)
        job = replace(job, upper_profile=upper)
    return job


def _profile(given: Sections) -> ProfileSection:
    profile = section(given.profile, ProfileSection, "profile")
    rule = f"1 where profile.path={profile.path!r} names a profile"
    require(profile.path is None or profile.length_error == 1, "profile.length_error", rule, profile.length_error)
    return profile


def _source(given: Sections) -> tuple[dict[str, Any], str | None]:
    """Give what makes the workload, and what is reported beside."""
    source = {key: value for key, value in given.workload.items() if key not in ("aggregator", "report")}
    report = given.workload.get("report")
    require(report in (None, "replay"), "workload.report", "null or replay", report)
    return source, report


def backend_from(config: Mapping[str, Any]) -> Backend:
    """Build the backend by its _target_, from the group's other keys."""
    target = import_callable(config.get(TARGET), f"backend.{TARGET}")
    made = target({key: value for key, value in config.items() if key not in (TARGET, "name")})
    if not isinstance(made, Backend):
        raise TypeError(f"backend.{TARGET} must make a mosaic.config.sites.Backend, got {made!r}")
    require(config.get("name") == made.name, "backend.name", f"{made.name}, as {config[TARGET]} is", config.get("name"))
    return made


def _steered(
    config: Mapping[str, Any],
    pipeline: Pipeline,
    backend: Backend,
    experts: tuple[Expert, ...],
    workload: Workload,
    cluster: Cluster,
) -> tuple[Pipeline, Calibration | None]:
    """Add what decides while a batch runs: early exit, budgets, and prompts that are laid out to be prefilled ahead."""
    graph, settings = pipeline.graph, pipeline.settings
    is_flat = config["topology"].get("layers") is None
    early = exit_from(config["exit"], experts, backend.embed_by or no_embeddings, is_flat=is_flat)
    if graph.upper_nodes and early is not None:
        graph = graph.with_exit(early)
    if settings.count_tokens and graph.upper_nodes:
        readers = {node.name for node in graph.layers[1]}
        nodes = tuple(replace(node, counts_tokens=node.name in readers) for node in graph.nodes)
        graph = replace(graph, nodes=nodes)
    check_other_questions(f"{graph.rule.key}.calibration", graph.rule.promise(), workload.questions)
    graph, calibration = _budgeted(
        graph, pipeline, experts, workload, cluster.num_workers * backend.options.max_num_seqs
    )
    if Reaction.PREFILL in pipeline.reactions:
        check_prefill_ahead(pipeline, config["backend"]["name"], backend.options)
        graph = replace(graph, prefill_order=PrefillOrder())
    if calibration is not None:
        check_other_questions("pipeline.promise.calibration", calibration.promised, workload.questions)
    return pipeline._replace(graph=graph), calibration


def _budgeted(
    graph: CallGraph, pipeline: Pipeline, experts: tuple[Expert, ...], workload: Workload, num_places: int
) -> tuple[CallGraph, Calibration | None]:
    """Choose the budgets and the hedge that are wanted."""
    kinds = Kinds(cuts=Reaction.BUDGETS in pipeline.reactions, hedges=Reaction.HEDGE in pipeline.reactions)
    if not any(kinds):
        return graph, None
    name = "pipeline.budgets" if kinds.cuts else "pipeline.hedge"
    rule = "null where nothing is aggregated, or pipeline.nodes names the nodes"
    require([node.name for node in graph.nodes] == [PROPOSE, AGGREGATE], name, rule, "calibrated")
    promised = graph.rule.promise()
    if promised is not None:
        return budgeted(graph, promised, kinds, experts, workload, num_places)
    promise = section(pipeline.settings.promise, PromiseSection, "pipeline.promise")
    if promise.calibration is None:
        raise ValueError(
            "pipeline.promise.calibration must name calibration answers where budgets are wanted, got None: they "
            "are chosen on other questions than the batch's. Of a published workload this command makes some, with "
            "workload.part=calibration gate=never pipeline.leave_one_out=true"
        )
    promised = Promised(
        calibration=promise.calibration,
        accepted_loss_frac=promise.accepted_loss_frac,
        risk_frac=promise.risk_frac,
        fit_frac=promise.fit_frac,
    )
    return budgeted(graph, promised, kinds, experts, workload, num_places)


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


def _calibration(source: Mapping[str, Any], workload: Workload) -> Workload:
    """Make the workload again from its calibration part; one without parts lends its own questions."""
    if source.get("part") != "test":
        return workload
    calibration: Workload = make_once({**source, "part": "calibration"}, "workload")
    return calibration


def _pool(pool: PoolSection) -> tuple[Expert, ...]:
    for key, entry in pool.experts.items():
        require_group(entry, f"pool.experts.{key}")
    made = {key: make_once(entry, f"pool.experts.{key}") for key, entry in pool.experts.items()}
    for key, expert in made.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"pool.experts.{key}._target_ must make a mosaic.core.Expert, got {expert!r}")
    require_unique((expert.name for expert in made.values()), "pool.experts: name")
    return tuple(made.values())

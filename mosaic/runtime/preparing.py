"""Measures what is not given and plans the first layer: before a run, or in its first stretch."""

from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from mosaic.core.results import CallRecord
from mosaic.core.workload import CallKey, Expert, NodeName, Workload
from mosaic.pipelines.agreement import Agreement
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.node import Node
from mosaic.planning.expected_calls import plan_expected
from mosaic.planning.profiles import Profile
from mosaic.runtime.controller import Show, Tell
from mosaic.runtime.job import Job, ProfileSource, Reaction, shape_of
from mosaic.runtime.pilot import (
    Pilot,
    Stages,
    Unpriced,
    price_by_pilot,
    price_node_by_pilot,
    questions_of,
    why_not,
    why_not_kept,
)
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.rehearsal import Rehearsal, rehearse, sweep_node
from mosaic.runtime.sweep import measured_calls, sweep_first_layer

Step: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Times a step of a run."""
MANY_WORKERS = 100
"""From so many on a plan may take long enough to be announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run before its first layer: what was measured and planned of it."""

    planner: Planner
    planned: Planned
    pilot: Pilot
    rehearsal: Rehearsal


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Prices of calls that are not the batch's, where its own give none."""

    first: Profile | None = None
    upper: Mapping[NodeName, Profile] = field(default_factory=dict)
    rehearsal: Rehearsal = field(default_factory=Rehearsal)
    num_starts: int = 1
    """Of the run in this process: after other calls were measured it goes on from its journal."""


def has_pilot(job: Job) -> bool:
    """Tell whether a run begins with calls of the batch that price the others."""
    if job.quoted is not None and why_not_kept(job) is None:
        return True
    return job.profile is None and why_not(job, job.graph.first_calls(job.workload)) is None


def measure_and_plan(job: Job, show: Show, step: Step, tell: Tell) -> Begun:
    """Measure on calls that are not the batch's, and plan the first layer.

    Where a plan expects cancelled calls, calibration questions go through the pipeline first.
    """
    with step("profile"):
        profile = job.profile or _swept_profile(job, show, tell)
    with step("plan"):
        planner, planned = _plan_first(job, profile, Pilot(), tell)
        rehearsal = Rehearsal()
        if Reaction.QUORUM in job.reactions and job.graph.upper_nodes and not job.plans:
            rehearsal = _rehearse(job, planner, show, tell)
            agreement = Agreement(job.graph, rehearsal.questions, rehearsal.records.values())
            if agreement.is_ever_settled:
                expected = plan_expected(planned.scheduler, planned.problem, agreement.settled_frac)
                planned = planner.plan(job.graph.first_calls(job.workload), saved=expected)
        return Begun(planner=planner, planned=planned, pilot=Pilot(), rehearsal=rehearsal)


def measured_by_pilot(job: Job, given: Given, tell: Tell, begun: Set[CallKey]) -> Stages[Begun]:
    """Measure on the batch's own calls, and plan what they leave of the first layer.

    Parameters
    ----------
    job
        The batch.
    given
        What others had to price.
    tell
        Receives lines for who waits.
    begun
        Calls that earlier starts submitted.

    Raises
    ------
    Unpriced
        If others have to price something.
    """
    graph, site = job.graph, job.site
    source = f"{site.way} pilot of {job.workload.name} {site.circumstances}"
    pilot, profile = yield from price_by_pilot(job, _pool(job), source, begun, tell, job.profile or given.first)
    planner, planned = _plan_first(job, profile, pilot, tell)
    _, questions = questions_of(job, pilot)
    profiles = dict(planner.profiles)
    models = models_of(graph)
    for node in graph.upper_nodes:
        if job.upper_profile is not None or node.name in given.upper:
            profiles[node.name] = job.upper_profile or given.upper[node.name]
        elif models[node.name] != node.name:
            profiles[node.name] = profiles[models[node.name]]
        elif given.rehearsal.calls:
            raise Unpriced("one below it was not asked", pilot, node, planner)
        else:
            source = _source_of(job, node)
            pilot, profiles[node.name] = yield from price_node_by_pilot(
                job, node, planner, pilot, questions, source, tell
            )
    return Begun(planner=replace(planner, profiles=profiles), planned=planned, pilot=pilot, rehearsal=given.rehearsal)


def measure_otherwise(job: Job, missing: Unpriced, given: Given, show: Show, tell: Tell) -> Given:
    """Measure on other calls what the batch's own do not price."""
    given = replace(given, num_starts=given.num_starts + 1)
    node, planner, pilot = missing.node, missing.planner, missing.pilot
    if node is None or planner is None:
        return replace(given, first=_swept_profile(job, show, tell))
    tell(f"{node.name} is not priced by the batch's own calls: {missing.reason}")
    whole = pilot.whole_questions(job.workload, job.graph.first_calls(job.workload))
    known = whole if whole.questions else None
    rehearsal = given.rehearsal
    if not rehearsal.calls:
        rehearsal = _rehearse(job, planner, show, tell, known, pilot.records)
    profile = _sweep_node(job, node, planner, rehearsal, show, tell)
    return replace(given, upper={**given.upper, node.name: profile}, rehearsal=rehearsal)


def _rehearse(
    job: Job,
    planner: Planner,
    show: Show,
    tell: Tell,
    asked: Workload | None = None,
    answered: Mapping[CallKey, CallRecord] | None = None,
) -> Rehearsal:
    most = measured_calls(len(job.workload.questions), _max_batch_frac(job))
    return rehearse(job.graph, planner, job.site, show, asked=asked, answered=answered, max_questions=most, tell=tell)


def _sweep_node(job: Job, node: Node, planner: Planner, rehearsal: Rehearsal, show: Show, tell: Tell) -> Profile:
    """Measure an upper node, with no more than a share of the calls that the batch is expected to have for it."""
    num_calls = round(rehearsal.needed_frac[node.name] * len(job.workload.questions))
    most, source = measured_calls(num_calls, _max_batch_frac(job)), _source_of(job, node)
    return sweep_node(node, rehearsal, job.graph, planner, job.site, source, show, max_calls=most, tell=tell)


def _plan_first(job: Job, profile: Profile, pilot: Pilot, tell: Tell) -> tuple[Planner, Planned]:
    """Plan what a pilot leaves of the first layer."""
    first = tuple(call for call in job.graph.first_calls(job.workload) if call.key not in pilot.records)
    if job.cluster.num_workers >= MANY_WORKERS and not job.plans:
        tell(f"planning: {job.scheduler.name}, {len(first):,} calls on {job.cluster.num_workers:,} workers")
    planner = _planner_of(job, profile)
    if job.choose_plan is None or job.plans:
        return planner, planner.plan(first, saved=job.plans[0] if job.plans else None)
    return planner, job.choose_plan(planner, first, pilot, tell)


def _planner_of(job: Job, profile: Profile) -> Planner:
    """Make the planner of a job whose first layer has this profile."""
    return Planner(
        experts=_pool(job),
        cluster=job.cluster,
        scheduler=job.scheduler,
        costs=job.costs,
        profiles=dict.fromkeys(job.graph.first_nodes, profile),
        by_node=job.placements,
        session_model=job.session_model,
        host_loads=job.host_loads,
    )


def _swept_profile(job: Job, show: Show, tell: Tell) -> Profile:
    """Price the first layer by other calls.

    Raises
    ------
    ValueError
        If only the batch's own may be measured, and they cannot be.
    """
    first = job.graph.first_calls(job.workload)
    reason = why_not(job, first)
    if reason is not None and job.profile_source is ProfileSource.BATCH:
        raise ValueError(f"profile.source must be auto or calibration here, got 'batch': {reason}")
    if reason is not None and job.profile_source is ProfileSource.AUTO:
        tell(f"none of the batch's own calls are measured: {reason}")
    source = f"{job.site.way} sweep of {job.workload.name} {job.site.circumstances}"
    asked = [call.expert for call in first], [call.prompt_tokens for call in first]
    sweep = partial(sweep_first_layer, job.sweep, first, _pool(job), job.cluster, job.site, source, show)
    most, budgets = _max_batch_frac(job), job.graph.budgets
    fits = job.costs(profile=Profile(source="none yet", entries=()), num_calls_by_expert={}).fits
    return job.kept(
        ("first layer", job.sweep, source, budgets, *asked),
        Profile,
        lambda: sweep(budgets=budgets, max_batch_frac=most, fits=fits, tell=tell),
    )


def _source_of(job: Job, node: Node) -> str:
    """Say where the price of an upper node comes from."""
    return (
        f"{job.site.way} {node.name} of {job.workload.name} after gate={job.graph.rule.name} {job.site.circumstances}"
    )


def _max_batch_frac(job: Job) -> float | None:
    return None if job.site.way == "simulated" else job.max_batch_frac


def _pool(job: Job) -> tuple[Expert, ...]:
    """Give the pool, and experts that only the graph names."""
    known = {expert.name for expert in job.experts}
    return (*job.experts, *(expert for expert in job.graph.experts if expert.name not in known))


def measure_profiles(job: Job, show: Show, tell: Tell) -> Mapping[NodeName, Profile]:
    """Measure on calls that are not the batch's, and plan nothing of the batch."""
    planner = _planner_of(job, job.profile or _swept_profile(job, show, tell))
    return price_upper_nodes(job, planner, Rehearsal(), show, tell)[0].profiles


def price_upper_nodes(
    job: Job, planner: Planner, rehearsal: Rehearsal, show: Show, tell: Tell
) -> tuple[Planner, Rehearsal]:
    """Measure the nodes that read others, where no profile of them is given.

    Raises
    ------
    InfeasibleError, ProfileError, BackendError
        If something cannot be measured, or no plan exists for what calibration needs.
    """
    graph, given = job.graph, job.upper_profile
    profiles = dict(planner.profiles)
    if graph.upper_nodes and Reaction.NO_BARRIER in job.reactions and not rehearsal.calls:
        rehearsal = _rehearse(job, planner, show, tell)
    models = models_of(graph)
    for node in graph.upper_nodes:
        if given is not None or models[node.name] != node.name:
            profiles[node.name] = given or profiles[models[node.name]]
            continue

        def measure(node: Node = node) -> Profile:
            nonlocal rehearsal
            if not rehearsal.calls:
                rehearsal = _rehearse(job, planner, show, tell)
            return _sweep_node(job, node, planner, rehearsal, show, tell)

        decided_by = (node.name, shape_of(graph), job.workload, planner.degrees(node.name, node.experts[0]))
        profiles[node.name] = job.kept((_source_of(job, node), *decided_by), Profile, measure)
    return replace(planner, profiles=profiles), rehearsal


def models_of(graph: CallGraph) -> dict[NodeName, NodeName]:
    """Give by upper node the first of its layer that is measured for it: who is asked the same way costs as much.

    These are nodes of the same experts, that read as many responses and run under the same condition.
    """
    first: dict[object, NodeName] = {}
    num_read = {node.name: len(node.experts) for node in graph.nodes}
    return {
        node.name: first.setdefault(
            (depth, node.experts, sum(map(num_read.__getitem__, node.after)), node.when, node.min_output_tokens),
            node.name,
        )
        for depth, layer in enumerate(graph.layers)
        for node in layer
        if node.after
    }

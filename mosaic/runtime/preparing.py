"""Before a run: measures what is not given, and plans the first layer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from mosaic.core.errors import DisturbedSweepError
from mosaic.core.workload import Call, Expert, NodeName
from mosaic.pipelines.agreement import Agreement
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.node import Node
from mosaic.planning.expected_calls import plan_expected
from mosaic.planning.profiles import Profile
from mosaic.runtime.job import Job, ProfileSource, Reaction, shape_of
from mosaic.runtime.measuring import Rehearsal, Show, Tell, rehearse, sweep_first_layer, sweep_node
from mosaic.runtime.pilot import profile_of, why_not
from mosaic.runtime.pilot_stages import Pilot
from mosaic.runtime.piloting import pilot_first_layer, pilot_node, questions_of
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.sweep import measured_calls
from mosaic.runtime.taking_over import node_profile, take_over, why_not_taken

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


def prepare(job: Job, show: Show, step: Step, tell: Tell) -> Begun:
    """Measure and plan the first layer, or what a pilot leaves; where a plan expects cancelled calls, rehearse."""
    job.graph.rule.load()
    first = job.graph.first_calls(job.workload)
    with step("profile"):
        pilot, profile = _first_profile(job, first, show, tell)
        first = tuple(call for call in first if call.key not in pilot.records)
    if job.cluster.num_workers >= MANY_WORKERS and not job.plans:
        tell(f"planning: {job.scheduler.name}, {len(first):,} calls on {job.cluster.num_workers:,} workers")
    with step("plan"):
        planner = Planner(
            experts=_pool(job),
            cluster=job.cluster,
            scheduler=job.scheduler,
            costs=job.costs,
            profiles=dict.fromkeys(job.graph.first_nodes, profile),
            by_node=job.placements,
            session_model=job.session_model,
            host_loads=job.host_loads,
        )
        if job.choose_plan is None or job.plans:
            planned = planner.plan(first, saved=job.plans[0] if job.plans else None)
        else:
            planned = job.choose_plan(planner, first, pilot, tell)
        rehearsal = Rehearsal()
        if Reaction.QUORUM in job.reactions and job.graph.upper_nodes and not job.plans:
            rehearsal = rehearse(job.graph, planner, job.site, show, max_questions=_most_rehearsed(job), tell=tell)
            agreement = Agreement(job.graph, rehearsal.questions, rehearsal.records.values())
            if agreement.is_ever_settled:
                expected = plan_expected(planned.scheduler, planned.problem, agreement.settled_frac)
                planned = planner.plan(first, saved=expected)
        return Begun(planner=planner, planned=planned, pilot=pilot, rehearsal=rehearsal)


def _first_profile(job: Job, first: Sequence[Call], show: Show, tell: Tell) -> tuple[Pilot, Profile]:
    """Price the first layer by the batch's own calls, by others, or by what is given."""
    pilot = _quoted(job, first, show, tell)
    if job.profile is not None:
        return pilot, job.profile
    source = f"{job.site.way} pilot of {job.workload.name} {job.site.circumstances}"
    if pilot.stages:
        try:
            return pilot, profile_of(job, _pool(job), pilot, source)
        except DisturbedSweepError as error:
            tell(f"the quote does not price the batch: {error}")
    reason = why_not(job, [call for call in first if call.key not in pilot.records])
    if reason is None:
        pilot, profile = pilot_first_layer(job, first, _pool(job), source, show, tell, pilot)
        if profile is not None:
            return pilot, profile
    elif job.profile_source is ProfileSource.BATCH:
        raise ValueError(f"profile.source must be auto or calibration here, got 'batch': {reason}")
    elif job.profile_source is ProfileSource.AUTO:
        tell(f"none of the batch's own calls are measured: {reason}")
    source = f"{job.site.way} sweep of {job.workload.name} {job.site.circumstances}"
    asked = [call.expert for call in first], [call.prompt_tokens for call in first]
    sweep = partial(sweep_first_layer, job.sweep, first, _pool(job), job.cluster, job.site, source, show)
    most, budgets = _max_batch_frac(job), job.graph.budgets
    fits = job.costs(profile=Profile(source="none yet", entries=()), num_calls_by_expert={}).fits
    return pilot, job.kept(
        ("first layer", job.sweep, source, budgets, *asked),
        Profile,
        lambda: sweep(budgets=budgets, max_batch_frac=most, fits=fits, tell=tell),
    )


def _quoted(job: Job, first: Sequence[Call], show: Show, tell: Tell) -> Pilot:
    """Take over what a quote has asked."""
    if not job.asked:
        return Pilot()
    if (reason := why_not_taken(job, first)) is not None:
        tell(f"quote: its answers are not taken over: {reason}")
        return Pilot()
    pilot = take_over(job, first, show)
    tell(f"quote: {len(pilot.records):,} calls of the batch were asked before, and are not asked again")
    return pilot


def _max_batch_frac(job: Job) -> float | None:
    return None if job.site.way == "simulated" else job.max_batch_frac


def _most_rehearsed(job: Job) -> int | None:
    return measured_calls(len(job.workload.questions), _max_batch_frac(job))


def _pool(job: Job) -> tuple[Expert, ...]:
    """Give the pool, and experts that only the graph names."""
    known = {expert.name for expert in job.experts}
    return (*job.experts, *(expert for expert in job.graph.experts if expert.name not in known))


def price_upper_nodes(job: Job, begun: Begun, show: Show, tell: Tell) -> Begun:
    """Measure the nodes that read others, where no profile of them is given.

    Raises
    ------
    InfeasibleError, ProfileError, BackendError
        If something cannot be measured, or no plan exists for what calibration needs.
    """
    graph, site, given = job.graph, job.site, job.upper_profile
    planner, rehearsal = begun.planner, begun.rehearsal
    if begun.pilot.stages and given is None:
        return _with_piloted_profiles(job, begun, show, tell)
    most = _most_rehearsed(job)
    upper = graph.upper_nodes
    profiles = dict(planner.profiles)
    if upper and Reaction.NO_BARRIER in job.reactions and not rehearsal.calls:
        rehearsal = rehearse(graph, planner, site, show, max_questions=most, tell=tell)
    models = models_of(graph)
    for node in upper:
        if given is not None or models[node.name] != node.name:
            profiles[node.name] = given or profiles[models[node.name]]
            continue
        what = f"{node.name} of {job.workload.name} after gate={graph.rule.name}"
        source = f"{site.way} {what} {site.circumstances}"

        def measure(node: Node = node, source: str = source) -> Profile:
            nonlocal rehearsal
            if not rehearsal.calls:
                rehearsal = rehearse(graph, planner, site, show, max_questions=most, tell=tell)
            return sweep_node(node, rehearsal, graph, planner, site, source, show, max_calls=most, tell=tell)

        decided_by = (node.name, shape_of(graph), job.workload, planner.degrees(node.name, node.experts[0]))
        profiles[node.name] = job.kept((source, *decided_by), Profile, measure)
    return replace(begun, planner=replace(planner, profiles=profiles), rehearsal=rehearsal)


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


def _with_piloted_profiles(job: Job, begun: Begun, show: Show, tell: Tell) -> Begun:
    """Price upper nodes by calls that the pilot's questions need of them; by others' where these are too few."""
    graph, site, planner, pilot = job.graph, job.site, begun.planner, begun.pilot
    asked, questions = questions_of(job, pilot, graph.first_calls(job.workload))
    profiles = dict(planner.profiles)
    rehearsal = begun.rehearsal
    models = models_of(graph)
    for node in graph.upper_nodes:
        if models[node.name] != node.name:
            profiles[node.name] = profiles[models[node.name]]
            continue
        source = f"{site.way} {node.name} of {job.workload.name} after gate={graph.rule.name} {site.circumstances}"
        found: Profile | str = "one below it was not asked"
        quoted = node_profile(job, node, planner.degrees(node.name, node.experts[0]), pilot, source)
        if quoted is not None:
            found = quoted
        elif not rehearsal.calls:
            pilot, found = pilot_node(job, node, planner, pilot, questions, source, show, tell)
        if isinstance(found, str):
            tell(f"{node.name} is not priced by the batch's own calls: {found}")
            if not rehearsal.calls:
                known = asked if asked.questions else None
                most = _most_rehearsed(job)
                rehearsal = rehearse(
                    graph, planner, site, show, asked=known, answered=pilot.records, max_questions=most, tell=tell
                )
            expected = round(rehearsal.needed_frac[node.name] * len(job.workload.questions))
            most = measured_calls(expected, job.max_batch_frac)
            found = sweep_node(node, rehearsal, graph, planner, site, source, show, max_calls=most, tell=tell)
        profiles[node.name] = found
    return replace(begun, planner=replace(planner, profiles=profiles), pilot=pilot, rehearsal=rehearsal)

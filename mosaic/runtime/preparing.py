"""Measures missing profiles and plans the first layer, in stages: before a run, or at its beginning."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import TypeAlias

from mosaic.core.errors import DisturbedSweepError
from mosaic.core.workload import Expert, ExpertName, NodeName
from mosaic.pipelines.agreement import Agreement
from mosaic.pipelines.call_graph import CallGraph
from mosaic.planning.expected_calls import plan_expected
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.runtime.controller import Log
from mosaic.runtime.job import Job, ProfileSource, Reaction, shape_of
from mosaic.runtime.pilot import price_by_pilot, profile_of, why_not, why_not_kept
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.rehearsal import Rehearsal, price_by_pilot_questions, price_by_rehearsal, rehearse
from mosaic.runtime.site import prompts_of
from mosaic.runtime.stages import OtherCalls, Pilot, Stage, Stages, undisturbed
from mosaic.runtime.sweep import Row, Sweep, rows_of, sweep_calls
from mosaic.runtime.unpriced import sessions_by_size

Step: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Times a step of a run."""
MANY_WORKERS = 100
"""From so many workers on, a plan may take long enough to be announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A run before its first layer: its measurements and its plan."""

    planner: Planner
    planned: Planned
    pilot: Pilot
    rehearsal: Rehearsal


def measure_and_plan(job: Job, step: Step, log: Log) -> Stages[Begun]:
    """Measure all missing profiles, and plan the first layer."""
    begun = yield from plan_first_layer(job, step, log)
    with step("profile_upper"):
        planner, pilot, rehearsal = yield from price_upper_nodes(job, begun.planner, begun.pilot, begun.rehearsal, log)
    return replace(begun, planner=planner, pilot=pilot, rehearsal=rehearsal)


def plan_first_layer(job: Job, step: Step, log: Log) -> Stages[Begun]:
    """Measure the first layer if it has no profile, and plan it.

    If a plan takes cancelled calls into account, calibration questions run through the pipeline first.

    Parameters
    ----------
    job
        The batch.
    step
        Times the steps.
    log
        Receives lines for the user.

    Raises
    ------
    ValueError
        If only the batch's own calls may be measured, and they cannot be.
    """
    with step("profile"):
        pilot, profile = yield from _price_first_layer(job, log)
    with step("plan"):
        planner = _planner_of(job, profile)
        planned, rehearsal = _plan_first(job, planner, pilot, log), Rehearsal()
        if Reaction.QUORUM in job.reactions and job.graph.upper_nodes and not job.plans:
            rehearsal = yield from rehearse(job, planner, pilot)
            agreement = Agreement(job.graph, rehearsal.questions, rehearsal.records.values())
            if agreement.is_ever_settled:
                expected = plan_expected(planned.scheduler, planned.problem, agreement.settled_frac)
                planned = planner.plan(job.graph.first_calls(job.workload), saved=expected)
    return Begun(planner=planner, planned=planned, pilot=pilot, rehearsal=rehearsal)


def measure_profiles(job: Job, log: Log) -> Stages[Mapping[NodeName, Profile]]:
    """Measure on calls outside the batch, without a plan for the batch."""
    profile = job.profile or (yield from _sweep(job, log))
    planner, _, _ = yield from price_upper_nodes(job, _planner_of(job, profile), Pilot(), Rehearsal(), log)
    return planner.profiles


def _price_first_layer(job: Job, log: Log) -> Stages[tuple[Pilot, Profile]]:
    """Price the first layer by calls of the batch if their answers can be kept, and by other calls otherwise."""
    source = f"{job.site.kind} pilot of {job.workload.name} {job.site.description}"
    quoted = pilot = Pilot()
    profile = job.profile
    if job.quoted is not None and why_not_kept(job) is None:
        quoted = pilot = yield from job.quoted(job)
        log(f"quote: {len(pilot.records):,} calls of the batch have been answered, and are not sent again")
        if profile is None:
            try:
                profile = profile_of(job, _pool(job), pilot, source)
            except DisturbedSweepError as error:
                log(f"the quote does not price the batch: {error}")
    left = [call for call in job.graph.first_calls(job.workload) if call.key not in pilot.records]
    if profile is None and why_not(job, left) is None:
        pilot, profile = yield from price_by_pilot(job, _pool(job), pilot, source, log)
    if profile is None:
        profile = yield from _sweep(job, log)
    return replace(pilot, merging=quoted.merging), profile


def _sweep(job: Job, log: Log) -> Stages[Profile]:
    """Price the first layer by other calls.

    Each expert gets at most a share of its number of calls, but a few in any case. Experts are measured at each of
    their degrees and on each kind of GPU that can hold them. Calls have the batch's budgets, so prices are for output
    within the budgets.

    Raises
    ------
    ValueError
        If only the batch's own calls may be measured, and they cannot be.
    """
    first = job.graph.first_calls(job.workload)
    reason = why_not(job, first)
    if reason is not None and job.profile_source is ProfileSource.BATCH:
        raise ValueError(f"profile.source must be auto or calibration here, got 'batch': {reason}")
    if reason is not None and job.profile_source is ProfileSource.AUTO:
        log(f"none of the batch's own calls are measured: {reason}")
    source = f"{job.site.kind} sweep of {job.workload.name} {job.site.description}"
    called = [call.expert for call in first], [call.prompt_tokens for call in first]
    decided_by = "first layer", job.sweep, source, job.graph.budgets, *called
    profile = job.kept(decided_by, Profile)
    if profile is None:
        sweeps = job.sweep.by_expert(first, job.max_swept_frac)
        swept = [expert for expert in _pool(job) if expert.name in sweeps]
        fits = job.costs(profile=Profile(source="none yet", entries=()), num_calls_by_expert={}).fits
        entries: list[ProfileEntry] = []
        for row in rows_of(swept, job.cluster, job.site.swept_places, fits):
            stage_of = partial(_sweep_stage, job, row, sweeps)
            priced = partial(profile_of, job, row.experts, source=source)
            entries += (yield from undisturbed(stage_of, priced, log)).entries
        profile = Profile(source=source, entries=tuple(entries))
        job.keep(decided_by, profile)
    return profile


def _sweep_stage(job: Job, row: Row, sweeps: Mapping[ExpertName, Sweep]) -> Stage:
    """Make the stage in which experts that are measured together answer calibration questions in turn."""
    swept = job.site.swept_questions()
    prompt_tokens = [tokens for _, tokens in swept]
    names = [expert.name for expert in row.experts]
    shards = {name: list(sweep_calls(sweeps[name], name, prompt_tokens)) for name in names}
    mine = [[call for shard in own for call in shard] for own in shards.values()]
    in_turn = (pair for own in mine for pair in zip(own, cycle(swept), strict=False))
    questions = {call.key.question: question for call, (question, _) in in_turn}
    calls = tuple(call for own in mine for call in own)
    prompts = prompts_of(job.graph, questions)
    other = OtherCalls(
        name=row.name, why="to price sessions", given_by="profile.path", questions=questions, prompts=prompts
    )
    places = {expert.name: row.places(expert) for expert in row.experts}  # as many as its replica cap allows
    return Stage("profiling", sessions_by_size(shards, row.experts, lambda expert: places[expert.name]), calls, other)


def _plan_first(job: Job, planner: Planner, pilot: Pilot, log: Log) -> Planned:
    """Plan the calls of the first layer that a pilot leaves."""
    first = tuple(call for call in job.graph.first_calls(job.workload) if call.key not in pilot.records)
    if job.cluster.num_workers >= MANY_WORKERS and not job.plans:
        log(f"planning: {job.scheduler.name}, {len(first):,} calls on {job.cluster.num_workers:,} workers")
    if job.choose_plan is None or job.plans:
        return planner.plan(first, saved=job.plans[0] if job.plans else None)
    return job.choose_plan(planner, first, pilot, log)


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


def _pool(job: Job) -> tuple[Expert, ...]:
    """Return the pool, and experts that only the graph names."""
    known = {expert.name for expert in job.experts}
    return (*job.experts, *(expert for expert in job.graph.experts if expert.name not in known))


def price_upper_nodes(
    job: Job, planner: Planner, pilot: Pilot, rehearsal: Rehearsal, log: Log
) -> Stages[tuple[Planner, Pilot, Rehearsal]]:
    """Measure the nodes that read others, if they have no profile.

    The questions of a pilot price them, if enough of these questions need them; otherwise a rehearsal on other calls
    does.

    Raises
    ------
    InfeasibleError, ProfileError, BackendError
        If a measurement fails, or no plan exists for calibration.
    """
    graph, given = job.graph, job.upper_profile
    profiles, models = dict(planner.profiles), models_of(graph)
    if graph.upper_nodes and Reaction.NO_BARRIER in job.reactions and not rehearsal.calls:
        rehearsal = yield from rehearse(job, planner, pilot)
    for node in graph.upper_nodes:
        if given is not None or models[node.name] != node.name:
            profiles[node.name] = given or profiles[models[node.name]]
            continue
        source = (
            f"{job.site.kind} {node.name} of {job.workload.name} after gate={graph.rule.name} {job.site.description}"
        )
        degrees = planner.degrees(node.name, node.experts[0])
        decided_by = source, node.name, shape_of(graph), job.workload, degrees
        found: Profile | str | None
        if not pilot.num_sessions:
            found = job.kept(decided_by, Profile)
        elif rehearsal.calls:
            found = "one below it was not called"
        else:
            pilot, found = yield from price_by_pilot_questions(job, node, planner, pilot, source)
        if isinstance(found, str):
            log(f"{node.name} is not priced by the batch's own calls: {found}")
        if not isinstance(found, Profile):
            if not rehearsal.calls:
                rehearsal = yield from rehearse(job, planner, pilot)
            found = yield from price_by_rehearsal(job, node, planner, rehearsal, source, log)
            if not pilot.num_sessions:
                job.keep(decided_by, found)
        profiles[node.name] = found
    return replace(planner, profiles=profiles), pilot, rehearsal


def models_of(graph: CallGraph) -> dict[NodeName, NodeName]:
    """Return by upper node the first node of its layer that is measured for it: equal nodes have equal costs.

    Equal nodes have the same experts, read the same number of responses and run under the same condition.
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

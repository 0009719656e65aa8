"""From a workload to answers: measure, plan, run. What a run is made of comes in as plain values."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeAlias

from mosaic.core.plan import Plan, PredictedTimes
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import Expert, NodeName
from mosaic.pipelines.agreement import Agreement
from mosaic.pipelines.final_answers import FinalAnswer, accuracy_frac
from mosaic.pipelines.node import Node
from mosaic.planning.expected_calls import plan_expected
from mosaic.planning.profiles import Profile
from mosaic.runtime.controller import Controller
from mosaic.runtime.hindsight import always_aggregate
from mosaic.runtime.job import Job, Outcome, shape_of
from mosaic.runtime.layers import Flow, Layers, Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.measuring import (
    Rehearsal,
    Show,
    Tell,
    prompts_of,
    rehearse,
    show_nothing,
    sweep_first_layer,
    sweep_node,
)
from mosaic.runtime.payback import paid_back
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.quorum import Quorum
from mosaic.runtime.replanning import Replanning

Step: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Times a step of a run."""
MANY_WORKERS = 100
"""From so many on a plan may take long enough to be announced."""


def plan(
    job: Job,
    *,
    show: Show = show_nothing,
    step: Step = lambda name: nullcontext(),
    tell: Tell = lambda line: None,
) -> Planned:
    """Plan the first layer, and measure its experts before where no profile is given.

    Raises
    ------
    InfeasibleError, PlanError, ProfileError, BackendError
        If no plan exists, a saved plan is of another batch, or something cannot be measured.
    """
    return _plan(job, show, step, tell)[1]


def measure(job: Job, *, show: Show = show_nothing, tell: Tell = lambda line: None) -> Mapping[NodeName, Profile]:
    """Measure what a run measures before it begins, or take what is given, by node.

    All that the sweep says is measured, whatever the batch could pay back: profiles are what is asked for.

    Raises
    ------
    InfeasibleError, PlanError, ProfileError, BackendError
        If something cannot be measured, or no plan exists for what calibration needs.
    """
    job = replace(job, max_batch_frac=None, has_quorum=False)
    planner, _, rehearsal = _plan(job, show, lambda name: nullcontext(), tell)
    return _with_upper_profiles(job, planner, rehearsal, show, tell)[0].profiles


def _plan(job: Job, show: Show, step: Step, tell: Tell) -> tuple[Planner, Planned, Rehearsal]:
    """Measure and plan the first layer; where a plan expects cancelled calls, after a rehearsal."""
    first = job.graph.first_calls(job.workload)
    with step("profile"):
        profile = job.profile
        if profile is None:
            source = f"{job.site.way} sweep of {job.workload.name} {job.site.circumstances}"
            profile = job.kept(
                (
                    "first layer",
                    job.sweep,
                    source,
                    [call.expert for call in first],
                    [call.prompt_tokens for call in first],
                ),
                Profile,
                lambda: sweep_first_layer(
                    job.sweep,
                    first,
                    _pool(job),
                    job.cluster,
                    job.site,
                    source,
                    show,
                    max_batch_frac=_max_batch_frac(job),
                    tell=tell,
                ),
            )
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
        )
        planned = planner.plan(first, saved=job.plans[0] if job.plans else None)
        rehearsal = Rehearsal()
        if job.has_quorum and job.graph.upper_nodes and not job.plans:
            rehearsal = rehearse(job.graph, planner, job.site, show, max_questions=_most_rehearsed(job), tell=tell)
            agreement = Agreement(job.graph, rehearsal.questions, rehearsal.records.values())
            if agreement.is_ever_settled:
                expected = plan_expected(planned.scheduler, planned.problem, agreement.settled_frac)
                planned = planner.plan(first, saved=expected)
        return planner, planned, rehearsal


def _max_batch_frac(job: Job) -> float | None:
    return None if job.site.way == "simulated" else job.max_batch_frac


def _most_rehearsed(job: Job) -> int | None:
    return paid_back(len(job.workload.questions), _max_batch_frac(job))


def _pool(job: Job) -> tuple[Expert, ...]:
    """Give the pool, and experts that only the graph names."""
    known = {expert.name for expert in job.experts}
    return (*job.experts, *(expert for expert in job.graph.experts if expert.name not in known))


def run(
    job: Job,
    *,
    controllers: Sequence[Controller] = (),
    show: Show = show_nothing,
    on_replan: Callable[[Plan, Mapping[int, str]], None] = lambda plan, lost: None,
    tick_s: float | None = None,
    step: Step = lambda name: nullcontext(),
    tell: Tell = lambda line: None,
) -> Outcome:
    """Measure what is not given, plan, and run to the end.

    Parameters
    ----------
    job
        What to run.
    controllers
        Who reacts while it lasts, beside the pipeline and the plan.
    show
        Shows what goes on.
    on_replan
        Told of each plan that is made because workers were lost.
    tick_s
        Seconds between ticks, for controllers that want them.
    step
        Wraps the steps profile, plan, profile_upper, execute, always_aggregate, to time them.
    tell
        Told what is measured before the batch, and what takes its time to plan, in lines to be read before.

    Raises
    ------
    InfeasibleError, PlanError, ProfileError, BackendError
        If no plan exists, a plan breaks the problem, or the site cannot run it.
    """
    planner, first, rehearsal = _plan(job, show, step, tell)
    graph, workload, site = job.graph, job.workload, job.site
    with step("profile_upper"):
        planner, rehearsal = _with_upper_profiles(job, planner, rehearsal, show, tell)
    known = {question.id: question for question in workload.questions}
    questions = Questions(workload, graph)
    planned: list[Planned] = []
    replans: list[tuple[Plan, Mapping[int, str]]] = []

    def note_replan(new: Plan, lost: Mapping[int, str]) -> None:
        replans.append((new, dict(lost)))
        on_replan(new, lost)

    predicted: dict[int, PredictedTimes] = {}

    def note_plan(made: Planned, first_session: int) -> None:
        planned.append(made)
        for session, times in zip(made.plan.sessions, made.plan.predicted, strict=True):
            predicted[session.id + first_session] = times

    if job.has_barrier:
        pipeline: Controller = Layers(questions, planner, (first.plan, *job.plans[1:]), note_plan)
    else:
        expected = graph.forecast(workload, rehearsal.needed_frac, rehearsal.prompt_tokens())
        pipeline = Flow(questions, planner, expected, note_plan, first.plan)
    with step("execute"), show("calls", predicted) as shown:
        backend = site.backend(known, prompts_of(graph, known))
        log = site.command_log()
        everybody = [pipeline, *([Quorum(questions)] if job.has_quorum else ()), *controllers, *shown]
        if site.way != "simulated":
            everybody.insert(1, Replanning(lambda calls, lost: planner.plan(calls, lost).plan, note_replan))
        result = drive(backend, everybody, num_workers=job.cluster.num_workers, log=log, tick_s=tick_s)
        result = replace(result, lower_bound_s=site.lower_bound_s(backend), first_nodes=graph.first_nodes)
    outcome = Outcome(planned=tuple(planned), result=result, replans=tuple(replans))
    if graph.upper_nodes:
        return _with_answers(job, planner, outcome, questions, step)
    return replace(outcome, answers=_by_majority(job, outcome.result, questions))


def _with_upper_profiles(
    job: Job, planner: Planner, rehearsal: Rehearsal, show: Show, tell: Tell
) -> tuple[Planner, Rehearsal]:
    graph, site, given = job.graph, job.site, job.upper_profile
    most = _most_rehearsed(job)
    upper = graph.upper_nodes
    profiles = dict(planner.profiles)
    if upper and not job.has_barrier and not rehearsal.calls:
        rehearsal = rehearse(graph, planner, site, show, max_questions=most, tell=tell)
    for node in upper:
        if given is not None:
            profiles[node.name] = given
            continue
        what = f"{node.name} of {job.workload.name} after gate={graph.gate.name}"
        source = f"{site.way} {what} {site.circumstances}"

        def measure(node: Node = node, source: str = source) -> Profile:
            nonlocal rehearsal
            if not rehearsal.calls:
                rehearsal = rehearse(graph, planner, site, show, max_questions=most, tell=tell)
            return sweep_node(node, rehearsal, graph, planner, site, source, show, max_calls=most, tell=tell)

        decided_by = (node.name, shape_of(graph), job.workload, planner.degrees(node.name, node.experts[0]))
        profiles[node.name] = job.kept((source, *decided_by), Profile, measure)
    return replace(planner, profiles=profiles), rehearsal


def _with_answers(job: Job, planner: Planner, outcome: Outcome, questions: Questions, step: Step) -> Outcome:
    ends = [job.graph.end(*questions.of(question.id)) for question in questions]
    answers = tuple(end.answer for end in ends)
    with step("always_aggregate"):
        always = always_aggregate(job, planner, outcome, questions, answers)
    return replace(
        outcome,
        answers=answers,
        ballots=tuple(end.ballot for end in ends),
        decisions=tuple(end.decision for end in ends),
        num_too_long=sum(end.is_too_long for end in ends),
        always=always,
    )


def _by_majority(job: Job, result: RunResult, questions: Questions) -> tuple[FinalAnswer, ...] | None:
    """Let the experts' majority answer where nobody reads them; None: nobody can tell whether it is right."""
    if job.site.way != "measured" and all(record.answer is None for record in result.calls):
        return None  # its world has lengths only
    answers = tuple(job.graph.end(*questions.of(question.id)).answer for question in questions)
    return answers if accuracy_frac(answers) is not None else None


def failures(result: RunResult) -> dict[str, int]:
    """Count what made calls fail, by error."""
    counts: dict[str, int] = {}
    for record in result.calls:
        if record.status is CallStatus.FAILED and record.response is not None and record.response.error:
            counts[record.response.error] = counts.get(record.response.error, 0) + 1
    return counts

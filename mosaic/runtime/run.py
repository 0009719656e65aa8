"""From a workload to answers: measure, plan, run. What a run is made of comes in as plain values."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from mosaic.core.addition import add_in_order
from mosaic.core.checks import require
from mosaic.core.plan import Expected, Plan
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import ExpertName, NodeName
from mosaic.pipelines.final_answers import FinalAnswer, accuracy_frac
from mosaic.planning.profiles import Profile
from mosaic.runtime.controller import Controller
from mosaic.runtime.hindsight import always_aggregate
from mosaic.runtime.job import Job, Outcome, ProfileSource, Reaction
from mosaic.runtime.layers import Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.measuring import (
    Show,
    Tell,
    prompts_of,
    show_nothing,
)
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.prefill_ahead import in_order_of_length
from mosaic.runtime.preparing import Step, prepare, price_upper_nodes
from mosaic.runtime.prospects import Prospects
from mosaic.runtime.reactions import make_controllers, make_controllers_on_servers, tick_s_of
from mosaic.runtime.servers import plan_of_servers
from mosaic.runtime.timed import Timed


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
    ValueError
        If the job runs on servers, which nothing is placed on.
    InfeasibleError, PlanError, ProfileError, BackendError
        If no plan exists, a saved plan is of another batch, or something cannot be measured.
    """
    _require_workers(job)
    return prepare(job, show, step, tell).planned


def measure(job: Job, *, show: Show = show_nothing, tell: Tell = lambda line: None) -> Mapping[NodeName, Profile]:
    """Measure what a run measures before it begins, or take what is given, by node.

    All that the sweep says is measured, whatever the batch could pay back: profiles are wanted.

    Raises
    ------
    ValueError
        If the job runs on servers, of which nothing is measured.
    InfeasibleError, PlanError, ProfileError, BackendError
        If something cannot be measured, or no plan exists for what calibration needs.
    """
    _require_workers(job)
    reactions = job.reactions - {Reaction.QUORUM}
    job = replace(job, max_batch_frac=None, reactions=reactions, profile_source=ProfileSource.CALIBRATION)
    begun = prepare(job, show, lambda name: nullcontext(), tell)
    return price_upper_nodes(job, begun, show, tell).planner.profiles


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
    """Measure what is not given, plan, and run to the end; on servers, only run.

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
    if job.site.expert_by_server is not None:
        return _run_on_servers(job, job.site.expert_by_server, controllers, show, tick_s, step)
    begun = prepare(job, show, step, tell)
    with step("profile_upper"):
        begun = price_upper_nodes(job, begun, show, tell)
    planner, pilot = begun.planner, begun.pilot
    job = replace(job, graph=in_order_of_length(job.graph, planner.profiles))
    graph, workload, site = job.graph, job.workload, job.site
    known = {question.id: question for question in workload.questions}
    questions = Questions(workload, graph)
    planned: list[Planned] = []
    replans: list[tuple[Plan, Mapping[int, str]]] = []

    def note_replan(new: Plan, lost: Mapping[int, str]) -> None:
        replans.append((new, dict(lost)))
        on_replan(new, lost)

    expected = Expected(num_calls=len(questions.first_calls))

    def note_plan(made: Planned, first_session: int) -> None:
        planned.append(made)
        expected.add(made.plan, first_session)

    with step("execute"), show("calls", expected) as shown:
        prefixes = None if graph.prefill_order is None else prompts_of(graph, known, is_whole=False)
        backend = site.backend(known, prompts_of(graph, known), after=pilot.names, prefixes=prefixes)
        log = site.command_log()
        made = make_controllers(job, begun, questions, note_plan, note_replan, [*controllers, *shown])
        expected.left_s = next((one.left_s for one in made if isinstance(one, Prospects)), expected.left_s)
        tick_s = tick_s_of(job, begun.planned.plan) if tick_s is None else tick_s
        timed = [Timed(one) for one in made] if site.way != "simulated" else []
        result = drive(backend, timed or made, num_workers=job.cluster.num_workers, log=log, tick_s=tick_s)
        result = replace(result, first_nodes=graph.first_nodes, num_pilot_sessions=pilot.num_sessions)
        if not pilot.stages:  # it bounds the whole layer
            result = replace(result, lower_bound_s=site.lower_bound_s(backend))
    reacting_s = add_in_order(one.total_s for one in timed) if timed else None
    plans = tuple(made.plan for made in planned)
    outcome = Outcome(planned=tuple(planned), plans=plans, result=result, replans=tuple(replans), reacting_s=reacting_s)
    return _with_answers(job, planner, outcome, questions, step)


def _run_on_servers(
    job: Job,
    expert_by_server: Mapping[int, ExpertName],
    others: Sequence[Controller],
    show: Show,
    tick_s: float | None,
    step: Step,
) -> Outcome:
    """Send the batch's calls, and nothing else, from the start."""
    known = {question.id: question for question in job.workload.questions}
    questions = Questions(job.workload, job.graph)
    plan = plan_of_servers(questions, expert_by_server)
    expected = Expected(num_calls=len(questions.first_calls), unit="server")
    with step("execute"), show("calls", expected) as shown:
        backend = job.site.backend(known, prompts_of(job.graph, known))
        timed = [Timed(one) for one in make_controllers_on_servers(job, questions, plan, [*others, *shown])]
        log = job.site.command_log()
        result = drive(backend, timed, num_workers=job.cluster.num_workers, log=log, tick_s=tick_s)
    result = replace(result, first_nodes=job.graph.first_nodes)
    reacting_s = add_in_order(one.total_s for one in timed)
    outcome = Outcome(planned=(), plans=(plan,), result=result, reacting_s=reacting_s)
    return _with_answers(job, None, outcome, questions, step)


def _require_workers(job: Job) -> None:
    rule = "one that places experts: servers have theirs, and mosaic.run sends them the batch's calls"
    require(job.site.expert_by_server is None, "job.site", rule, job.site.name)


def _with_answers(job: Job, planner: Planner | None, outcome: Outcome, questions: Questions, step: Step) -> Outcome:
    if not job.graph.upper_nodes:
        return replace(outcome, answers=_by_majority(job, outcome.result, questions))
    ends = questions.ends()
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
    """Let the experts' majority answer where no node reads them; None: it is not known whether it is right."""
    if job.site.way != "measured" and all(record.answer is None for record in result.calls):
        return None  # its world has lengths only
    answers = tuple(end.answer for end in questions.ends())
    return answers if accuracy_frac(answers) is not None else None


def failures(result: RunResult) -> dict[str, int]:
    """Count what made calls fail, by error."""
    counts: dict[str, int] = {}
    for record in result.calls:
        if record.status is CallStatus.FAILED and record.response is not None and record.response.error:
            counts[record.response.error] = counts.get(record.response.error, 0) + 1
    return counts

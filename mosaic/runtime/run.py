"""Runs a workload to its answers: measures, plans, runs. The inputs are plain values."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

from mosaic.core.addition import add_in_order
from mosaic.core.checks import require
from mosaic.core.plan import Expected, Plan
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.view import View
from mosaic.core.workload import NodeName
from mosaic.pipelines.final_answers import FinalAnswer, accuracy_frac
from mosaic.pipelines.questions import Questions
from mosaic.planning.profiles import Profile
from mosaic.runtime.controller import Controller, Log, Show, Timed, show_nothing
from mosaic.runtime.forecaster import Forecaster
from mosaic.runtime.hindsight import always_aggregate
from mosaic.runtime.job import Job, Outcome, ProfileSource
from mosaic.runtime.loop import drive
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.prefill_ahead import in_order_of_length
from mosaic.runtime.preparing import Begun, Step, measure_and_plan, measure_profiles, plan_first_layer
from mosaic.runtime.reactions import make_controllers, tick_s_of
from mosaic.runtime.servers import Servers, plan_of_servers
from mosaic.runtime.stages import FirstStretch, Late, backend_of, pilot_of
from mosaic.runtime.stopping import stopping_controllers
from mosaic.runtime.sweep import of_questions


def plan(
    job: Job,
    *,
    show: Show = show_nothing,
    step: Step = lambda name: nullcontext(),
    log: Log = lambda line: None,
) -> Planned:
    """Plan the first layer, and measure its experts before if no profile is given.

    Raises
    ------
    ValueError
        If the job runs on servers, which need no plan.
    InfeasibleError, PlanError, ProfileError, BackendError
        If no plan exists, a saved plan is of another batch, or a measurement fails.
    """
    _require_workers(job)
    job.graph.rule.load()
    stretch = FirstStretch(job, plan_first_layer(job, step, log), show, log)
    if stretch.measure():
        stretch.run("pilot", is_quote=True)
    return stretch.outcome.planned


def measure(job: Job, *, show: Show = show_nothing, log: Log = lambda line: None) -> Mapping[NodeName, Profile]:
    """Measure what a run measures before its batch, or return given profiles, by node.

    The whole sweep is measured, even if it costs more than the batch would save: the purpose is the profiles.

    Raises
    ------
    ValueError
        If the job runs on servers, which are not measured.
    InfeasibleError, PlanError, ProfileError, BackendError
        If a measurement fails, or no plan exists for calibration.
    """
    _require_workers(job)
    job.graph.rule.load()
    job = replace(job, max_batch_frac=None, profile_source=ProfileSource.CALIBRATION)
    stretch = FirstStretch(job, measure_profiles(job, log), show, log)
    stretch.measure()
    return stretch.outcome


def run(
    job: Job,
    *,
    controllers: Sequence[Controller] = (),
    show: Show = show_nothing,
    on_replan: Callable[[Plan, Mapping[int, str]], None] = lambda plan, lost: None,
    tick_s: float | None = None,
    step: Step = lambda name: nullcontext(),
    log: Log = lambda line: None,
) -> Outcome:
    """Measure missing profiles, plan, and run to the end; on servers, only run.

    Parameters
    ----------
    job
        The job to run.
    controllers
        Controllers of the caller, beside the pipeline and the plan.
    show
        Displays the progress.
    on_replan
        Receives each plan that is made after workers were lost.
    tick_s
        Seconds between ticks, for controllers that need them.
    step
        Wraps the steps profile, plan, profile_upper, execute, always_aggregate, to time them.
    log
        Receives lines about measurements before the batch and about slow planning.

    Raises
    ------
    InfeasibleError, PlanError, ProfileError, BackendError
        If no plan exists, a plan violates the problem, or the site cannot run it.
    """
    rest = _Stretch(job, controllers, on_replan)
    if job.site.expert_by_server is not None:
        return rest.outcome(_run_alone(rest, None, show, tick_s, step), step)
    job.graph.rule.load()
    first = FirstStretch(job, measure_and_plan(job, step, log), show, log)
    if first.measure():

        def go_on(display: ExitStack, view: View) -> Sequence[Controller]:
            display.close()
            shown = display.enter_context(show("calls", rest.expected))
            return rest.begin(replace(first.outcome, pilot=pilot_of(view)), shown, is_late=True)

        with step("execute"):
            tick_s = tick_s_of(job, None) if tick_s is None else tick_s
            result = first.run("pilot" if job.quoted is None else "quote", go_on, tick_s=tick_s)
        return rest.outcome(result, step)
    begun = first.outcome
    tick_s = tick_s_of(job, begun.planned.plan) if tick_s is None else tick_s
    return rest.outcome(_run_alone(rest, begun, show, tick_s, step), step)


def answer_first(
    job: Job, num_questions: int, *, controllers: Sequence[Controller] = (), show: Show = show_nothing
) -> RunResult:
    """Answer a batch's first questions on servers, for a quote; the batch of the same journal repeats none of them.

    Raises
    ------
    BackendError
        If no server serves any call.
    """
    require(job.site.expert_by_server is not None, "job.site", "servers", job.site.name)
    job = replace(job, workload=of_questions(job.workload, job.workload.questions[:num_questions]))
    rest = _Stretch(job, controllers, lambda plan, lost: None)
    return _run_alone(rest, None, show, None, lambda name: nullcontext(), is_quote=True)


def _run_alone(
    rest: "_Stretch",
    begun: Begun | None,
    show: Show,
    tick_s: float | None,
    step: Step,
    *,
    is_quote: bool = False,
) -> RunResult:
    """Run a batch without own stages before it; ``begun`` is None on servers."""
    with step("execute"), show("calls", rest.expected) as shown:
        made = rest.begin(begun, shown)
        job, backend = rest.job, backend_of(rest.job)
        log, num_workers = job.site.command_log(backend), job.cluster.num_workers
        reacts = bool(job.reactions) or any(controller.reacts for controller in made)
        keeps_actions = reacts or job.site.kind != "simulated"
        result = drive(
            backend,
            made,
            num_workers=num_workers,
            log=log,
            tick_s=tick_s,
            is_quote=is_quote,
            keeps_actions=keeps_actions,
        )
        return replace(result, lower_bound_s=job.site.lower_bound_s(backend))


@dataclass(eq=False)
class _Stretch:
    """The part of a run after pricing: its controllers, and their results."""

    job: Job
    others: Sequence[Controller]
    on_replan: Callable[[Plan, Mapping[int, str]], None]

    def __post_init__(self) -> None:
        self._planned: list[Planned] = []
        self._plans: list[Plan] = []
        """Their plans; on servers one, which records where calls run."""
        self._replans: list[tuple[Plan, Mapping[int, str]]] = []
        self._timed: list[Timed] = []
        unit = "worker" if self.job.site.expert_by_server is None else "server"
        self.expected = Expected(num_calls=len(self.job.graph.first_calls(self.job.workload)), unit=unit)

    def begin(self, begun: Begun | None, shown: Sequence[Controller], *, is_late: bool = False) -> Sequence[Controller]:
        """Make the controllers; ``is_late``: they take over from a pilot in the same run."""
        job, self._begun = self.job, begun
        if begun is not None:
            job = self.job = replace(job, graph=in_order_of_length(job.graph, begun.planner.profiles))
        self._questions = Questions(job.workload, job.graph)
        others = [*self.others, *shown]
        if begun is None:
            plan = plan_of_servers(self._questions, job.site.expert_by_server or {})
            self._plans.append(plan)
            stopping = stopping_controllers(self._questions, is_cancelling=job.is_cancelling)
            made = [Servers(questions=self._questions, plan=plan), *stopping, *others]
        else:
            for record in begun.pilot.records.values():
                self._questions.record(record)
            others = [Late(one, begun.pilot) for one in others] if is_late else others
            made = make_controllers(job, begun, self._questions, self._note_plan, self._note_replan, others)
        for forecaster in (one for one in made if isinstance(one, Forecaster)):
            self.expected.left_s = forecaster.left_s
        self._timed = [Timed(one) for one in made] if job.site.kind != "simulated" else []
        return self._timed or made

    def outcome(self, result: RunResult, step: Step) -> Outcome:
        """Assemble the outcome of the run."""
        job, begun = self.job, self._begun
        num_pilot_sessions = 0 if begun is None else begun.pilot.num_sessions
        result = replace(result, first_nodes=job.graph.first_nodes, num_pilot_sessions=num_pilot_sessions)
        outcome = Outcome(
            planned=tuple(self._planned),
            plans=tuple(self._plans),
            result=result,
            replans=tuple(self._replans),
            reacting_s=add_in_order(one.total_s for one in self._timed) if self._timed else None,
        )
        return _with_answers(job, None if begun is None else begun.planner, outcome, self._questions, step)

    def _note_plan(self, made: Planned, first_session: int) -> None:
        self._planned.append(made)
        self._plans.append(made.plan)
        self.expected.add(made.plan, first_session)

    def _note_replan(self, new: Plan, lost: Mapping[int, str]) -> None:
        self._replans.append((new, dict(lost)))
        self.on_replan(new, lost)


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
    """Answer by the experts' majority if no node reads them; None: it is not known whether it is right."""
    if job.site.kind != "measured" and all(record.answer is None for record in result.calls):
        return None  # its world has lengths only
    answers = tuple(end.answer for end in questions.ends())
    return answers if accuracy_frac(answers) is not None else None


def failures(result: RunResult) -> dict[str, int]:
    """Count the errors of failed calls."""
    counts: dict[str, int] = {}
    for record in result.calls:
        if record.status is CallStatus.FAILED and record.response is not None and record.response.error:
            counts[record.response.error] = counts.get(record.response.error, 0) + 1
    return counts

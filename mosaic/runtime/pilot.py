"""A pilot: the first stretch of a run, which answers calls of the batch and prices the others by them.

What a call says depends on the seed and its key, and not on the plan, so a pilot's answers are the batch's. The pilot
is a generator of stages: it yields sessions to run, receives what has ended so far, and returns the prices. A
controller runs it on the run's own backend; the run goes on from there, or it is a quote and stops.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Generic, TypeAlias, TypeVar

from mosaic.core.commands import Command, Submit
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.events import Closed, Event, Finished, Joined, Lost, Ready, Started, Unused
from mosaic.core.plan import Expected, Session, unpriced_plan
from mosaic.core.results import CallRecord, CallStatus, RunResult, SessionRecord
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, NodeName, Workload
from mosaic.pipelines.node import Node
from mosaic.pipelines.questions import Questions
from mosaic.planning.profiles import Profile
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller, Show, Tell
from mosaic.runtime.job import Job, ProfileSource, Reaction
from mosaic.runtime.journal import Journal
from mosaic.runtime.loop import drive
from mosaic.runtime.planner import Planner, placed
from mosaic.runtime.profiling import Waves, fit
from mosaic.runtime.site import prompts_of
from mosaic.runtime.static_plan import plan_commands
from mosaic.runtime.sweep import StopWhenFailing, measured_calls, of_questions
from mosaic.runtime.unpriced import SHARES, sessions_in_thirds, spread_anew, waves_in_thirds

MAX_FAILURES = 4
"""A pilot stops where so many calls fail in a row: its batch would fare no better."""
MAX_TRIES = 2
"""Where an expert's sessions were disturbed, more calls of the batch are sent; stages that a start begins in all."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stage:
    """Sessions of a pilot that run together, behind those before."""

    sessions: tuple[Session, ...]
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What a pilot has answered so far."""

    records: Mapping[CallKey, CallRecord] = field(default_factory=dict)
    """Of the calls that finished. Those that failed are planned with the batch."""
    sessions: tuple[SessionRecord, ...] = ()
    num_sessions: int = 0
    """They are the run's first; with those that were lost."""
    waves: Mapping[NodeName, Waves] = field(default_factory=dict)
    """In which a quote's merges ran, by node."""

    def whole_questions(self, workload: Workload, first_calls: Sequence[Call]) -> Workload:
        """Cut the batch down to the questions whose calls of the first layer have all finished here."""
        open_ = {call.key.question for call in first_calls if call.key not in self.records}
        return of_questions(workload, tuple(question for question in workload.questions if question.id not in open_))


Stages: TypeAlias = Generator[Stage, Pilot, _T]


class Unpriced(Exception):
    """The batch's own calls do not price something: others have to.

    Parameters
    ----------
    reason
        Why they do not.
    pilot
        What they have answered.
    node, planner
        The node that they do not price, and who plans by the other prices; None: it is the first layer.
    """

    def __init__(self, reason: str, pilot: Pilot, node: Node | None = None, planner: Planner | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pilot = pilot
        self.node = node
        self.planner = planner


class FirstStretch(Generic[_T]):
    """A controller that runs the stages of a pilot, one after the other, and keeps what they return.

    What lost workers leave is taken over by the others, so that a stage always ends with all its calls: gone through
    again after an interruption it is the same, and so are the stages behind it.
    """

    reacts = True

    def __init__(self, stages: Stages[_T]) -> None:
        self._stages = stages
        self._has_begun = False
        self._returned: list[_T] = []
        self.events: list[Event] = []
        """What changed sessions and workers, for who joins the run behind the pilot."""

    @property
    def outcome(self) -> _T:
        """What the stages returned.

        Raises
        ------
        BackendError
            If the run ended before they did: no worker was left for their calls.
        """
        if not self._returned:
            raise BackendError("pilot: no worker is left for its calls; what has finished is kept")
        return self._returned[0]

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Begin the next stage when every session of the one before it is over."""
        if isinstance(event, Ready | Closed | Joined):
            self.events.append(event)
        is_over = not view.running and view.opened.keys() <= view.ended.keys()
        if self._returned or not is_over or not isinstance(event, Started | Finished | Closed | Unused | Lost):
            return ()
        try:
            stage = self._stages.send(pilot_of(view)) if self._has_begun else next(self._stages)
        except StopIteration as end:
            self._returned.append(end.value)
            return ()
        self._has_begun = True
        plan = unpriced_plan(stage.sessions, num_workers=view.num_workers)
        return plan_commands(plan, {call.key: call for call in stage.calls}, view.next_session())


class Late:
    """A controller that follows a run from the end of its pilot on: it receives what the pilot answered.

    Calls that failed there are sent again, and so it does not hear of them twice.
    """

    def __init__(self, controller: Controller, pilot: Pilot) -> None:
        self._controller = controller
        self._pilot = pilot
        self.reacts = controller.reacts

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Answer as the controller does."""
        yield from self._controller.on(event, view)
        if isinstance(event, Started):
            for record in self._pilot.records.values():
                yield from self._controller.on(Finished(record.finished_ts or 0.0, record), view)


def pilot_of(view: View) -> Pilot:
    """Read what a pilot has answered off its run."""
    finished = (record for record in view.calls_by_session() if record.status is CallStatus.FINISHED)
    return Pilot(
        records={record.key: record for record in finished},
        sessions=view.closed_sessions(),
        num_sessions=view.next_session(),
    )


def pilot_controllers(job: Job, stretch: Controller, shown: Iterable[Controller]) -> list[Controller]:
    """List the controllers of a run's first stretch."""
    anew = spread_anew([*job.experts, *job.graph.experts], job.site, job.cluster.num_workers)
    num_calls = len(job.graph.first_calls(job.workload))
    stop = StopWhenFailing("pilot", num_calls, max_in_a_row=MAX_FAILURES, may_lose=True)
    return [stretch, anew, stop, *shown]


def run_pilot(job: Job, stages_of: Callable[[Set[CallKey]], Stages[_T]], show: Show, title: str = "pilot") -> _T:
    """Run a pilot and stop: the run goes on from there with the same journal.

    Parameters
    ----------
    job
        The batch.
    stages_of
        Makes the stages of the calls that earlier starts submitted.
    show, title
        Shows what goes on, and under which name.

    Raises
    ------
    BackendError
        If calls fail in a row.
    Unpriced
        As the stages do.
    """
    backend = backend_of(job)
    log = job.site.command_log()
    stretch = FirstStretch(stages_of(submitted(log)))
    with show(title, Expected()) as shown:
        controllers = pilot_controllers(job, stretch, shown)
        drive(backend, controllers, num_workers=job.cluster.num_workers, log=log, is_quote=True)
    return stretch.outcome


def backend_of(job: Job) -> Backend:
    """Give the backend of a run, which asks the batch's questions."""
    known = {question.id: question for question in job.workload.questions}
    prefixes = None if job.graph.prefill_order is None else prompts_of(job.graph, known, is_whole=False)
    return job.site.backend(known, prompts_of(job.graph, known), prefixes=prefixes)


def submitted(log: Journal | None) -> Set[CallKey]:
    """Name the calls that earlier starts submitted."""
    commands = (action.command for action in (() if log is None else log.earlier))
    return {command.call.key for command in commands if isinstance(command, Submit)}


def why_not(job: Job, first_calls: Sequence[Call]) -> str | None:
    """Say why the batch's own calls cannot be the measurement, or are not to be; None: they can."""
    if job.profile_source is ProfileSource.CALIBRATION:
        return "profile.source=calibration"
    if job.profile_source is ProfileSource.AUTO and job.site.way != "measured":
        return f"what is {job.site.way} is not asked of a model that answers"
    reason = why_not_kept(job)
    if reason is not None:
        return reason
    counts = Counter(call.expert for call in first_calls)
    for expert, num_calls in wanted_calls(job, first_calls).items():
        if counts[expert] < num_calls:
            return f"a price of {expert} takes {num_calls:,} calls, and the batch has {counts[expert]:,} for it"
    if len(choose_calls(job, first_calls)) == len(first_calls):
        return f"a pilot would take all of the batch's {len(first_calls):,} calls"
    return None


def why_not_kept(job: Job) -> str | None:
    """Say why answers of a pilot could not be the batch's; None: they can."""
    if job.plans:
        return "a saved plan places every call of the batch"
    if Reaction.QUORUM in job.reactions:
        return "a quorum cancels calls that a pilot would have asked"
    if job.graph.rule.is_exit:
        return "an early exit cancels calls that a pilot would have asked"
    if job.reactions & {Reaction.OVERLAP, Reaction.MOVES}:
        return "calls of all layers go where there is room from the start"
    if job.graph.budgets:
        return "calls have budgets that a pilot would not keep"
    if job.graph.prefill_order is not None:
        return "prompts read in the order of lengths that a pilot does not know"
    if any(node.leaves_one_out for node in job.graph.nodes):
        return "the aggregator also answers without each response"
    if Reaction.NO_BARRIER in job.reactions:
        return "without a barrier the calls of all layers are planned at the start"
    return None


def wanted_calls(job: Job, first_calls: Sequence[Call]) -> dict[ExpertName, int]:
    """Say how many calls of each expert price it: a share of those that it has, and no more than the sweep's."""
    return {expert: sweep.num_calls for expert, sweep in job.sweep.by_expert(first_calls, job.max_batch_frac).items()}


def choose_calls(job: Job, first_calls: Sequence[Call], taken: Iterable[CallKey] = ()) -> tuple[Call, ...]:
    """Choose the calls of a job's pilot; see `choose`."""
    wanted = wanted_calls(job, first_calls)
    num_whole = measured_calls(len(job.workload.questions), job.max_batch_frac) or max(wanted.values())
    return choose(first_calls, wanted, num_whole, taken)


def choose(
    first_calls: Sequence[Call],
    wanted: Mapping[ExpertName, int],
    num_whole: int,
    taken: Iterable[CallKey] = (),
    *,
    seed: int = 0,
) -> tuple[Call, ...]:
    """Choose calls of a batch for a pilot.

    Questions are taken by a hash of their ids, so that a batch in order of subjects gives a fair sample, fixed before
    any answer. First whole questions, which show what a gate leaves; then single calls of experts that they ask too
    rarely.

    Parameters
    ----------
    first_calls
        Of the batch.
    wanted
        How many of each expert, at least.
    num_whole
        Questions that are asked whole.
    taken
        Calls that were asked before.
    seed
        Of the order.
    """
    left = set(taken)
    by_question: dict[str, list[Call]] = {}
    for call in first_calls:
        if call.key not in left:
            by_question.setdefault(call.key.question, []).append(call)
    order = sorted(by_question, key=lambda name: blake2b(f"pilot|{seed}|{name}".encode(), digest_size=8).digest())
    chosen = [call for question in order[:num_whole] for call in by_question[question]]
    lacking = Counter(wanted) - Counter(call.expert for call in chosen)
    for call in (call for question in order[num_whole:] for call in by_question[question]):
        if lacking[call.expert] > 0:
            lacking[call.expert] -= 1
            chosen.append(call)
    return tuple(chosen)


def price_by_pilot(
    job: Job,
    experts: Sequence[Expert],
    source: str,
    begun: Set[CallKey],
    tell: Tell,
    given: Profile | None = None,
) -> Stages[tuple[Pilot, Profile]]:
    """Answer some of the batch's calls, and price the experts of the first layer by them.

    Parameters
    ----------
    job, experts
        The batch, and who has calls of the first layer.
    source
        Where the profile says it comes from.
    begun
        Calls that earlier starts submitted: stages of them are no tries of this one.
    tell
        Receives lines for who waits.
    given
        The prices, where others than the batch's own calls had to give them.

    Raises
    ------
    Unpriced
        If sessions were disturbed too often: what was answered is kept all the same.
    """
    first_calls = job.graph.first_calls(job.workload)
    pilot = Pilot()
    if job.quoted is not None:
        pilot = yield from job.quoted(job, lambda line: None)  # it has announced its calls
        tell(f"quote: {len(pilot.records):,} calls of the batch were asked before, and are not asked again")
        if given is not None:
            return pilot, given
        try:
            return pilot, profile_of(job, experts, pilot, source)
        except DisturbedSweepError as error:
            tell(f"the quote does not price the batch: {error}")
            if (reason := why_not(job, [call for call in first_calls if call.key not in pilot.records])) is not None:
                raise Unpriced(reason, pilot) from error
    num_tries = 0
    while True:
        calls = choose_calls(job, first_calls, pilot.records)
        num_tries += not any(call.key in begun for call in calls)
        tell(announce_pilot("pilot", calls, len(first_calls)))
        pilot = replace((yield Stage(sessions_in_thirds(calls, experts, job.site), calls)), waves=pilot.waves)
        if given is not None:
            return pilot, given
        try:
            return pilot, profile_of(job, experts, pilot, source)
        except DisturbedSweepError as error:
            is_over = num_tries >= MAX_TRIES or len(pilot.records) + len(calls) >= len(first_calls)
            tell(f"{error}; {'it is given up' if is_over else 'more calls of the batch are asked'}")
            if is_over:
                raise Unpriced(str(error), pilot) from error


def price_node_by_pilot(
    job: Job, node: Node, planner: Planner, pilot: Pilot, questions: Questions, source: str, tell: Tell
) -> Stages[tuple[Pilot, Profile]]:
    """Price an upper node by the calls that the pilot's own questions need of it, at each degree by others of them.

    Where a quote has sent them at the node's only degree, they are priced as they ran.

    Raises
    ------
    Unpriced
        If they need less than a price takes, or were disturbed.
    """
    degrees = planner.degrees(node.name, node.experts[0])
    if (waves := pilot.waves.get(node.name)) is not None and degrees == (len(waves[0][0].workers),):
        with suppress(DisturbedSweepError):
            expert = placed(node.experts[0], degrees[0])
            return pilot, fit([expert], job.cluster, _own(job, pilot, waves), source, waves)
    needed = questions.calls_of(node.name)
    shares: list[tuple[Expert, Sequence[Call]]] = []
    for expert in dict.fromkeys(node.experts):
        mine = [call for call in needed if call.expert == expert.name and call.key not in pilot.records]
        degrees = planner.degrees(node.name, expert)
        least = SHARES * len(degrees)
        if len(mine) < least:
            reason = f"of the pilot's questions {len(mine)} need {expert.name}, and its price takes {least}"
            raise Unpriced(reason, pilot, node, planner)
        shares += [(placed(expert, degree), mine[turn :: len(degrees)]) for turn, degree in enumerate(degrees)]
    profiles = []
    for expert, calls in shares:
        tell(announce_pilot(f"pilot of {node.name}", calls, len(needed)))
        waves = waves_in_thirds(calls, job.site.places(expert))
        before = pilot
        pilot = yield Stage(tuple(session for wave in waves for session in wave), tuple(calls))
        pilot = replace(pilot, waves=before.waves)
        for call in calls:
            if call.key in pilot.records:
                questions.note(pilot.records[call.key])
        try:
            waves = numbered(waves, before.num_sessions)
            profiles.append(fit([expert], job.cluster, _own(job, pilot, waves), source, waves))
        except DisturbedSweepError as error:
            raise Unpriced(str(error), pilot, node, planner) from error
    return pilot, Profile(source=source, entries=tuple(entry for profile in profiles for entry in profile.entries))


def numbered(waves: Waves, first_session: int) -> list[tuple[Session, ...]]:
    """Number the sessions of waves as the run does, in which they were the first of a stage from this number on."""
    return [tuple(replace(session, id=session.id + first_session) for session in wave) for wave in waves]


def _own(job: Job, pilot: Pilot, waves: Waves) -> RunResult:
    """Give the calls and sessions of waves.

    Raises
    ------
    DisturbedSweepError
        If calls failed.
    """
    keys = [key for wave in waves for session in wave for key in session.shard]
    numbers = {session.id for wave in waves for session in wave}
    if any(key not in pilot.records for key in keys):
        raise DisturbedSweepError("pilot: calls failed")
    return RunResult(
        calls=tuple(pilot.records[key] for key in keys),
        sessions=tuple(session for session in pilot.sessions if session.session in numbers),
        num_workers=job.cluster.num_workers,
    )


def questions_of(job: Job, pilot: Pilot) -> tuple[Workload, Questions]:
    """Give the questions that the pilot answered whole, on their way through the pipeline."""
    whole = pilot.whole_questions(job.workload, job.graph.first_calls(job.workload))
    kept = {question.id for question in whole.questions}
    questions = Questions(whole, job.graph)
    for key, record in pilot.records.items():
        if key.question in kept:
            questions.note(record)
    return whole, questions


def profile_of(job: Job, experts: Sequence[Expert], pilot: Pilot, source: str) -> Profile:
    """Price the experts of the first layer by what a pilot asked of them.

    Raises
    ------
    DisturbedSweepError
        If an expert's sessions were interrupted, or its calls failed, so that fewer than two sizes are left.
    """
    first = set(job.graph.first_nodes)
    finished = tuple(record for record in pilot.records.values() if record.key.node in first)
    served = tuple(session for session in pilot.sessions if session.num_calls and session.node in first)
    asked = {record.expert for record in finished}
    whole = RunResult(calls=finished, sessions=served, num_workers=job.cluster.num_workers)
    return fit([expert for expert in experts if expert.name in asked], job.cluster, whole, source)


def announce_pilot(what: str, calls: Iterable[Call], num_batch_calls: int) -> str:
    """Say how many calls of the batch are sent before it is planned, and why they cost nothing.

    Examples
    --------
    >>> from mosaic.core.workload import PROPOSE
    >>> calls = [Call(CallKey(f"q{i}", PROPOSE, 0), "Qwen" if i % 3 else "GLM", 10) for i in range(180)]
    >>> announce_pilot("pilot", calls, 1800)
    "pilot: 180 of the batch's own 1,800 calls (GLM 60, Qwen 120), to price the others; their answers are kept"
    """
    num_calls = Counter(call.expert for call in calls)
    listed = ", ".join(f"{expert} {count:,}" for expert, count in num_calls.items())
    own = f"{num_calls.total():,} of the batch's own {num_batch_calls:,} calls ({listed})"
    return f"{what}: {own}, to price the others; their answers are kept"

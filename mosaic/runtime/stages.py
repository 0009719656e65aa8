"""Measuring as stages: sessions to run, of the batch's own calls or of others.

What is measured is a generator: it yields stages, receives how they ended, and returns prices. What a call says
depends on the seed and its key, and not on the plan, so answers of the batch's own calls are kept: stages of them are
the first stretch of its run. A stage of other calls has a backend, and draws, of its own.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import ClassVar, Generic, TypeAlias, TypeVar

from mosaic.core.commands import Command, Submit
from mosaic.core.errors import BackendError, DisturbedSweepError, InfeasibleError
from mosaic.core.events import Closed, Event, Finished, Lost, Started, Unused
from mosaic.core.plan import Expected, Plan, Session, unpriced_plan
from mosaic.core.results import SERVED, CallRecord, CallStatus, Inputs, RunResult, SessionRecord
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey, Question
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller, Log, Show
from mosaic.runtime.job import Job
from mosaic.runtime.journal import Journal
from mosaic.runtime.loop import drive
from mosaic.runtime.replanning import Replanning
from mosaic.runtime.site import Prompts, prompts_of
from mosaic.runtime.static_plan import execute, plan_commands
from mosaic.runtime.stopping import Cuts
from mosaic.runtime.unpriced import even_plan

MAX_FAILURES = 4
"""Answers that count for themselves stop where so many calls fail in a row: the batch would fare no better."""
MAX_TRIES = 3
"""Of a stage whose sessions are disturbed, in one start."""
MEASURED_OTHERWISE = "Correct this, or give a profile (profile.path, profile.aggregator_path)"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherCalls:
    """Questions of calls that are not the batch's."""

    name: str
    """Of the stage, unique in the run."""
    why: str
    """They are sent."""
    given_by: str
    """The key of the configuration that spares them."""
    questions: Mapping[str, Question]
    prompts: Prompts
    earlier: Inputs = field(default_factory=dict)
    """Records, of other stages, of calls that these come after."""
    for_answers: bool = False
    """Answers count for themselves: some may fail, and other workers take over what a lost one leaves.

    Not where sessions are priced: these are of one shape, and a price is never fitted to part of a sweep.
    """


@dataclass(frozen=True, slots=True)
class Stage:
    """Sessions that run together, behind those before."""

    title: str
    """Under which it is announced."""
    sessions: tuple[Session, ...]
    calls: tuple[Call, ...]
    other: OtherCalls | None = None
    """None: the calls are the batch's."""

    def numbered(self, first_session: int) -> "Stage":
        """Number the sessions from one on."""
        sessions = (replace(session, id=session.id + first_session) for session in self.sessions)
        return replace(self, sessions=tuple(sessions))

    def announcement(self) -> str:
        """Say what is sent before the batch is planned, why, and what spares it.

        Examples
        --------
        >>> from mosaic.core.workload import PROPOSE
        >>> calls = tuple(Call(CallKey(f"q{i}", PROPOSE, 0), "Qwen" if i % 3 else "GLM", 10) for i in range(1800))
        >>> Stage("pilot", (), calls).announcement()
        "pilot: 1,800 of the batch's own calls (GLM 600, Qwen 1,200), to price the others; their answers are kept"
        >>> other = OtherCalls(name="profile", why="to price it", given_by="profile.path", questions={}, prompts=str)
        >>> Stage("profiling", (), calls[:9], other).announcement()
        'profiling: 9 calls that are not the batch (GLM 3, Qwen 6), to price it; profile.path=FILE spares them'
        """
        counts = Counter(call.expert for call in self.calls)
        listed = ", ".join(f"{expert} {count:,}" for expert, count in counts.items())
        if self.other is None:
            own = f"{counts.total():,} of the batch's own calls ({listed})"
            return f"{self.title}: {own}, to price the others; their answers are kept"
        others = f"{counts.total():,} calls that are not the batch ({listed})"
        return f"{self.title}: {others}, {self.other.why}; {self.other.given_by}=FILE spares them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What stages have answered: those of the batch's calls so far, or one of other calls."""

    records: Mapping[CallKey, CallRecord] = field(default_factory=dict)
    """Of the batch's calls those that finished. Those that failed are planned with the batch."""
    sessions: tuple[SessionRecord, ...] = ()
    num_sessions: int = 0
    """They are the run's first; with those that were lost."""
    stage: Stage | None = None
    """The last, with its sessions as the run numbers them."""
    is_resumed: bool = False
    """Whether an earlier start began it: it is no try of this one."""
    merging: tuple[Session, ...] = ()
    """Those of the sessions in whose waves a quote merged."""

    def whole_questions(self, job: Job) -> tuple[Question, ...]:
        """List the batch's questions whose calls of the first layer have all finished here."""
        first_calls = job.graph.first_calls(job.workload)
        open_ = {call.key.question for call in first_calls if call.key not in self.records}
        return tuple(question for question in job.workload.questions if question.id not in open_)


Stages: TypeAlias = Generator[Stage, Pilot, _T]


class Elsewhere(Exception):
    """The next stage is of other calls: its backend cannot share workers with the run's."""


@dataclass(eq=False)
class FirstStretch(Generic[_T]):
    """Runs stages one after the other, and keeps what they return.

    On the run's backend it is a controller. What lost workers leave is taken over by the others, so that a stage always
    ends with all its calls: gone through again after an interruption it is the same, and so are the stages behind it.
    The run is interrupted where other calls have to be measured, and goes on from its journal.
    """

    job: Job
    stages: Stages[_T]
    show: Show
    log: Log = lambda line: None
    reacts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._next: Stage | None = None
        """Yielded and not begun."""
        self._own: list[Stage] = []
        """Of the batch's calls, those that were begun."""
        self._num_begun = 0
        """Of these, in this start of the run."""
        self._last: Stage | None = None
        """Of these the last, as the run numbers its sessions."""
        self._submitted: Set[CallKey] = frozenset()
        """By earlier starts."""
        self._returned: list[_T] = []

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

    def measure(self) -> bool:
        """Run the stages of other calls that come next; returns whether any stage is of the batch's."""
        if not self._own and self._next is None and not self._returned:
            self._go_on(None)
        while self._next is not None and self._next.other is not None:
            try:
                ended: Pilot | DisturbedSweepError = self._measured(self._next, self._next.other)
            except DisturbedSweepError as error:
                ended = error
            self._go_on(ended)
        return bool(self._own) or self._next is not None

    def run(
        self,
        title: str,
        then: Callable[[ExitStack, View], Sequence[Controller]] | None = None,
        *,
        tick_s: float | None = None,
        is_quote: bool = False,
    ) -> RunResult:
        """Run the batch from its first stage on.

        Parameters
        ----------
        title
            Under which the stages are shown.
        then
            Gives the controllers that take over behind them, and shows what comes in place of the stages.
        tick_s, is_quote
            See `drive`.

        Raises
        ------
        BackendError
            If calls fail in a row.
        """
        job = self.job
        num_starts = 0
        while True:
            self.measure()
            num_starts += 1
            try:
                with ExitStack() as display:
                    backend = backend_of(job)
                    log = job.site.command_log(backend)
                    self._num_begun, self._submitted = 0, _submitted(log)
                    shown = display.enter_context(self.show(title, Expected()))
                    num_calls = len(job.graph.first_calls(job.workload))
                    stop = StopWhenFailing(name="pilot", num_calls=num_calls, for_answers=True)
                    result = drive(
                        backend,
                        [self, _spread_anew(job), stop, *shown],
                        num_workers=job.cluster.num_workers,
                        log=log,
                        tick_s=tick_s,
                        then=None if then is None else partial(then, display),
                        is_quote=is_quote,
                    )
                # that other calls were measured meanwhile is no interruption
                return replace(result, resumptions=result.resumptions[: len(result.resumptions) + 1 - num_starts])
            except Elsewhere:
                continue

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Begin the next stage when every session of the one before it is over."""
        is_over = not view.running and view.opened.keys() <= view.ended.keys()
        if not is_over or not isinstance(event, Started | Finished | Closed | Unused | Lost):
            return ()
        if self._num_begun == len(self._own) and not self._begin_next(view):
            return ()
        stage, first_session = self._own[self._num_begun], view.next_session()
        self._num_begun += 1
        self._last = stage.numbered(first_session)
        plan = unpriced_plan(stage.sessions, num_workers=view.num_workers)
        return plan_commands(plan, stage.calls, first_session)

    def _begin_next(self, view: View) -> bool:
        """Find the stage after those that were begun; returns whether there is one."""
        if self._next is None and not self._returned:
            is_resumed = self._is_resumed(self._own[-1])
            self._go_on(replace(pilot_of(view), stage=self._last, is_resumed=is_resumed))
        if self._next is None:
            return False
        if self._next.other is not None:
            raise Elsewhere
        if not self._is_resumed(self._next):
            self.log(self._next.announcement())
        self._own.append(self._next)
        self._next = None
        return True

    def _is_resumed(self, stage: Stage) -> bool:
        return any(call.key in self._submitted for call in stage.calls)

    def _go_on(self, ended: Pilot | DisturbedSweepError | None) -> None:
        """Let the generator receive how its stage ended; None: it has not begun."""
        try:
            if isinstance(ended, DisturbedSweepError):
                self._next = self.stages.throw(ended)
            else:
                self._next = next(self.stages) if ended is None else self.stages.send(ended)
        except StopIteration as end:
            self._next = None
            self._returned.append(end.value)

    def _measured(self, stage: Stage, other: OtherCalls) -> Pilot:
        """Run a stage of other calls.

        Raises
        ------
        DisturbedSweepError
            If a worker is lost with calls that others may not take over.
        """
        job = self.job
        is_resumed = job.site.has_begun(other.name)
        self.log(stage.announcement())
        backend = job.site.backend(
            other.questions, other.prompts, name=other.name, earlier=other.earlier, is_measured=True
        )
        with self.show(stage.title, Expected()) as shown:
            takes_over = other.for_answers and job.site.kind != "simulated"  # simulated workers are not lost
            anew = [_spread_anew(job)] if takes_over else []
            stop = StopWhenFailing(name=stage.title, num_calls=len(stage.calls), for_answers=other.for_answers)
            plan = unpriced_plan(stage.sessions, num_workers=job.cluster.num_workers)
            result = execute(plan, stage.calls, backend, [*anew, Cuts(job.graph.budgets), stop, *shown])
        return Pilot(
            records={record.key: record for record in result.calls},
            sessions=result.sessions,
            num_sessions=len(stage.sessions),
            stage=stage,
            is_resumed=is_resumed,
        )


class Late:
    """A controller that follows a run from the end of its pilot on: it receives what the pilot answered.

    Calls that failed there are sent again, and so it does not receive them twice.
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


@dataclass(kw_only=True, eq=False)
class StopWhenFailing:
    """A controller that stops a measurement which can price nothing any more, and says why.

    What comes after a call that fails would be sent for nothing. What has finished is in the journal of a real run.
    """

    name: str
    """Of the measurement."""
    num_calls: int
    """That it has."""
    for_answers: bool
    """See ``OtherCalls``. A pilot's single failures are tried again with the batch."""
    reacts: ClassVar[bool] = False
    _num_finished: int = field(default=0, init=False)
    _failed: list[CallRecord] = field(default_factory=list, init=False)
    """Since a call finished."""

    def on(self, event: Event, view: View) -> tuple[Command, ...]:
        """Count how calls end, and look at each worker that is lost.

        Raises
        ------
        BackendError
            If too many calls fail.
        DisturbedSweepError
            If a call never ends since its worker is lost: on the others it may.
        """
        if isinstance(event, Finished):
            if event.record.status in SERVED:
                self._num_finished += 1
                self._failed.clear()
            else:
                self._failed.append(event.record)
            if len(self._failed) == (MAX_FAILURES if self.for_answers else 1):
                first = self._failed[0]
                why = first.response.error if first.response is not None else None
                cause = f"call {first.key.question} of {first.expert} {first.status}: {why or 'no reason is known'}"
                more = f", the first of {MAX_FAILURES} in a row" if self.for_answers else ""
                raise BackendError(self._stopped(f"{cause}{more}"))
        elif isinstance(event, Lost) and not self.for_answers and view.left_by({event.worker}):
            raise DisturbedSweepError(self._stopped(f"worker {event.worker} is lost: {event.cause}"))
        return ()

    def _stopped(self, cause: str) -> str:
        done = f"{self._num_finished} of {self.num_calls} calls finished before it stopped"
        return f"{self.name}: {done}: {cause}. {MEASURED_OTHERWISE}"


def undisturbed(stage_of: Callable[[], Stage], fit: Callable[[Pilot], _T], log: Log) -> Stages[_T]:
    """Measure on other calls until it is undisturbed; what earlier starts began does not count as a try of this one.

    Parameters
    ----------
    stage_of
        Makes the stage, without the workers that are lost by then.
    fit
        Reads what was measured off how the stage ended.
    log
        Receives lines for who waits.
    """
    num_tries = 0
    for number in count(1):
        stage = stage_of()
        if number > 1 and stage.other is not None:
            stage = replace(stage, other=replace(stage.other, name=f"{stage.other.name}_{number}"))
        is_try = True
        try:
            pilot = yield stage
            is_try = not pilot.is_resumed
            return fit(pilot)
        except DisturbedSweepError as error:
            num_tries += is_try
            if num_tries >= MAX_TRIES:
                raise
            log(f"{error}; it is measured once more")
    raise AssertionError("a count does not end")


def pilot_of(view: View) -> Pilot:
    """Read what the stages of the batch's calls have answered off its run."""
    finished = (record for record in view.calls_by_session() if record.status is CallStatus.FINISHED)
    return Pilot(
        records={record.key: record for record in finished},
        sessions=view.closed_sessions(),
        num_sessions=view.next_session(),
    )


def backend_of(job: Job, earlier: Inputs | None = None) -> Backend:
    """Give the backend of a run, which answers the batch's questions, or those that calls of these records leave."""
    known = {question.id: question for question in job.workload.questions}
    prefixes = None if job.graph.prefill_order is None else prompts_of(job.graph, known, is_whole=False)
    return job.site.backend(known, prompts_of(job.graph, known), prefixes=prefixes, earlier=earlier)


def _spread_anew(job: Job) -> Controller:
    """Make a controller that spreads what lost workers leave evenly over the others."""

    def plan(left: Sequence[Call], lost: Mapping[int, str]) -> Plan:
        experts = [*job.experts, *job.graph.experts]
        made = even_plan(left, experts, job.site.places, job.cluster.num_workers)
        if hit := [session.expert for session in made.sessions if not lost.keys().isdisjoint(session.workers)]:
            raise InfeasibleError(f"no place is left for {hit[0]}")
        return made

    return Replanning(plan)


def _submitted(log: Journal | None) -> Set[CallKey]:
    """Name the calls that earlier starts submitted."""
    commands = (action.command for action in (() if log is None else log.state.actions))
    return {command.call.key for command in commands if isinstance(command, Submit)}

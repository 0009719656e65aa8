"""Measures in stages: sets of sessions to run, of the batch's own calls or of others.

A measurement is a generator: it yields stages, receives how they ended, and returns prices. A response depends on the
seed and the call's key, and not on the plan. So answers of the batch's own calls are kept, and their stages are the
beginning of its run. A stage of other calls has its own backend and its own draws.
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
"""Failed calls in a row after which independent answers stop: the batch would fail too."""
MAX_TRIES = 3
"""Tries of a stage whose sessions are interrupted, in one start."""
MEASURED_OTHERWISE = "Correct this, or give a profile (profile.path, profile.aggregator_path)"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherCalls:
    """Questions of calls outside the batch."""

    name: str
    """Name of the stage, unique in the run."""
    why: str
    """Why they are sent."""
    given_by: str
    """The key of the configuration that makes them unnecessary."""
    questions: Mapping[str, Question]
    prompts: Prompts
    earlier: Inputs = field(default_factory=dict)
    """Records of other stages, of calls that these read."""
    for_answers: bool = False
    """The answers themselves are the purpose: some may fail, and other workers take over the calls of a lost one.

    Not for sessions that are priced: these have a fixed shape, and a price is never fitted to part of a sweep.
    """


@dataclass(frozen=True, slots=True)
class Stage:
    """Sessions that run together, after the earlier ones."""

    title: str
    """Title of its announcement."""
    sessions: tuple[Session, ...]
    calls: tuple[Call, ...]
    other: OtherCalls | None = None
    """None: the calls are the batch's."""

    def numbered(self, first_session: int) -> "Stage":
        """Renumber the sessions from the given number on."""
        sessions = (replace(session, id=session.id + first_session) for session in self.sessions)
        return replace(self, sessions=tuple(sessions))

    def announcement(self) -> str:
        """Describe the calls before the batch's plan, their purpose, and how to avoid them.

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
    """The answers of stages: of the batch's calls so far, or of one stage of other calls."""

    records: Mapping[CallKey, CallRecord] = field(default_factory=dict)
    """Of the batch's calls, those that finished. Failed ones are planned with the batch."""
    sessions: tuple[SessionRecord, ...] = ()
    num_sessions: int = 0
    """Number of the run's first sessions, those of the stages; lost ones included."""
    stage: Stage | None = None
    """The last stage, with the run's numbers of its sessions."""
    is_resumed: bool = False
    """Whether an earlier start began it: then it does not count as a try of this start."""
    merging: tuple[Session, ...] = ()
    """The sessions in whose waves a quote aggregated."""

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

    On the run's backend it is a controller. Other workers take over the calls of lost workers, so a stage always ends
    with all its calls. If it is repeated after an interruption, it is the same, and so are the later stages. The run is
    interrupted when other calls must be measured, and is resumed from its journal.
    """

    job: Job
    stages: Stages[_T]
    show: Show
    log: Log = lambda line: None
    reacts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._next: Stage | None = None
        """Yielded, and not started."""
        self._own: list[Stage] = []
        """Stages of the batch's calls that were started."""
        self._num_begun = 0
        """Number of them in this start of the run."""
        self._last: Stage | None = None
        """The last of them, with the run's numbers of its sessions."""
        self._submitted: Set[CallKey] = frozenset()
        """Calls submitted by earlier starts."""
        self._returned: list[_T] = []

    @property
    def outcome(self) -> _T:
        """The return value of the stages.

        Raises
        ------
        BackendError
            If the run ended before the stages did: no worker was left for their calls.
        """
        if not self._returned:
            raise BackendError("pilot: no worker is left for its calls; what has finished is kept")
        return self._returned[0]

    def measure(self) -> bool:
        """Run the next stages of other calls; returns whether any stage is of the batch's."""
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
            Title of the display of the stages.
        then
            Returns the controllers that take over after the stages, and replaces the display.
        tick_s, is_quote
            See `drive`.

        Raises
        ------
        BackendError
            If too many calls fail in a row.
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
                # measuring other calls in between is no interruption
                return replace(result, resumptions=result.resumptions[: len(result.resumptions) + 1 - num_starts])
            except Elsewhere:
                continue

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Start the next stage when every session of the stage before it has ended."""
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
        """Find the stage after the started ones; returns whether there is one."""
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
        """Pass the end of the stage to the generator; None: it has not started."""
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
    """A controller that joins a run at the end of its pilot: it first receives the pilot's answers.

    Calls that failed there are sent again, and their failures are not passed on.
    """

    def __init__(self, controller: Controller, pilot: Pilot) -> None:
        self._controller = controller
        self._pilot = pilot
        self.reacts = controller.reacts

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Reply as the controller does."""
        yield from self._controller.on(event, view)
        if isinstance(event, Started):
            for record in self._pilot.records.values():
                yield from self._controller.on(Finished(record.finished_ts or 0.0, record), view)


@dataclass(kw_only=True, eq=False)
class StopWhenFailing:
    """A controller that stops a measurement which can no longer give prices, and reports why.

    Calls after a failed one would be useless. Finished calls are in the journal of a real run.
    """

    name: str
    """Name of the measurement."""
    num_calls: int
    """Number of its calls."""
    for_answers: bool
    """See ``OtherCalls``. Single failed calls of a pilot are repeated with the batch."""
    reacts: ClassVar[bool] = False
    _num_finished: int = field(default=0, init=False)
    _failed: list[CallRecord] = field(default_factory=list, init=False)
    """Failures since a call last finished."""

    def on(self, event: Event, view: View) -> tuple[Command, ...]:
        """Count how calls end, and check each lost worker.

        Raises
        ------
        BackendError
            If too many calls fail.
        DisturbedSweepError
            If a call never ends because its worker is lost: on another worker it may.
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
    """Measure on other calls until no session is interrupted; stages begun by earlier starts do not count as tries.

    Parameters
    ----------
    stage_of
        Makes the stage, without the workers lost so far.
    fit
        Computes the measurement from the end of the stage.
    log
        Receives lines for the user.
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
    """Read the answers of the stages of the batch's calls from its run."""
    finished = (record for record in view.calls_by_session() if record.status is CallStatus.FINISHED)
    return Pilot(
        records={record.key: record for record in finished},
        sessions=view.closed_sessions(),
        num_sessions=view.next_session(),
    )


def backend_of(job: Job, earlier: Inputs | None = None) -> Backend:
    """Return the backend of a run for the batch's questions, or for calls that read the given records."""
    known = {question.id: question for question in job.workload.questions}
    prefixes = None if job.graph.prefill_order is None else prompts_of(job.graph, known, is_whole=False)
    return job.site.backend(known, prompts_of(job.graph, known), prefixes=prefixes, earlier=earlier)


def _spread_anew(job: Job) -> Controller:
    """Make a controller that spreads the calls of lost workers evenly over the others."""

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

"""Runs sessions on real engines: executes commands, sends events, and keeps a journal that survives a crash."""

import heapq
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from itertools import count
from pathlib import Path

import msgspec

from mosaic.core.checks import require_unique
from mosaic.core.cluster import GANG_RULE, Cluster, may_be_gang
from mosaic.core.commands import Cancel, Close, Command, Cut, Move, Open, Prefill, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Event, Finished, Lost, Prefilled, Redone, Started, Tick
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord, PrefillRecord, inputs_of
from mosaic.core.workload import CallKey, Expert, ExpertName
from mosaic.engines.billing import Billing
from mosaic.engines.calls import CallState, SessionState
from mosaic.engines.engine import Prompt
from mosaic.engines.launcher import Launcher, Patience
from mosaic.engines.messages import Gone
from mosaic.engines.requests import Engines, RunContent, ServedExpert, is_of_same_engine
from mosaic.engines.sessions import Sessions
from mosaic.runtime.journal import Journal
from mosaic.runtime.log import make_folder

WAIT_S = 1.0
"""Interval of the watchdog."""


@dataclass(kw_only=True, eq=False)
class EngineBackend:
    """Executes one run on real engines.

    Results are on disk before they are reported, and commands before they take effect. An interrupted run is resumed
    when it is run again with the same journal. Calls in the journal are not run again but reported again, in order of
    time. The run's clock continues where it stopped. Failed calls are repeated.
    """

    name: str
    """Name in summaries."""
    experts: InitVar[Sequence[Expert]]
    """The experts that may answer."""
    cluster: Cluster
    journal: InitVar[Path]
    """A folder for one run; it is created if needed, and holds the workers' output too."""
    content: RunContent
    """Requests and answers of calls."""
    engines: Engines
    """Specifies how experts are loaded."""
    launcher: Launcher
    """Starts worker processes."""
    patience: Patience | None = None
    """Time limits and retries."""
    lost: dict[int, str] = field(default_factory=dict)
    """Workers that are given up, and why; runs that share it try none of them again."""
    billing: Billing | None = None
    """Of servers; None: nothing is billed."""

    def __post_init__(self, experts: Sequence[Expert], journal: Path) -> None:
        require_unique((expert.name for expert in experts), f"{self.name} backend: expert name")
        self.log = Journal(journal)
        """All events of the run, and its commands."""
        self._experts = {expert.name: expert for expert in experts}
        self._started: Sessions | None = None
        self._served: dict[ExpertName, ServedExpert] = {}
        self._numbers = count()
        self._question_numbers = {question: number for number, question in enumerate(self.content.questions)}
        self._records: dict[CallKey, CallRecord] = {}
        """Records of the reported calls."""
        self._outcomes: dict[CallKey, Outcome | None] = {}
        """Outcomes of all submitted calls."""
        self._again: list[tuple[float, int, CallRecord | PrefillRecord]] = []
        """Calls and prefills that ended before this start and are not yet reported, the earliest first."""
        self._num_redone: dict[bool, Counter[ExpertName]] = {True: Counter(), False: Counter()}
        """Numbers of ended calls that are run again, by whether their engine is the same; those not yet reported."""
        self._events: deque[Event] = deque()
        self._ts = 0.0
        """The latest reported instant."""
        self._event_ts = 0.0
        """The instant of the last event."""

    def apply(self, command: Command) -> None:
        """Execute a command; one that is too late has no effect.

        Raises
        ------
        BackendError
            If the command names something unknown or something that cannot be served, or an expert's checkpoint fails
            its checks.
        """
        match command:
            case Open(session=session):
                self._open(session)
            case Submit():
                self._submit(command)
            case Cancel(key=key):
                if (call := self._find(key)) is not None:
                    self._sessions.calls.cancel(call)
            case Cut(key=key, tokens=tokens):
                if tokens < 1:
                    raise BackendError(f"Cut {key}: tokens must be at least 1, got {tokens}")
                if (call := self._find(key)) is not None:
                    self._sessions.calls.cut(call, tokens)
            case Move(key=key, session=number):
                state = self._session(number, f"Move {key}", is_open=True)
                if (call := self._find(key)) is not None:
                    self._check_expert(f"Move {key}", call.call.expert, state)
                    self._sessions.calls.redirect(call, number)
            case Close(session=number):
                self._session(number, "Close").is_closing = True
            case Prefill():
                self._prefill(command)

    def events(self, *, reacts: bool, tick_s: float | None = None) -> Generator[Event, None, None]:
        """Yield events; calls are reported one by one as they end, even if no controller reacts.

        Raises
        ------
        BackendError
            If calls are left, no worker is lost and nothing can happen any more, or if the machine or the journal
            fails. Finished work is kept.
        KeyboardInterrupt
            On Ctrl-C, when all processes have ended; the message names what is kept. To resume, run the same with the
            same journal.
        """
        if self._started is not None:
            raise BackendError("a backend serves one run, make a new one for the next")
        try:
            self._begin()
            losses = self._losses()
            yield Started(0.0, resumes_ts=self._ts)
            yield from losses
            yield from self._run(tick_s)
        except KeyboardInterrupt:
            self._stop()
            self.log.sync()
            done = self.log.state.done_keys & self._outcomes.keys()
            text = f"stopped; {len(done)} of {len(self._outcomes)} calls are in {self.log.folder}"
            raise KeyboardInterrupt(text) from None
        finally:
            self._stop()

    def _begin(self) -> None:
        log, state = self.log, self.log.state
        make_folder(log.folder)
        self._num_damaged = state.num_damaged
        for record in state.prefills:
            heapq.heappush(self._again, (record.finished_ts, next(self._numbers), record))
        self.launcher.begin(log.folder, self.cluster.num_workers, is_new=not state.done_keys)
        self._ts = log.begin()
        self._started = Sessions(
            launcher=self.launcher,
            journal=log,
            patience=self.patience or Patience(),
            start_ts=self._ts,
            num_workers=self.cluster.num_workers,
            lost=self.lost,
            emit=self._events.append,
            read=self._read,
            prompt_of=self._prompt_of,
            billing=self.billing,
        )

    def _losses(self) -> list[Lost]:
        """List the workers that are lost at the start of the run."""
        for change in self.launcher.changes():
            for worker in change.workers:
                if isinstance(change, Gone):
                    self.lost.setdefault(worker, change.cause)
                else:
                    self.lost.pop(worker, None)
        lost = sorted(self.lost.items())
        return [Lost(0.0, worker, cause, len(lost) - number) for number, (worker, cause) in enumerate(lost, start=1)]

    def _run(self, tick_s: float | None) -> Generator[Event, None, None]:
        sessions = self._sessions
        tick_ts = time.monotonic() + (tick_s or 0.0)
        while True:
            yield from self._ended_before()
            self.log.sync()
            if self._events:
                yield from self._round()
                continue
            sessions.start()
            if self._events:
                continue
            if sessions.is_over:
                return
            wait_s = WAIT_S if tick_s is None else min(WAIT_S, max(0.0, tick_ts - time.monotonic()))
            sessions.advance(wait_s, may_act=tick_s is not None)
            if tick_s is not None and time.monotonic() >= tick_ts:
                tick_ts = time.monotonic() + tick_s
                self._events.append(Tick(sessions.now()))

    def _round(self) -> Iterator[Event]:
        """Yield events that are on disk; the commands in reply wait for the next sync."""
        for _ in range(len(self._events)):
            event = self._events.popleft()
            self._event_ts = event.ts
            self._ts = max(self._ts, event.ts)
            if isinstance(event, Finished):
                self._records[event.record.key] = event.record
            yield event
            yield from self._ended_before()

    def _ended_before(self) -> Iterator[Event]:
        """Yield what is repeated, and the earlier ends of submitted calls, in order of time."""
        changed, outdated = self._num_redone[False], self._num_redone[True]
        while self._again or self._num_damaged or changed or outdated:
            if self._num_damaged or changed or outdated:
                redone = Redone(self._event_ts, self._num_damaged, dict(changed), dict(outdated))
                self._num_damaged = 0
                changed.clear()
                outdated.clear()
                yield redone
                continue
            ts, _, record = heapq.heappop(self._again)
            self._event_ts = ts
            self._ts = max(self._ts, ts)
            if isinstance(record, CallRecord):
                self._records[record.key] = record
                yield Finished(ts, record)
            else:
                yield Prefilled(ts, record)

    def _stop(self) -> None:
        if self._started is not None:
            self._started.stop()
        self.log.close()

    @property
    def _sessions(self) -> Sessions:
        assert self._started is not None, "commands are applied between two events"
        return self._started

    def _open(self, session: Session) -> None:
        label = f"session {session.id} of {session.expert!r}"
        if self._sessions.get(session.id) is not None:
            raise BackendError(f"{label}: id must be one that no session has")
        for needed in session.after:
            self._session(needed, f"{label}: after")
        expert = self._expert(session.expert, f"session {session.id}")
        try:
            workers = self.cluster.select(session.workers)
        except ValueError as error:
            raise BackendError(f"{label}: {error}") from error
        if not may_be_gang(workers):
            raise BackendError(f"{label}: workers must be {GANG_RULE}, got {[worker.place for worker in workers]}")
        spec = self.engines.spec(replace(expert, tp_degree=len(workers)), workers)
        self._sessions.open(session, spec, self._ts)

    def _submit(self, command: Submit) -> None:
        call, to, label = command.call, command.to, f"call {command.call.key}"
        expert = self._expert(call.expert, label)
        if isinstance(to, int):
            state = self._session(to, label, is_open=True)
            self._check_expert(label, call.expert, state)
        elif to != call.expert:
            raise BackendError(f"{label} is for {call.expert!r}, got the queue of {to!r}")
        served = self._served_expert(expert)
        present = self._find(call.key) if call.key in self._outcomes else None
        if present is not None:
            to_state = self._sessions.get(present.to) if isinstance(present.to, int) else None
            if not (present.is_moving and to_state is not None and to_state.has_ended):
                raise BackendError(f"{label} was submitted and has not ended")
            self._sessions.calls.redirect(present, to)  # its session is lost
            return
        waits_for = [key for key in call.after if key in self._outcomes and self._find(key) is not None]
        if waits_for:
            raise BackendError(f"{label}: all calls that it comes after must have ended, got {waits_for[0]}")
        is_new = call.key not in self._outcomes
        inputs = inputs_of(call, self._records)
        outcome = self._outcomes[call.key] = self.content.outcome(call, inputs, expert.kv_budget_tokens)
        request = self.content.request(call, served, inputs, outcome)
        number = next(self._numbers)
        record = self._done(call.key, request.fingerprint, to)
        if record is not None:
            self._sessions.note_end(record)
            heapq.heappush(self._again, (record.finished_ts or 0.0, number, self._read(record)))
            return
        earlier = self.log.state.last_fingerprint(call.key)
        if is_new and earlier is not None:
            self._num_redone[is_of_same_engine(earlier, request.fingerprint)][call.expert] += 1
        request = request._replace(prompt="", queued_ts=max(call.ready_s, self._ts))
        came_ts = request.queued_ts
        if self.billing is not None:
            number, came_ts = self._question_numbers.get(call.key.question, number), call.ready_s
        self._sessions.calls.submit(CallState(call=call, request=request, to=to, number=number, came_ts=came_ts))

    def _done(self, key: CallKey, fingerprint: str, to: int | ExpertName) -> CallRecord | None:
        """Find a call that need not be run.

        If its session's number belongs to another session here, it is reported for the session that it is sent to.
        """
        record = self.log.state.done(key, fingerprint)
        if record is None or not isinstance(to, int):
            return record
        state = self._sessions.get(record.session)
        if state is None or (state.session.expert, state.session.workers) == (record.expert, record.workers):
            return record
        return msgspec.structs.replace(record, session=to)

    def _prefill(self, command: Prefill) -> None:
        call, label = command.call, f"prefill of call {command.call.key}"
        state = self._session(command.session, label)
        self._check_expert(label, call.expert, state)
        if state.send is None or state.is_closing or call.key in self._outcomes:
            return
        inputs = inputs_of(msgspec.structs.replace(call, after=call.after[: command.num_read]), self._records)
        request = self.content.prefill(call, self._served_expert(self._experts[call.expert]), inputs)
        if request is not None:
            state.send([request])

    def _read(self, record: CallRecord) -> CallRecord:
        return self.content.read(record, self._served[record.expert], self._outcomes[record.key])

    def _prompt_of(self, state: CallState) -> Prompt:
        call = state.call
        return self.content.prompt(call, self._served[call.expert], inputs_of(call, self._records), state.request.seed)

    def _expert(self, name: ExpertName, label: str) -> Expert:
        if name not in self._experts:
            raise BackendError(f"{label}: expert must be one of {sorted(self._experts)}, got {name!r}")
        return self._experts[name]

    def _served_expert(self, expert: Expert) -> ServedExpert:
        if expert.name not in self._served:
            self._served[expert.name] = self.engines.served(expert)
        return self._served[expert.name]

    def _session(self, number: int, label: str, *, is_open: bool = False) -> SessionState:
        state = self._sessions.get(number)
        if state is None or (is_open and state.is_closing):
            rule = "was opened and not closed" if is_open else "was opened"
            raise BackendError(f"{label}: session must be one that {rule}, got {number}")
        return state

    def _find(self, key: CallKey) -> CallState | None:
        """Find a call; None: it has ended, or is lost."""
        if key not in self._outcomes:
            raise BackendError(f"command must name a call that was submitted, got {key}")
        return self._sessions.calls.get(key)

    def _check_expert(self, label: str, expert: ExpertName, state: SessionState) -> None:
        if state.session.expert != expert:
            raise BackendError(f"{label} is for {expert!r}, got session {state.session.id} of {state.session.expert!r}")

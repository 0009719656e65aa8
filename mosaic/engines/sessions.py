"""Runs sessions over worker processes: loads experts, repeats failures, and finds the call that breaks a session."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from mosaic.core.commands import Close
from mosaic.core.errors import BackendError
from mosaic.core.events import Closed, Event, Finished, Idle, Joined, Lost, Prefilled, Progress, Ready, Unused
from mosaic.core.plan import Session
from mosaic.core.results import SERVED, CallRecord, CallStatus
from mosaic.core.workload import ExpertName
from mosaic.engines.billing import NOT_SENT, Admission, Billing
from mosaic.engines.calls import Calls, CallState, SessionState, Stage
from mosaic.engines.engine import EngineSpec, Output, Prompt
from mosaic.engines.launcher import Launcher, Patience, Phase, WorkerProcess
from mosaic.engines.local_launcher import output_of
from mosaic.engines.messages import Exited, Failure, FromWorker, Gone, Load, Quit, Serve
from mosaic.runtime.journal import ClosedSession, EndedPrefill, Journal, OpenedSession

OWN_BATCHES = 2
"""Full batches of its session's calls that a process gets: enough that its engine never runs dry."""
SHARED_BATCHES = 1.25
"""Limit with calls of its expert's queue, so that sessions which share a queue end at about the same time."""
MAX_ISOLATED = 3
"""Consecutive calls that break their session, after which the calls are not the cause."""
NUM_TIMES = 3
"""A call fails alone when its server has failed so many times in a row, the last time with only this call."""
GATHER_S = 0.005
"""Shortest interval between receptions: messages in between are written and synced together."""
RETRY_S = 0.1
"""Pause before a process that could not be started is tried again."""
_TRY_AGAIN = "correct it and start the same run again: failed calls are tried again"


@dataclass(slots=True)
class WorkerState:
    """A worker of the run."""

    free_ts: float
    """When its last session ended."""
    is_awaited: bool = False
    """A session waits for it or is on it."""


@dataclass(kw_only=True, eq=False)
class Sessions:
    """Runs sessions over worker processes until each has ended or its worker is lost.

    A session starts when the sessions before it on its workers, and those in its ``after``, have ended. If its expert
    is still loaded on the same workers it uses that process, otherwise a new one, after the old one has ended. If a
    process dies, fails or hangs, its session waits again, with the calls that have not ended.
    """

    launcher: Launcher
    journal: Journal
    patience: Patience
    start_ts: float
    """When the run starts or resumes."""
    num_workers: int
    """They are numbered from 0."""
    lost: dict[int, str]
    """Workers that were given up, with the cause; runs that share it share this knowledge."""
    emit: Callable[[Event], None]
    """Receives events."""
    read: Callable[[CallRecord], CallRecord]
    """Reads the answer of an ended call."""
    prompt_of: Callable[[CallState], Prompt]
    """Writes what a call reads."""
    billing: Billing | None = None
    """Of servers that bill what they are sent; None: nothing is billed."""

    def __post_init__(self) -> None:
        self._zero_ts = time.monotonic() - self.start_ts
        self._states: dict[int, SessionState] = {}
        self.calls = Calls(self._states, self.now, self._end_call, self.prompt_of)
        self._workers = [WorkerState(self.start_ts) for _ in range(self.num_workers)]
        self._num_failed_loads: Counter[int] = Counter()
        """By worker, since it served a call."""
        self._num_fork_server_deaths: Counter[int] = Counter()
        """By worker whose process ended with its fork server, since any worker served a call."""
        self._open: list[SessionState] = []
        """Sessions that have not ended, in the order of opening."""
        self._processes: dict[int, WorkerProcess] = {}
        """Processes that have not ended."""
        self._received_ts = 0.0
        self._ended: dict[int, list[CallRecord]] = defaultdict(list)
        self._broken: dict[ExpertName, str] = {}
        self._must_retry = False
        """A process could not be started just now."""
        self._admission = Admission(self.billing, self.journal, self.calls.get)

    def now(self) -> float:
        """Seconds on the run's clock."""
        return time.monotonic() - self._zero_ts

    def get(self, number: int) -> SessionState | None:
        """Find a session; None: it was never opened."""
        return self._states.get(number)

    @property
    def is_over(self) -> bool:
        return not (self._open or len(self.calls) or self._processes)

    def open(self, session: Session, spec: EngineSpec, ts: float) -> None:
        """Let a session wait for its workers; if one of them is lost, the session is lost too."""
        state = self._states[session.id] = SessionState(session=session, spec=spec, opened_ts=ts)
        if not self.lost.keys().isdisjoint(session.workers):
            state.stage = Stage.LOST
            return
        self._open.append(state)
        for worker in session.workers:
            self._workers[worker].is_awaited = True

    def start(self) -> None:
        """Start what can start, end sessions without work, and report workers that are no longer needed."""
        for state in list(self._open):
            if state.stage is Stage.WAITING and state.is_closing and not state.has_calls:
                self._end_session(state, state.end_ts, Stage.OVER)
        self._must_retry = False
        for state in self._startable():
            self._start(state)
        busy = {worker for state in self._open for worker in state.session.workers}
        for number, worker in enumerate(self._workers):
            if worker.is_awaited and number not in busy:
                worker.is_awaited = False
                if number not in self.lost:
                    self.emit(Idle(self.now(), number))

    def advance(self, timeout_s: float, *, may_act: bool) -> None:
        """Distribute calls, then receive events; ``may_act``: controllers may still send commands.

        A ``BackendError`` means that nothing can ever happen again, that no process can start, or that the journal
        fails.
        """
        if self._fail_unservable():
            return  # which controllers may have to receive first
        self._hand_out()
        if self._stop_at_cap():
            return
        for process in self._processes.values():
            if process.phase is Phase.IDLE and not self._is_wanted(process):
                process.begin(Phase.CLOSING)
                process.send(Quit())
        if not (may_act or self._must_retry or self._can_move()):
            self._give_in()
            return
        now = self.now()
        changes_s = [ts - now for ts in self._next_changes(now)]
        wait_s = timeout_s if self._processes or may_act or changes_s else RETRY_S if self._must_retry else 0.0
        for process, message in self._receive(max(0.0, min([wait_s, *changes_s]))):
            self._handle(process, message)
        self._check_workers()
        for process in self._processes.values():
            if process.is_overdue(self.patience):
                self.launcher.kill(process.number)

    def stop(self) -> None:
        """End all processes at once and wait until they have ended."""
        deadline = time.monotonic() + self.patience.close_timeout_s
        for number in self._processes:
            self.launcher.kill(number)
        while self._processes and time.monotonic() < deadline:
            with suppress(BackendError):
                for _ in self._receive(1.0):
                    pass

    def _receive(self, timeout_s: float) -> Iterator[tuple[WorkerProcess, FromWorker | Exited]]:
        """Send the queued messages to processes, and yield theirs; the last one of a process is ``Exited``."""
        for process in self._processes.values():
            for unsent in process.unsent:
                self.launcher.send(process.number, unsent)
            process.unsent.clear()
        time.sleep(max(0.0, min(self._received_ts + GATHER_S - time.monotonic(), timeout_s)))
        for number, message in self.launcher.listen(timeout_s):
            process = self._processes[number]
            self._received_ts = process.received_ts = time.monotonic()
            if isinstance(message, Failure):
                process.failure = message
            elif isinstance(message, Exited):
                del self._processes[number]
            yield process, message

    def note_end(self, record: CallRecord) -> None:
        """Add an ended call to its session's count."""
        self._ended[record.session].append(record)

    def _startable(self) -> list[SessionState]:
        """List the waiting sessions that are the first ones on their workers, and whose predecessors have ended.

        Servers that serve nothing are paused for a while.
        """
        held: set[int] = set()
        found, now = [], self.now()
        for state in self._open:
            session = state.session
            is_followed = all(self._states[number].has_ended for number in session.after)
            is_due = state.stage is Stage.WAITING and not state.is_paused(now)
            if is_due and is_followed and held.isdisjoint(session.workers):
                found.append(state)
            held.update(session.workers)
        return found

    def _start(self, state: SessionState) -> None:
        """Start a session on its workers; if another expert is still loaded there, wait for the end of its process."""
        workers = state.session.workers
        there = [process for process in self._processes.values() if not set(workers).isdisjoint(process.workers)]
        is_resident = len(there) == 1 and there[0].phase is Phase.IDLE and self._is_wanted(there[0])
        if there and not is_resident:
            return
        process = there[0] if is_resident else self._open_process(state)
        if process is None:
            self._must_retry = True
            return
        followed = [self._states[needed].end_ts for needed in state.session.after]
        free_ts = max(self._workers[worker].free_ts for worker in workers)
        state.stage, process.session = Stage.RUNNING, state.session.id
        process.one_at_a_time = 0 < state.num_failures == self.patience.max_retries
        process.begin(Phase.SERVING if is_resident else Phase.LOADING)
        state.load_start_ts = max([state.opened_ts, free_ts, *followed])
        process.send(
            Serve(
                session=replace(state.session, shard=()),
                load_start_ts=state.load_start_ts,
                is_resident=is_resident or state.spec.is_remote,
            )
        )

    def _open_process(self, state: SessionState) -> WorkerProcess | None:
        """Start a process for a session; None: not now, try again."""
        number, workers = next(self.launcher.numbers), state.session.workers
        if not self.launcher.open(number, workers):
            return None
        process = WorkerProcess(number=number, spec=state.spec, workers=workers)
        process.send(Load(spec=state.spec, zero_ts=self._zero_ts))
        self._processes[number] = process
        return process

    def _state_of(self, process: WorkerProcess) -> SessionState | None:
        """Return the session that a process serves."""
        return None if process.session is None else self._states[process.session]

    def _is_wanted(self, process: WorkerProcess) -> bool:
        """Whether the next session on all workers of a process is one session of its expert."""
        following = [
            next((state for state in self._open if worker in state.session.workers), None) for worker in process.workers
        ]
        first = following[0]
        same = first is not None and first.session.workers == process.workers and first.spec == process.spec
        return same and all(state is first for state in following)

    def _fail_unservable(self) -> bool:
        """End the calls of queues whose sessions are broken; returns whether there were any."""
        unserved = self._broken.keys() - {state.session.expert for state in self._open}
        failing = [expert for expert in self.calls.experts_waited_for() if expert in unserved]
        for expert in failing:
            self.calls.fail(self.calls.queue_of(expert), self._broken[expert])
        return bool(failing)

    def _hand_out(self) -> None:
        """Give processes the calls that they have room for."""
        self._admission.begin_round()
        for process in self._processes.values():
            state = self._state_of(process)
            if state is None or state.send is None:
                continue
            room, shared_room = _room(process, state)
            share = 0 if state.is_closing else min(self._fair_share(state), shared_room)
            if requests := self.calls.take(state, room, share, partial(self._admission.admit, state)):
                if self.billing is not None:
                    self.journal.sync()  # servers may bill them from now on
                process.send(requests)
            if state.is_closing and not state.has_all and not state.queue and not state.incoming:
                state.has_all = True
                process.send(Close(state.session.id))

    def _stop_at_cap(self) -> bool:
        """Fail all that waits where a cap keeps it from being sent, and nothing in progress may cost less."""
        is_idle = not any(state.held for state in self._open)
        if (event := self._admission.stop(self.now(), is_idle=is_idle)) is not None:
            self.emit(event)
        cause = self._admission.stopped
        return cause is not None and self.calls.fail_waiting(f"{NOT_SENT}{cause}")

    def _fair_share(self, state: SessionState) -> float:
        """Compute how many calls a server may have, so that all servers of its expert have equal loads."""
        if not state.spec.is_remote:
            return math.inf
        now, expert = self.now(), state.session.expert
        others = [one for one in self._open if one.session.expert == expert and not one.is_paused(now)]
        num_calls = len(self.calls.queue_of(expert)) + sum(len(one.held) for one in others)
        return math.ceil(num_calls / len(others))

    def _can_move(self) -> bool:
        """Whether any further event can occur without a command."""
        if any(process.phase in (Phase.LOADING, Phase.CLOSING) for process in self._processes.values()):
            return True
        now = self.now()
        return any(
            state.has_all or state.has_calls or (not state.is_closing and self.calls.queue_of(state.session.expert))
            for state in self._open
            if state.stage is Stage.RUNNING or state.is_paused(now)
        )

    def _next_changes(self, now: float) -> Iterator[float]:
        """List the instants at which a call becomes ready, or a session may be tried again."""
        queues = [self.calls.queue_of(expert) for expert in self.calls.experts_waited_for()]
        for queue in (*queues, *(state.queue for state in self._open)):
            if (ready_s := queue.next_ready_s(now)) is not None:
                yield ready_s
        yield from (state.resume_ts for state in self._open if state.is_paused(now))

    def _give_in(self) -> None:
        """No further event can occur: drop the calls of lost workers, or raise why nothing is served."""
        if not self.lost:
            raise BackendError(self._why_stuck())
        is_last_try = all(state.is_closing for state in self._open)
        for state in list(self._open):
            state.is_closing = True
            if is_last_try and state.stage is Stage.WAITING:
                self._lose_session(state)
        if is_last_try:
            self.calls.lose_all()

    def _why_stuck(self) -> str:
        waiting = [state.session.id for state in self._open if state.stage is Stage.WAITING]
        idle = [state.session.id for state in self._open if state.stage is Stage.RUNNING]
        if waiting:
            return (
                f"sessions {waiting} wait for sessions {idle}, which have no calls and are not closed, "
                "and can never start"
            )
        if experts := self.calls.experts_waited_for():
            return f"calls wait for sessions of {experts}, and none is open"
        return f"sessions {idle} have no calls and are not closed"

    def _check_workers(self) -> None:
        """Handle workers that went down, and those that came up."""
        for change in self.launcher.changes():
            if isinstance(change, Gone):
                self._give_up(change.workers, change.cause)
                continue
            for worker in change.workers:
                if self.lost.pop(worker, None) is not None:
                    state = self._workers[worker]  # sessions may wait for it
                    state.free_ts = max(self.now(), state.free_ts)
                    self._num_failed_loads[worker] = self._num_fork_server_deaths[worker] = 0
                    self.emit(Joined(self.now(), worker))

    def _handle(self, process: WorkerProcess, message: FromWorker | Exited) -> None:
        state = self._state_of(process)
        if isinstance(message, Exited):
            self._lose(process, message)
        elif isinstance(message, Finished):
            self._end_call(message.record)
        elif isinstance(message, Prefilled):
            self.journal.add(EndedPrefill(message.record))
            self.emit(message)
        elif isinstance(message, Ready):
            process.begin(Phase.SERVING)
            if state is not None:
                state.send = process.send
                session, load_start_ts = state.session, state.load_start_ts
                named = session.id, session.expert, session.node, session.workers
                self.journal.add(OpenedSession(*named, load_start_ts, message.ts - load_start_ts, message.ts))
            self.emit(message)
        elif isinstance(message, ClosedSession):
            self.journal.add(message)
            process.session = None
            process.begin(Phase.IDLE)
            if state is not None:
                self._end_session(state, message.end_ts, Stage.OVER)
        elif isinstance(message, Progress):
            self.emit(message)
        elif isinstance(message, Output) and state is not None:
            self.calls.take_back(state, message)

    def _end_call(self, record: CallRecord) -> None:
        known = self.calls.remove(record)
        if known is None:
            return  # it was received before
        if record.status in SERVED:
            self._states[record.session].note_served()
            for worker in record.workers:
                self._num_failed_loads[worker] = 0
            self._num_fork_server_deaths.clear()
        kept = self.journal.add_call(record, self.read(known))
        self.note_end(kept)
        self.emit(Finished(kept.finished_ts or 0.0, kept))

    def _lose(self, process: WorkerProcess, exited: Exited) -> None:
        """Take back the calls that an ended process did not finish."""
        state = self._state_of(process)
        if state is None:
            return
        state.stage, state.send, state.has_all = Stage.WAITING, None, False
        state.end_ts = self.now()
        self._free(state.session.workers, state.end_ts)
        held = self.calls.empty(state)
        if exited.machine_is_lost or (state.is_closing and not state.has_calls):
            return
        if state.spec.is_remote and process.failure is not None:
            self._wait_for_server(state, process.failure, held)
            return
        cause = f"{process.cause(exited)}; see {output_of(self.journal.folder, process.workers)}"
        if exited.fork_server_died or process.is_workers_fault:
            num_failures = self._num_fork_server_deaths if exited.fork_server_died else self._num_failed_loads
            num_failures.update(process.workers)
            if max(num_failures[worker] for worker in process.workers) > self.patience.max_restarts:
                self._give_up(process.workers, cause)
            return
        state.num_failures += 1
        if state.num_failures <= self.patience.max_retries:
            return
        if process.one_at_a_time and process.phase is Phase.SERVING and state.num_isolated < MAX_ISOLATED:
            state.num_isolated += 1
            state.num_failures = 0
            if len(held) == 1:
                self.calls.end(held, CallStatus.FAILED, f"{cause}; {_TRY_AGAIN}")
            return
        self._break(state, f"{cause}; {_TRY_AGAIN}")

    def _wait_for_server(self, state: SessionState, failure: Failure, held: Sequence[CallState]) -> None:
        """Try a server that serves nothing again later, or give it up; other servers of its expert serve meanwhile.

        Pauses grow from try to try. A server that never served a call is not waited for, unless it demanded a pause.
        Neither is one whose refusal is permanent. A call that was each time the only one fails alone. After some such
        calls in a row, the calls are not the cause.
        """
        now, patience = self.now(), self.patience.servers
        state.ill_ts = now if state.ill_ts is None else state.ill_ts
        is_awaited = (state.spec.has_served or failure.wait_s > 0) and not failure.is_fatal
        if not is_awaited or now + failure.wait_s - state.ill_ts > patience.outage_timeout_s:
            self._broken[state.session.expert] = failure.cause
            self._give_up(state.session.workers, failure.cause)
            return
        state.resume_ts = now + max(patience.wait_s(state.num_failures), failure.wait_s)
        state.num_failures += 1
        is_alone = len(held) == 1 and not failure.is_worker
        if is_alone and state.num_failures >= NUM_TIMES and state.num_isolated < MAX_ISOLATED:
            state.num_isolated += 1
            self.calls.end(held, CallStatus.FAILED, failure.cause)

    def _break(self, state: SessionState, cause: str) -> None:
        """End a session that fails every call."""
        state.broken = self._broken[state.session.expert] = cause
        self.calls.fail(state.queue, cause)
        self._end_session(state, state.end_ts, Stage.OVER)

    def _give_up(self, workers: Sequence[int], cause: str) -> None:
        """Lose workers, and all sessions that need any of them."""
        new = [worker for worker in workers if worker not in self.lost]
        self.lost |= dict.fromkeys(new, cause)
        for state in list(self._open):
            if not self.lost.keys().isdisjoint(state.session.workers):
                self._lose_session(state)
        for num_reported, worker in enumerate(new, start=1):
            self.emit(Lost(self.now(), worker, cause, num_more=len(new) - num_reported))

    def _lose_session(self, state: SessionState) -> None:
        self._end_session(state, state.end_ts, Stage.LOST)
        self.calls.lose(state)

    def _end_session(self, state: SessionState, end_ts: float, stage: Stage) -> None:
        """End a session finally, and report it if it was ever ready."""
        state.stage, state.end_ts = stage, end_ts
        state.send = None
        self._open.remove(state)
        self._free(state.session.workers, end_ts)
        if (record := self.journal.state.session_record(state.session, self._ended[state.session.id])) is not None:
            self.emit(Closed(record.end_ts, record))
        elif stage is not Stage.LOST:
            self.emit(Unused(end_ts, state.session.id))

    def _free(self, workers: Iterable[int], ts: float) -> None:
        for worker in workers:
            self._workers[worker].free_ts = max(self._workers[worker].free_ts, ts)


def _room(process: WorkerProcess, state: SessionState) -> tuple[int, int]:
    """Return the limits of a process: for all calls, and for taking more of its expert's queue."""
    if state.ill_ts is not None:
        return 1, 1  # until its server has served a call
    if process.one_at_a_time and state.suspected and not process.spec.is_remote:
        return 1, 0
    batch = process.spec.max_num_seqs
    return OWN_BATCHES * batch, math.ceil(SHARED_BATCHES * batch)

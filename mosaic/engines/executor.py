"""Sessions and calls over worker processes: who starts when, who serves what, and what of it is told."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from mosaic.core.commands import Close
from mosaic.core.errors import BackendError
from mosaic.core.events import Closed, Event, Finished, Idle, Joined, Lost, Prefilled, Progress, Ready, Unused
from mosaic.core.plan import Session
from mosaic.core.results import SERVED, CallRecord, CallStatus
from mosaic.core.workload import ExpertName
from mosaic.engines.calls import CallBook, CallState
from mosaic.engines.engine import EngineSpec, Output
from mosaic.engines.launcher import Launcher
from mosaic.engines.local_launcher import output_of
from mosaic.engines.messages import Exited, Failure, Gone, Serve
from mosaic.engines.sessions import (
    MAX_ISOLATED,
    Patience,
    Phase,
    SessionState,
    Stage,
    WorkerBook,
    WorkerProcess,
    can_move,
    fair_share,
    is_by_a_call,
    is_wanted,
    may_start,
    next_changes,
    note_outage,
    why_stuck,
)
from mosaic.engines.worker_pool import Heard, WorkerPool
from mosaic.runtime.journal import ClosedSession, EndedPrefill, Journal

RETRY_S = 0.1
"""So soon a process that could not be started is tried again."""
_TRY_AGAIN = "correct it and start the same run again: failed calls are tried again"


class Executor:
    """Runs sessions over worker processes until each has ended or its worker is gone.

    A session starts when those before it on its workers, and those that it follows, have ended. Where its expert
    is still loaded on the same workers it goes to that process, else to a new one, once the old one is gone. A process
    that dies, fails or hangs takes its session back to waiting, with the calls of which nothing was heard.
    """

    def __init__(
        self,
        launcher: Launcher,
        journal: Journal,
        *,
        start_ts: float,
        workers: WorkerBook,
        patience: Patience,
        on_end: Callable[[CallRecord], None],
        tell: Callable[[Event], None],
    ) -> None:
        self.sessions: dict[int, SessionState] = {}
        self._zero_ts = time.monotonic() - start_ts
        self.calls = CallBook(self.sessions, self.now, self._end_call)
        self._pool = WorkerPool(launcher, journal.folder, self._zero_ts, patience)
        self._workers = workers
        self._journal = journal
        self._patience = patience
        self._on_end = on_end
        self._tell = tell
        self._open: list[SessionState] = []  # those that have not ended, in the order in which they were opened
        self._broken: dict[ExpertName, str] = {}
        self._ended: dict[int, list[CallRecord]] = defaultdict(list)
        self._must_retry = False  # a process could not be started just now

    def now(self) -> float:
        """Seconds on the run's clock."""
        return time.monotonic() - self._zero_ts

    @property
    def is_over(self) -> bool:
        return not self._open and not len(self.calls) and not len(self._pool)

    def open(self, session: Session, spec: EngineSpec, ts: float) -> None:
        """Let a session wait for its workers; on one that is lost it is lost too."""
        state = self.sessions[session.id] = SessionState(session=session, spec=spec, opened_ts=ts)
        if self._workers.are_there(session.workers):
            self._open.append(state)
            self._workers.take(session.workers)
        else:
            state.stage = Stage.LOST

    def start(self) -> None:
        """Start what can start, end what has nothing to start for, and tell which workers nobody needs any more."""
        waiting = [state for state in self._open if state.stage is Stage.WAITING]
        for state in [state for state in waiting if state.is_closing and not state.has_calls]:
            self._end_session(state, state.end_ts, Stage.OVER)
        self._must_retry = False
        for state in may_start(self._open, self.sessions, self.now()):
            self._start(state)
        busy = {worker for state in self._open for worker in state.session.workers}
        for worker in self._workers.idle(busy):
            self._tell(Idle(self.now(), worker))

    def look_at_workers(self) -> None:
        """Lose workers that have gone, and take up those that have come."""
        for change in self._pool.changes():
            if isinstance(change, Gone):
                self._give_up(change.workers, change.cause)
                continue
            for worker in self._workers.bring_back(change.workers, self.now()):
                self._tell(Joined(self.now(), worker))

    def advance(self, timeout_s: float, *, may_act: bool) -> None:
        """Hand calls out, then hear what happened; ``may_act``: others may still tell it what to do.

        A ``BackendError`` says that nothing can ever happen again, or that the fork server or the journal fails.
        """
        if self._fail_unservable():
            return  # which others may want to hear first
        self._hand_out()
        for process in self._pool:
            if process.phase is Phase.IDLE and not is_wanted(process, self._open):
                self._pool.quit(process)
        now, queue_of = self.now(), self.calls.queue_of
        if not (may_act or self._must_retry or can_move(self._open, self._pool, queue_of, now)):
            self._give_in()
            return
        queues = map(queue_of, self.calls.experts_waited_for())
        changes_s = [ts - now for ts in next_changes(self._open, queues, now)]
        wait_s = timeout_s if len(self._pool) or may_act or changes_s else RETRY_S if self._must_retry else 0.0
        for process, message in self._pool.listen(max(0.0, min([wait_s, *changes_s]))):
            self._hear(process, message)
        self.look_at_workers()
        self._pool.watch()

    def stop(self) -> None:
        """Leave no process behind."""
        self._pool.kill_all()

    def note_end(self, record: CallRecord) -> None:
        """Count a call among those of its session."""
        self._ended[record.session].append(record)

    def _start(self, state: SessionState) -> None:
        """Start a session on workers that are its own now; where another expert is still loaded, wait for its end."""
        session, workers = state.session, state.session.workers
        there = [process for process in self._pool if not set(workers).isdisjoint(process.workers)]
        is_resident = len(there) == 1 and there[0].phase is Phase.IDLE and is_wanted(there[0], self._open)
        if there and not is_resident:
            return
        process = there[0] if is_resident else self._pool.start(state)
        if process is None:
            self._must_retry = True
            return
        followed = [self.sessions[needed].end_ts for needed in session.after]
        state.stage, process.session = Stage.RUNNING, state
        process.one_at_a_time = 0 < state.num_failures == self._patience.max_retries
        process.begin(Phase.SERVING if is_resident else Phase.LOADING)
        state.load_start_ts = max([state.opened_ts, self._workers.free_ts(workers), *followed])
        process.send(
            Serve(
                session=replace(session, shard=()),
                load_start_ts=state.load_start_ts,
                is_resident=is_resident or state.spec.is_remote,
                is_remote=state.spec.is_remote,
            )
        )

    def _fail_unservable(self) -> bool:
        """End the calls of queues whose sessions broke; says whether there were any."""
        unserved = self._broken.keys() - {state.session.expert for state in self._open}
        failing = [expert for expert in self.calls.experts_waited_for() if expert in unserved]
        for expert in failing:
            self.calls.end(self.calls.waiting_in(self.calls.queue_of(expert)), CallStatus.FAILED, self._broken[expert])
        return bool(failing)

    def _hand_out(self) -> None:
        """Give processes the calls that they have room for."""
        for process in self._pool:
            state = process.session
            if state is None or state.process is None:
                continue
            room, shared_room = process.room
            share = fair_share(state, self._open, self.calls.queue_of(state.session.expert), self.now())
            calls = self.calls.take(state, room, 0 if state.is_closing else min(share, shared_room))
            if calls:
                process.send(calls)
            if state.is_closing and not state.has_all and not state.queue and not state.coming:
                state.has_all = True
                process.send(Close(state.session.id))

    def _give_in(self) -> None:
        """Nothing can happen any more: leave what lost workers would have served, or say what nobody can serve."""
        if not self._workers.lost:
            raise BackendError(why_stuck(self._open, self.calls.experts_waited_for()))
        is_last_try = all(state.is_closing for state in self._open)
        for state in list(self._open):
            state.is_closing = True
            if is_last_try and state.stage is Stage.WAITING:
                self._lose_session(state)
        if is_last_try:
            self.calls.lose_all()

    def _hear(self, process: WorkerProcess, message: Heard) -> None:
        state = process.session
        if isinstance(message, Exited):
            self._lose(process, message)
        elif isinstance(message, Finished):
            self._end_call(message.record)
        elif isinstance(message, Prefilled):
            self._journal.add(EndedPrefill(message.record))
            self._tell(message)
        elif isinstance(message, Ready):
            process.begin(Phase.SERVING)
            if state is not None:
                state.process = process
                self._journal.add(state.opened(message.ts))
            self._tell(message)
        elif isinstance(message, ClosedSession):
            self._journal.add(message)
            process.session = None
            process.begin(Phase.IDLE)
            if state is not None:
                self._end_session(state, message.end_ts, Stage.OVER)
        elif isinstance(message, Progress):
            self._tell(message)
        elif isinstance(message, Output) and state is not None:
            self.calls.take_back(state, message)

    def _end_call(self, record: CallRecord) -> None:
        if not self.calls.note(record):
            return  # heard before
        if record.status in SERVED:
            state = self.sessions[record.session]
            state.note_served()
            self._workers.note_served(record.workers)
            self._pool.note_finish()
        record = self._journal.add_call(record)
        self.note_end(record)
        self._on_end(record)

    def _lose(self, process: WorkerProcess, exited: Exited) -> None:
        """Take back what a process that is gone did not finish."""
        state = process.session
        if state is None:
            return
        state.stage, state.process, state.has_all = Stage.WAITING, None, False
        state.end_ts = self.now()
        self._workers.free(state.session.workers, state.end_ts)
        held = self.calls.empty_hands(state)
        state.attempt += 1
        state.suspects.update(call.request.key for call in held)
        if exited.fork_server_died or (state.is_closing and not state.has_calls):
            return
        if state.spec.is_remote and process.failure is not None:
            self._wait_for_server(state, process.failure, held)
            return
        cause = f"{process.cause(exited)}; see {output_of(self._journal.folder, process.workers)}"
        if process.is_workers_fault:
            if self._workers.note_failed_load(process.workers[0]) > self._patience.max_restarts:
                self._give_up(process.workers, cause)
            return
        state.num_failures += 1
        if state.num_failures <= self._patience.max_retries:
            return
        if process.one_at_a_time and process.phase is Phase.SERVING and state.num_isolated < MAX_ISOLATED:
            state.num_isolated += 1
            state.num_failures = 0
            if len(held) == 1:
                self.calls.end(held, CallStatus.FAILED, f"{cause}; {_TRY_AGAIN}")
            return
        self._break(state, f"{cause}; {_TRY_AGAIN}")

    def _wait_for_server(self, state: SessionState, failure: Failure, held: Sequence[CallState]) -> None:
        """Try a server that serves nothing again later, or give it up; others of its expert serve meanwhile."""
        if not note_outage(state, failure, self._patience, self.now()):
            self._broken[state.session.expert] = failure.cause
            self._give_up(state.session.workers, failure.cause)
        elif is_by_a_call(state, failure, len(held)):
            self.calls.end(held, CallStatus.FAILED, failure.cause)

    def _break(self, state: SessionState, cause: str) -> None:
        """End a session that fails whatever it serves."""
        state.broken = self._broken[state.session.expert] = cause
        self.calls.end(self.calls.waiting_in(state.queue), CallStatus.FAILED, cause)
        self._end_session(state, state.end_ts, Stage.OVER)

    def _give_up(self, workers: Sequence[int], cause: str) -> None:
        """Lose workers, and all sessions that need any of them."""
        new = [worker for worker in workers if worker not in self._workers.lost]
        self._workers.lost |= dict.fromkeys(new, cause)
        for state in [state for state in self._open if not self._workers.are_there(state.session.workers)]:
            self._lose_session(state)
        for num_told, worker in enumerate(new, start=1):
            self._tell(Lost(self.now(), worker, cause, num_more=len(new) - num_told))

    def _lose_session(self, state: SessionState) -> None:
        self._end_session(state, state.end_ts, Stage.LOST)
        self.calls.lose(state)

    def _end_session(self, state: SessionState, end_ts: float, stage: Stage) -> None:
        """End a session for good, and tell of it if it was ever ready."""
        state.stage, state.process = stage, None
        self._open.remove(state)
        state.end_ts = end_ts
        self._workers.free(state.session.workers, end_ts)
        if (record := self._journal.state.session_record(state.session, self._ended[state.session.id])) is not None:
            self._tell(Closed(record.end_ts, record))
        elif stage is not Stage.LOST:
            self._tell(Unused(end_ts, state.session.id))

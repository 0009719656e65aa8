"""One execution of a plan over servers: which calls are under way, and what is written down when they land."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mosaic.core.errors import BackendError
from mosaic.core.plan import Session
from mosaic.core.results import CallStatus
from mosaic.core.workload import CallKey
from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.endpoint_flight import Flight, Landing
from mosaic.engines.endpoint_line import Refused, Unreachable
from mosaic.engines.endpoint_messages import Reply
from mosaic.engines.live_sessions import Stage
from mosaic.engines.orders import Job, ServeOrder
from mosaic.engines.plan_calls import can_start
from mosaic.engines.session_entries import ended_call, opened_session
from mosaic.runtime.journal import SUFFIX, Log
from mosaic.runtime.journal_records import ClosedSession, EndedCall, Entry, to_record

TICK_S = 0.5
"""Whoever watches is told this often."""


@dataclass(slots=True, kw_only=True)
class ServedSession:
    """A session on its way."""

    session: Session
    endpoint: Endpoint
    order: ServeOrder
    """Its start is filled in when it starts; nothing is loaded then."""
    jobs: dict[CallKey, Job] = field(init=False)
    """Those that have not ended."""
    waiting: deque[Job] = field(init=False)
    flights: dict[CallKey, Flight] = field(default_factory=dict)
    stage: Stage = Stage.WAITING
    end_ts: float = 0.0
    output_tokens: int = 0
    cause: str | None = None
    """Why its server is gone."""

    def __post_init__(self) -> None:
        self.jobs = {job.key: job for job in self.order.jobs}
        self.waiting = deque(sorted(self.order.jobs, key=lambda job: job.ready_s))


class EndpointRun:
    """Runs sessions over servers until each has ended or its server is gone.

    One thread, the caller's, decides and writes the journal; the others only wait for replies.
    """

    def __init__(
        self,
        sessions: Sequence[ServedSession],
        *,
        journal: Path,
        patience: EndpointPatience,
        max_in_flight: int,
        num_workers: int,
        start_ts: float,
        on_finish: Callable[[EndedCall], Iterable[CallKey]],
        on_state: Callable[[ServedSession], None],
    ) -> None:
        self.dead_workers: dict[int, str] = {}
        """Why each was given up."""
        self._sessions = sessions
        self._journal = journal
        self._patience = patience
        self._max_in_flight = max_in_flight
        self._on_finish = on_finish
        self._on_state = on_state
        self._home = {key: live for live in sessions for key in live.session.shard}
        self._by_id = {live.session.id: live for live in sessions}
        self._free_ts = [start_ts] * num_workers
        self._zero_ts = time.monotonic() - start_ts
        self._landings: queue.SimpleQueue[Landing] = queue.SimpleQueue()
        self._landing = threading.Lock()
        self._logs: dict[str, Log] = {}
        self._open_logs = ExitStack()

    def run(self, before: Callable[[], None]) -> None:
        """Run to the end, ``before`` first; whatever interrupts it, no request is left behind.

        Raises
        ------
        BackendError
            If the journal cannot be written, or a listener names a call that is not of the plan.
        """
        with self._open_logs:
            try:
                before()
                while not self._is_over():
                    while self._start_sessions():
                        pass  # one without calls is over at once, and others may follow it
                    if self._running():
                        self._send_ready()
                        self._hear()
            finally:
                for live in self._sessions:
                    self._break_off(live)

    def cancel(self, key: CallKey) -> None:
        """Stop a call; one that has ended stays as it is.

        Raises
        ------
        BackendError
            If it is not of the plan.
        """
        live = self._home.get(key)
        if live is None:
            raise BackendError(f"listener: Cancel must name a call of the plan, got {key}")
        if key not in live.jobs:
            return
        job, flight = live.jobs.pop(key), live.flights.pop(key, None)
        if flight is None:
            live.waiting.remove(job)
        else:
            flight.abort()
        self._write(live, [self._entry(live, job, flight, CallStatus.CANCELLED, self._now())])
        self._end_if_served(live)

    def _is_over(self) -> bool:
        return all(live.stage in (Stage.OVER, Stage.ABANDONED) for live in self._sessions)

    def _now(self) -> float:
        return time.monotonic() - self._zero_ts

    def _start_sessions(self) -> bool:
        """Start what can start; says whether anything ended that others may wait for."""
        over = {live.session.id for live in self._sessions if live.stage in (Stage.OVER, Stage.ABANDONED)}
        lives = [self._by_id[session.id] for session in can_start([live.session for live in self._sessions], over)]
        for live in (live for live in lives if live.stage is Stage.WAITING):
            (worker,) = live.session.workers
            if not live.jobs:
                live.stage = Stage.OVER
            elif worker in self.dead_workers:
                live.stage = Stage.ABANDONED
            else:
                live.stage = Stage.RUNNING
                followed = [self._by_id[needed].end_ts for needed in live.session.after]
                start_ts = max([self._free_ts[worker], *followed])
                live.order = replace(live.order, load_start_ts=start_ts)
                self._write(live, [opened_session(live.order, start_ts)])
                self._on_state(live)
        return any(live.stage is not Stage.RUNNING for live in lives)

    def _running(self) -> list[ServedSession]:
        return [live for live in self._sessions if live.stage is Stage.RUNNING]

    def _send_ready(self) -> None:
        now = self._now()
        for live in self._running():
            while live.waiting and live.waiting[0].ready_s <= now and len(live.flights) < self._max_in_flight:
                job = live.waiting.popleft()
                live.flights[job.key] = flight = Flight(job, live.endpoint, self._patience)
                flight.start(self._land)

    def _land(self, flight: Flight, landed: Reply | Exception) -> None:
        """Hand in how a flight ended, from its thread; instants and the queue have one order."""
        with self._landing:
            self._landings.put(Landing(flight, landed, self._now()))

    def _hear(self) -> None:
        """Wait for landings, then write down all that landed together before anybody hears of it."""
        taken = [entry for entry in map(self._take, self._landed()) if entry is not None]
        for live in self._running():
            self._write(live, [entry for entry in taken if entry.session == live.session.id])
        for entry in taken:
            if entry.status is CallStatus.FINISHED:
                for key in self._on_finish(entry):
                    self.cancel(key)
        for live in self._running():
            self._end_if_served(live)
            if live.cause is not None:
                self._give_up(live, live.cause)
            self._on_state(live)

    def _landed(self) -> list[Landing]:
        """Wait for landings, for the next call to be ready, or for a tick."""
        ready = [
            live.waiting[0].ready_s - self._now()
            for live in self._running()
            if live.waiting and len(live.flights) < self._max_in_flight
        ]
        landings = []
        with suppress(queue.Empty):
            landings.append(self._landings.get(timeout=max(0.0, min([TICK_S, *ready]))))
            while True:
                landings.append(self._landings.get_nowait())
        return landings

    def _take(self, landing: Landing) -> EndedCall | None:
        """Take a call off its session; None: it was cancelled before, or its server is gone."""
        flight, landed, finished_ts = landing
        live = self._home[flight.job.key]
        if live.flights.get(flight.job.key) is not flight:
            return None
        del live.flights[flight.job.key]
        if isinstance(landed, Unreachable):
            live.cause = str(landed)
            return None
        if isinstance(landed, Refused):
            status, values = CallStatus.FAILED, {"error": str(landed)}
        elif isinstance(landed, Reply):
            status, values = CallStatus.FINISHED, landed._asdict()
            live.output_tokens += landed.output_tokens
        else:
            raise landed
        del live.jobs[flight.job.key]
        return self._entry(live, flight.job, flight, status, finished_ts, **values)

    def _entry(
        self,
        live: ServedSession,
        job: Job,
        flight: Flight | None,
        status: CallStatus,
        finished_ts: float,
        **values: Any,
    ) -> EndedCall:
        """Write a call down; its first token is not known, since servers send all of it at the end."""
        if flight is not None:
            sent_ts = None if flight.sent_ts is None else flight.sent_ts - self._zero_ts
            values |= {"admitted_ts": sent_ts, "attempt": live.order.attempt + flight.num_retries}
        return ended_call(live.order, job, live.order.load_start_ts, status, finished_ts, **values)

    def _write(self, live: ServedSession, entries: Sequence[Entry]) -> None:
        """Put entries on the disk."""
        if not entries:
            return
        name = f"worker-{live.session.workers[0]}{SUFFIX}"
        if name not in self._logs:
            self._logs[name] = self._open_logs.enter_context(Log(self._journal / name))
        self._logs[name].append([to_record(entry) for entry in entries])

    def _end_if_served(self, live: ServedSession) -> None:
        if live.stage is not Stage.RUNNING or live.jobs:
            return
        order = live.order
        self._end(live, Stage.OVER)
        closed = ClosedSession(plan=order.plan, session=order.session, attempt=order.attempt, end_ts=live.end_ts)
        self._write(live, [closed])

    def _give_up(self, live: ServedSession, cause: str) -> None:
        """Leave the calls that have not ended to whoever plans them anew."""
        if live.stage is Stage.RUNNING:
            self.dead_workers[live.session.workers[0]] = cause
            self._break_off(live)
            self._end(live, Stage.ABANDONED)

    def _end(self, live: ServedSession, stage: Stage) -> None:
        live.stage, live.end_ts = stage, self._now()
        self._free_ts[live.session.workers[0]] = live.end_ts

    def _break_off(self, live: ServedSession) -> None:
        for flight in live.flights.values():
            flight.abort()
        live.flights.clear()

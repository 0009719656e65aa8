"""The simulated cluster as a backend: workers, sessions, loads and the clock, in SimPy."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any

import simpy

from mosaic.core.checks import require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.commands import (
    Cancel,
    Close,
    Closed,
    Command,
    Cut,
    Event,
    Finished,
    Idle,
    Move,
    Open,
    Progress,
    Ready,
    Started,
    Submit,
    Tick,
)
from mosaic.core.errors import BackendError
from mosaic.core.plan import Session
from mosaic.core.realization import Outcomes
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from sim.cluster.clock import ProcessGenerator, for_ever, wait_until
from sim.cluster.expert_on_gpu import ExpertsOnGpus, IterationTimes, check_hardware
from sim.cluster.lower_bound import lower_bound_s
from sim.cluster.queues import Queues
from sim.cluster.session import PendingCall, SimSession, TrueCall, cut_off, unanswered
from sim.engine.engine import Engine
from sim.engine.engine_settings import EngineSettings
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import iteration_time


class SimBackend:
    """Runs sessions in simulated time.

    A session process asks for all its workers when it is opened, so each worker serves its sessions in the order in
    which they were opened and gangs cannot wait for each other. It then waits for the sessions it follows, loads,
    serves calls through the engine until it is closed, and releases its workers. Commands are applied between two
    steps of the clock, so what answers an event takes effect at the event's instant.

    Parameters
    ----------
    experts, cluster
        Who answers, and the workers.
    hardware
        By name of the GPU.
    outcomes
        What would really happen to a call.
    settings
        How engines schedule.
    iteration_times
        Builds the iteration time of a model on a kind of GPU at a tensor-parallel degree.
    """

    name = "sim"

    def __init__(
        self,
        *,
        experts: Sequence[Expert],
        hardware: Mapping[str, Hardware],
        cluster: Cluster,
        outcomes: Outcomes,
        settings: EngineSettings | None = None,
        iteration_times: IterationTimes = iteration_time,
    ) -> None:
        require_unique((expert.name for expert in experts), "sim backend: expert name")
        check_hardware(cluster, hardware)
        self._models = ExpertsOnGpus(experts, hardware, cluster, settings or EngineSettings(), iteration_times)
        self._num_workers = cluster.num_workers
        self._outcomes = outcomes
        self._env = simpy.Environment()
        self._workers = [simpy.Resource(self._env) for _ in cluster.workers]
        self._resident: list[tuple[ExpertName, tuple[int, ...]] | None] = [None] * cluster.num_workers
        self._sessions: dict[int, SimSession] = {}
        self._pending: dict[CallKey, PendingCall] = {}
        self._queues = Queues()
        self._records: dict[CallKey, CallRecord] = {}
        self._served: dict[CallKey, TrueCall] = {}
        """First-layer calls that were not cancelled, for the lower bound."""
        self._events: deque[Event] = deque()
        self._reacts = False

    def events(self, *, reacts: bool, tick_s: float | None = None) -> Iterator[Event]:
        """See ``Backend.events``."""
        env = self._env
        self._reacts = reacts
        next_tick_ts = inf if tick_s is None else tick_s
        self._events.append(Started(0.0))
        while True:
            while self._events:
                yield self._events.popleft()
            if (next_ts := env.peek()) == inf:
                break
            if next_ts <= next_tick_ts or tick_s is None:
                env.step()
                continue
            if env.now < next_tick_ts:
                env.run(until=next_tick_ts)
            self._tell_progress()
            self._events.append(Tick(env.now))
            next_tick_ts += tick_s
        self._check_end()

    def _check_end(self) -> None:
        if self._pending:
            key = next(iter(self._pending))
            raise BackendError(f"{len(self._pending)} calls are left that no session serves, the first of them {key}")
        if left := [number for number, live in self._sessions.items() if not live.over.triggered]:
            raise BackendError(f"sessions {left} were never closed")

    def apply(self, command: Command) -> None:
        """See ``Backend.apply``."""
        match command:
            case Submit(call=call, to=to, priority=priority):
                self._submit(call, to, priority)
            case Open(session=session):
                self._open(session)
            case Close(session=number):
                live = self._session_of(number, "Close")
                live.is_closing = True
                self._wake(live)
            case Cancel(key=key):
                self._cancel(key)
            case Cut(key=key, tokens=tokens):
                self._cut(key, tokens)
            case Move(key=key, session=number):
                self._move(key, number)

    def lower_bound_s(self) -> float | None:
        """Bound from below what any schedule needs for the first layer's calls; None without such calls."""
        return lower_bound_s(self._served.values(), self._models, self._num_workers)

    def _open(self, session: Session) -> None:
        if session.id in self._sessions:
            raise BackendError(f"Open: session {session.id} must be new, it was opened before")
        for needed in session.after:
            self._session_of(needed, f"session {session.id}: after")
        live = SimSession(session, self._models.of_session(session), self._env.event())
        self._sessions[session.id] = live
        live.process = self._env.process(self._session(live))

    def _submit(self, call: Call, to: int | ExpertName, priority: int) -> None:
        if call.key in self._pending or call.key in self._records:
            raise BackendError(f"Submit: call {call.key} must be new, it was submitted before")
        expert = self._models.expert(call.expert)
        inputs = {key: self._records[key] for key in call.after if key in self._records}
        true = cut_off(call, expert, self._outcomes(call, inputs))
        pending = self._pending[call.key] = PendingCall(true, max(call.ready_s, self._env.now))
        if not call.after:
            self._served[call.key] = true
        if isinstance(to, int):
            self._give(pending, self._open_session(to, call))
            return
        if to != call.expert:
            raise BackendError(f"Submit: call {call.key} is for {call.expert!r}, got the queue of {to!r}")
        self._queues.push(pending, priority)
        for live in self._sessions.values():
            if live.session.expert == to and live.engine is not None:
                self._wake(live)

    def _give(self, pending: PendingCall, live: SimSession) -> None:
        live.add(pending, self._env.now)
        self._wake(live)

    def _open_session(self, number: int, call: Call) -> SimSession:
        live = self._session_of(number, f"call {call.key}")
        if live.session.expert != call.expert:
            raise BackendError(f"session {number} of {live.session.expert!r}: call {call.key} is for {call.expert!r}")
        if live.is_closing:
            raise BackendError(f"session {number}: call {call.key} must come before the session is closed")
        return live

    def _session_of(self, number: int, what: str) -> SimSession:
        live = self._sessions.get(number)
        if live is None:
            raise BackendError(f"{what}: session must be one that was opened, got {number}")
        return live

    def _wake(self, live: SimSession) -> None:
        if live.is_waiting and live.process is not None:
            live.is_waiting = False
            live.process.interrupt()

    def _find(self, key: CallKey) -> PendingCall | None:
        """Find a call that has not ended; None: it has."""
        pending = self._pending.get(key)
        if pending is None and key not in self._records:
            raise BackendError(f"call must be one that was submitted, got {key}")
        return pending

    def _cancel(self, key: CallKey) -> None:
        pending = self._find(key)
        if pending is None:
            return
        live = pending.place
        record = pending.cancelled(None if live is None else live.engine, self._env.now)
        if record is None:
            return
        if live is not None:
            live.remove(pending)
            self._wake(live)
        else:
            self._queues.remove(pending)
        self._served.pop(key, None)
        self._end(record)

    def _cut(self, key: CallKey, tokens: int) -> None:
        pending = self._find(key)
        if pending is None or tokens >= pending.true.output_tokens:
            return
        request, live = pending.request, pending.place
        left = max(tokens, pending.generated + 1)
        if request is not None and live is not None and live.engine is not None:
            live.engine.cut(request, left, self._env.now)
            left = request.output_tokens
            self._wake(live)
        if left < pending.true.output_tokens:
            pending.true = unanswered(pending.true.call, left, pending.true)
            if key in self._served:
                self._served[key] = pending.true

    def _move(self, key: CallKey, number: int) -> None:
        pending = self._find(key)
        if pending is None or (pending.place is not None and pending.place.session.id == number):
            return
        there, here = self._open_session(number, pending.true.call), pending.place
        if here is None:
            self._queues.remove(pending)
        else:
            if here.engine is not None and not pending.leave_engine(here.engine, self._env.now):
                return
            here.remove(pending)
            self._wake(here)
            pending.attempt += 1
        self._give(pending, there)

    def _end(self, record: CallRecord) -> None:
        del self._pending[record.key]
        self._records[record.key] = record
        self._events.append(Finished(record.finished_ts or 0.0, record))

    def _session(self, live: SimSession) -> ProcessGenerator:
        env, session = self._env, live.session
        turns = [self._workers[worker].request() for worker in session.workers]
        yield env.all_of([*turns, *(self._sessions[needed].over for needed in session.after)])
        if live.calls or not live.is_closing:
            yield from self._load_and_serve(live)
        live.over.succeed()
        for worker, turn in zip(session.workers, turns, strict=True):
            resource = self._workers[worker]
            resource.release(turn)
            if not resource.users and not resource.queue:
                self._events.append(Idle(env.now, worker))

    def _load_and_serve(self, live: SimSession) -> ProcessGenerator:
        env, session = self._env, live.session
        home = (session.expert, session.workers)
        stays = all(self._resident[worker] == home for worker in session.workers)
        load_start_ts = env.now
        load_s = 0.0 if stays else live.model.load_s
        yield from wait_until(env, load_start_ts + load_s)
        for worker in session.workers:
            self._resident[worker] = home
        start_ts = env.now
        engine = self._models.engine(live.model, start_ts)
        live.start(engine, start_ts)
        self._events.append(Ready(start_ts, session.id))
        if live.is_closing and not self._reacts:
            finished = engine.advance_to(inf)
            live.engine = None  # It is ahead of the clock: ticks leave it alone.
            yield from wait_until(env, engine.boundary_ts)
            self._finish(live, finished)
        else:
            yield from self._serve_by_events(live, engine)
        live.engine = None
        self._events.append(Closed(env.now, live.record(load_start_ts, load_s, start_ts, env.now)))

    def _serve_by_events(self, live: SimSession, engine: Engine) -> ProcessGenerator:
        """Stop at each change of the batch, so that finishes are heard in the order of all workers' clocks."""
        env = self._env
        while True:
            yield env.timeout(0.0)  # what was just told is answered before the next iteration is composed
            room = 0 if live.is_closing else self._models.settings.max_num_seqs - len(live.calls)
            for pending in self._queues.pop(live.session.expert, room):
                live.add(pending, env.now)
            event_ts = engine.next_event_ts()
            if event_ts == inf and live.is_closing:
                return
            live.is_waiting = True
            with suppress(simpy.Interrupt):
                yield from wait_until(env, event_ts) if event_ts < inf else for_ever(env)
            live.is_waiting = False
            self._finish(live, engine.advance_to(env.now))

    def _finish(self, live: SimSession, requests: Sequence[Any]) -> None:
        for record in live.finish(requests):
            self._end(record)

    def _tell_progress(self) -> None:
        now = self._env.now
        for number, live in self._sessions.items():
            if live.engine is not None:
                self._finish(live, live.engine.advance_to(now))
                self._events.append(Progress(now, number, live.num_generated()))
                self._wake(live)

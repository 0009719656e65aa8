"""Implements the backend of the simulated cluster: workers, sessions, loads and the clock, in SimPy."""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from math import inf

import simpy

from mosaic.core.checks import require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.commands import Cancel, Close, Command, Cut, Move, Open, Prefill, Submit
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError
from mosaic.core.events import Closed, Event, Finished, Idle, Prefilled, Progress, Ready, Started, Tick
from mosaic.core.plan import Session
from mosaic.core.realization import Outcomes
from mosaic.core.results import CallRecord, CallStatus, Inputs, inputs_of
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from sim.cluster.bounds import lower_bound_s
from sim.cluster.clock import EngineClock, ProcessGenerator, run_until, wait_until
from sim.cluster.expert_on_gpu import ExpertsOnGpus, GpuUse, IterationTimes, check_hardware, shared_iteration_time
from sim.cluster.gpus import Gpus
from sim.cluster.host_memory import Holding
from sim.cluster.prefills import Prefills
from sim.cluster.session import PendingCall, Queues, SimSession, cut_off
from sim.hardware.hardware import Hardware


class SimBackend:
    """Runs sessions in simulated time.

    A session process requests all its workers when it is opened. So each worker serves its sessions in the order of
    opening, and gangs cannot wait for each other. The session then waits for those in its ``after``, loads, serves
    calls through the engine until it is closed, and releases its workers. Commands are applied between two steps of the
    clock. If controllers react, engines advance from change to change in the order of time.

    Parameters
    ----------
    experts, cluster, hardware
        The experts, the workers, and the hardware by name of the GPU.
    outcomes
        Returns the true outcome of a call.
    settings
        How engines schedule.
    iteration_times
        Builds the iteration time of a model on a kind of GPU at a tensor-parallel degree.
    earlier
        Records of another run, for calls that calls of this one read.
    use
        Resources that sessions share.
    """

    name = "sim"

    def __init__(
        self,
        *,
        experts: Sequence[Expert],
        hardware: Mapping[str, Hardware],
        cluster: Cluster,
        outcomes: Outcomes,
        settings: EngineOptions | None = None,
        iteration_times: IterationTimes = shared_iteration_time,
        earlier: Inputs | None = None,
        use: GpuUse | None = None,
    ) -> None:
        require_unique((expert.name for expert in experts), "sim backend: expert name")
        check_hardware(cluster, hardware)
        self._models = ExpertsOnGpus(experts, hardware, cluster, settings or EngineOptions(), iteration_times, use)
        self._outcomes = outcomes
        self._earlier: Inputs = earlier or {}
        self._env = simpy.Environment()
        self._num_workers, self._use = cluster.num_workers, use or GpuUse()
        held = ("", ()) if earlier else None  # the engines of the earlier calls are still loaded
        self._gpus = Gpus(self._env, cluster, self._use, hardware[cluster.workers[0].gpu.name].host, held)
        self._sessions: dict[int, SimSession] = {}
        self._calls: dict[CallKey, PendingCall | CallRecord] = {}
        """All that were submitted; of those that have ended the records."""
        self._queues = Queues()
        self._first: list[Call] = []
        """Calls that read no other calls: for the lower bound."""
        self._events: deque[Event] = deque()
        self._reacts = False
        self._now = 0.0
        """The run's clock: SimPy's, or the later time of an engine."""
        self._clock = EngineClock()
        self._prefills = Prefills(
            self._touch, lambda record: self._events.append(Prefilled(record.finished_ts, record))
        )

    def events(self, *, reacts: bool, tick_s: float | None = None) -> Generator[Event, None, None]:
        """See ``Backend.events``."""
        env, clock, events, queued, self._reacts = self._env, self._clock, self._events, self._queues.waiting, reacts
        next_tick_ts = inf if tick_s is None else tick_s
        events.append(Started(0.0))
        while True:
            while events:
                yield events.popleft()
            if clock.touched:
                self._compose()
            env_ts = env.peek()
            if ran := clock.run(env_ts if env_ts < next_tick_ts else next_tick_ts):
                self._now, live, finished = ran
                self._end(live.finish(finished))
                if queued:
                    clock.touch(live)  # it may have room now
                continue
            if env_ts == inf and not clock.has_changes:
                break
            if next_tick_ts < env_ts:
                self._pass_time(next_tick_ts)
                self._emit_progress()
                events.append(Tick(next_tick_ts))
                next_tick_ts += tick_s or 0.0
            else:
                env.step()
                self._now = env.now
        self._check_all_ended()
        self._prefills.close()

    def _compose(self) -> None:
        """Continue engines that have finished calls or got commands; controllers have replied to all events by now."""
        if self._queues:
            for name in dict.fromkeys(live.session.expert for live in self._clock.touched):
                self._feed(name)
        if self._use.experts_per_gpu > 1:
            for live, pace in self._gpus.paces(self._clock.touched):
                self._touch(live)
                live.set_pace(pace, self._now)
        for live in self._clock.compose():
            if live.is_closing:
                self._pass_time(self._now)
                live.drained.succeed()

    def _pass_time(self, ts: float) -> None:
        """Advance SimPy's clock to the engines'; it has no event of its own before."""
        self._now = ts
        run_until(self._env, ts)

    def apply(self, command: Command) -> None:
        """See ``Backend.apply``."""
        match command:
            case Submit(call=call, to=to):
                self._submit(call, to)
            case Open(session=session):
                self._open(session)
            case Close(session=number):
                live = self._session_named(number, "Close")
                live.is_closing = True
                self._prefills.stop_all(live, self._now)
                self._clock.touch(live)
            case Cancel(key=key):
                self._cancel(key)
            case Cut(key=key, tokens=tokens):
                self._cut(key, tokens)
            case Move(key=key, session=number):
                self._move(key, number)
            case Prefill(call=call, session=number):
                live = self._session_of(number, call)
                if call.key not in self._calls:
                    self._prefills.start(command, live, self._now)

    def lower_bound_s(self) -> float | None:
        """Bound from below the time of any schedule for the first layer's calls; None without such calls."""
        if self._use.num_slots > 1:
            return None  # it adds loads and work
        ended = ((call, self._calls[call.key]) for call in self._first)
        jobs = (
            (call, record.output_tokens)
            for call, record in ended
            if isinstance(record, CallRecord) and record.status is not CallStatus.CANCELLED
        )
        return lower_bound_s(jobs, self._models, self._num_workers)

    @property
    def holdings(self) -> Sequence[Holding]:
        """Memory held on GPUs and in the machine, with the times."""
        return self._gpus.holdings

    def _open(self, session: Session) -> None:
        if session.id in self._sessions:
            raise BackendError(f"session {session.id} of {session.expert!r}: id must be one that no session has")
        for needed in session.after:
            self._session_named(needed, f"session {session.id} of {session.expert!r}: after")
        self._pass_time(self._now)
        model, env = self._models.of_session(session), self._env
        live = self._sessions[session.id] = SimSession(session, model, env.event(), env.event())
        env.process(self._session(live))

    def _submit(self, call: Call, to: int | ExpertName) -> None:
        key, now = call.key, self._now
        if key in self._calls:
            raise BackendError(f"Submit: call {key} must be new, it was submitted before")
        if isinstance(to, int):
            live = self._session_of(to, call, is_open=True)
            expert = live.model.expert
        elif to != call.expert:
            raise BackendError(f"call {key} is for {call.expert!r}, got the queue of {to!r}")
        else:
            live, expert = None, self._models.expert(to)
        outcome = cut_off(call, expert, self._outcomes(call, self._inputs_of(call) if call.after else {}))
        ready_ts = now if call.ready_s < now else call.ready_s
        pending = self._calls[key] = PendingCall(call, outcome, ready_ts, call.prefix)
        if not call.after:
            self._first.append(call)
        else:
            self._prefills.stop(key, now)
            self._prefills.name_prefix(pending)
        if live is not None:
            self._give(pending, live)
            return
        self._queues.push(pending)
        for live in self._sessions_of(call.expert):
            self._clock.touch(live)

    def _inputs_of(self, call: Call) -> Inputs:
        """Give the records of the calls that a call comes after, of this run or of another."""
        submitted = {key: self._calls.get(key) for key in call.after}
        ended = {key: record for key, record in submitted.items() if isinstance(record, CallRecord)}
        return inputs_of(call, self._earlier, ended)

    def _give(self, pending: PendingCall, live: SimSession) -> None:
        live.add(pending, self._now)
        self._clock.touch(live)

    def _find(self, key: CallKey) -> PendingCall | None:
        """Find a call; None: it has ended."""
        found = self._calls.get(key)
        if found is None:
            raise BackendError(f"command must name a call that was submitted, got {key}")
        return found if isinstance(found, PendingCall) else None

    def _cancel(self, key: CallKey) -> None:
        pending = self._find(key)
        if pending is None:
            return
        live = pending.place
        record = pending.cancelled(self._now)
        if record is None:
            return
        if live is None:
            self._queues.remove(pending)
        else:
            live.remove(pending)
            self._touch(live)
        self._end([record])

    def _cut(self, key: CallKey, tokens: int) -> None:
        pending = self._find(key)
        if pending is None or tokens >= pending.outcome.output_tokens:
            return
        if pending.cut(tokens, self._now) and pending.place is not None:
            self._touch(pending.place)

    def _move(self, key: CallKey, number: int) -> None:
        pending = self._find(key)
        if pending is None or (pending.place is not None and pending.place.session.id == number):
            return
        there, here = self._session_of(number, pending.call, is_open=True), pending.place
        if here is None:
            self._queues.remove(pending)
        else:
            if not pending.leave_engine(self._now):
                return
            here.remove(pending)
            self._touch(here)
            pending.attempt += 1
        self._give(pending, there)

    def _touch(self, live: SimSession) -> None:
        """Advance a session's engine to the clock, and compute its next change again."""
        if live.engine is not None:
            self._end(live.finish(live.engine.advance_to(self._now)))
        self._clock.touch(live)

    def _end(self, ended: Sequence[CallRecord]) -> None:
        for record in ended:
            self._calls[record.key] = record
            self._events.append(Finished(record.finished_ts or 0.0, record))

    def _session(self, live: SimSession) -> ProcessGenerator:
        env, session = self._env, live.session
        self._gpus.request(live)
        yield env.all_of([*live.requests, *(self._sessions[needed].over for needed in session.after)])
        if live.calls or not live.is_closing:
            yield from self._load_and_serve(live)
        live.over.succeed()
        self._events.extend(Idle(env.now, worker) for worker in self._gpus.leave(live))

    def _load_and_serve(self, live: SimSession) -> ProcessGenerator:
        env, session = self._env, live.session
        load_start_ts, load_s = yield from self._gpus.bring_up(live)
        engine = self._models.engine(live.model, start_ts := env.now)
        live.start(engine, start_ts)
        self._events.append(Ready(start_ts, session.id))
        if live.is_closing and not self._reacts and self._use.experts_per_gpu == 1:
            finished = engine.advance_to(inf)
            live.engine = None  # It is ahead of the clock: ticks leave it alone.
            yield from wait_until(env, engine.boundary_ts)
            self._end(live.finish(finished))
        else:
            self._clock.touch(live)
            yield live.drained
        live.engine = None
        self._events.append(Closed(env.now, live.record(load_start_ts, load_s, start_ts, env.now)))

    def _feed(self, name: ExpertName) -> None:
        """Let the running sessions of an expert take calls from its queue."""
        up = (live for live in self._sessions_of(name) if live.takes_calls)
        for pending, live in self._queues.hand_out(name, up, self._models.settings.max_num_seqs):
            self._give(pending, live)

    def _emit_progress(self) -> None:
        for number, live in self._sessions.items():
            if live.engine is not None:
                self._touch(live)
                self._events.append(Progress(self._now, number, live.num_generated()))

    def _session_named(self, number: int, what: str) -> SimSession:
        """Find an opened session."""
        live = self._sessions.get(number)
        if live is None:
            raise BackendError(f"{what}: session must be one that was opened, got {number}")
        return live

    def _session_of(self, number: int, call: Call, *, is_open: bool = False) -> SimSession:
        """Find a session of a call's expert; ``is_open``: it must still take calls."""
        live = self._sessions.get(number)
        if live is None or (is_open and live.is_closing):
            rule = "one that was opened and not closed" if is_open else "one that was opened"
            raise BackendError(f"call {call.key}: session must be {rule}, got {number}")
        if live.session.expert != call.expert:
            raise BackendError(f"session {number} of {live.session.expert!r}: call {call.key} is for {call.expert!r}")
        return live

    def _sessions_of(self, expert: ExpertName) -> list[SimSession]:
        return [live for live in self._sessions.values() if live.session.expert == expert]

    def _check_all_ended(self) -> None:
        """Raise if calls or sessions have not ended at the end of a run."""
        if waiting := {one.call.expert for one in self._calls.values() if isinstance(one, PendingCall)}:
            raise BackendError(f"calls wait for sessions of {sorted(waiting)}, and none is open")
        if left := [number for number, live in self._sessions.items() if not live.over.triggered]:
            raise BackendError(f"sessions {left} were never closed")

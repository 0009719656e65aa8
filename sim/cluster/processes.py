"""Workers, sessions, loads and the clock, in SimPy; what happens inside a session is the engine's."""

from collections.abc import Generator, Sequence
from contextlib import suppress
from math import inf
from typing import Any, TypeAlias

import simpy

from mosaic.core.errors import BackendError
from mosaic.core.results import Action, CallRecord, Listener
from mosaic.core.workload import CallKey, ExpertName
from sim.cluster.live_session import LiveSession, SessionWork
from sim.engine.engine import Engine

ProcessGenerator: TypeAlias = Generator[simpy.Event, Any, None]


def wait_until(env: simpy.Environment, ts: float) -> ProcessGenerator:
    """Wait until the clock shows exactly ``ts``.

    SimPy adds a delay to the clock, and now + (ts - now) may miss ts by a rounding error: enough for two
    runs of the same plan to differ that pass the same instants with other stops between. From half of the
    way on the difference of two floats is exact.
    """
    while env.now < ts:
        delay = ts - env.now
        yield env.timeout(delay if env.now + delay == ts else delay / 2)


class ClusterRun:
    """One execution of a plan: a process per session, a resource per worker.

    A session process asks for all its workers at the start, in the plan's order, so each worker serves
    its sessions in that order and gangs cannot wait for each other. It then waits for the sessions it
    follows, loads, drains its shard through the engine, and releases its workers.
    """

    def __init__(self, work: Sequence[SessionWork], *, num_workers: int, listener: Listener | None) -> None:
        self.sessions = [LiveSession(item) for item in work]
        self.actions: list[Action] = []
        self._listener = listener
        self._env = simpy.Environment()
        self._workers = [simpy.Resource(self._env) for _ in range(num_workers)]
        self._resident: list[tuple[ExpertName, tuple[int, ...]] | None] = [None] * num_workers
        self._processes: dict[int, simpy.Process] = {}
        self._jobs_by_key: dict[CallKey, tuple[LiveSession, int]] = {}

    def run(self) -> None:
        """Run all sessions to their end.

        Raises
        ------
        BackendError
            If sessions wait for each other, or the listener names a call that is not of this run.
        """
        env = self._env
        for live in self.sessions:
            self._processes[live.session.id] = env.process(self._session(live))
        all_done = env.all_of(self._processes.values())
        try:
            env.run(until=all_done)
        except RuntimeError as error:
            if all_done.triggered:
                raise  # Somebody's own error, not SimPy's that nothing is left to happen.
            stuck = [live.session.id for live in self.sessions if self._processes[live.session.id].is_alive]
            raise BackendError(f"plan: sessions {stuck} wait for each other and can never start") from error

    def _session(self, live: LiveSession) -> ProcessGenerator:
        env, workers = self._env, live.session.workers
        turns = [self._workers[worker].request() for worker in workers]
        yield env.all_of([*turns, *(self._processes[needed] for needed in live.session.after)])
        if live.has_jobs:
            yield from self._load_and_serve(live)
        for worker, turn in zip(workers, turns, strict=True):
            self._workers[worker].release(turn)

    def _load_and_serve(self, live: LiveSession) -> ProcessGenerator:
        env, workers = self._env, live.session.workers
        home = (live.session.expert, workers)
        stays = all(self._resident[worker] == home for worker in workers)
        load_start_ts = env.now
        load_s = 0.0 if stays else live.work.load_s
        yield from wait_until(env, load_start_ts + load_s)
        for worker in workers:
            self._resident[worker] = home
        start_ts = env.now
        engine = live.open_engine(start_ts)
        if self._listener is None:
            live.finish(engine.advance_to(inf))
            yield from wait_until(env, engine.boundary_ts)
        else:
            yield from self._drain_by_events(live, engine, self._listener)
        live.close(load_start_ts, load_s, start_ts, env.now)

    def _drain_by_events(self, live: LiveSession, engine: Engine, listener: Listener) -> ProcessGenerator:
        """Stop at each change of the batch, so that finishes are heard in the order of all workers' clocks."""
        env = self._env
        while (event_ts := engine.next_event_ts()) < inf:
            with suppress(simpy.Interrupt):  # A cancellation changes what comes next.
                yield from wait_until(env, event_ts)
            for record in live.finish(engine.advance_to(env.now)):
                self._react(record, listener)

    def _react(self, record: CallRecord, listener: Listener) -> None:
        for action in listener.on_finish(record):
            live, number = self._find(action.key)
            if not live.cancel(number, self._env.now):
                continue
            self.actions.append(Action(self._env.now, "cancel", action.key))
            process = self._processes[live.session.id]
            if live.is_serving and process is not self._env.active_process:
                process.interrupt()

    def _find(self, key: CallKey) -> tuple[LiveSession, int]:
        if not self._jobs_by_key:
            for live in self.sessions:
                for number, job in enumerate(live.work.jobs):
                    self._jobs_by_key[job.call.key] = (live, number)
        found = self._jobs_by_key.get(key)
        if found is None:
            raise BackendError(f"listener: Cancel must name a call of the plan, got {key}")
        return found

"""Forecasts a run in progress: when each session becomes ready, and when its calls will have ended."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mosaic.core.cluster import Cluster
from mosaic.core.commands import Command
from mosaic.core.events import Closed, Event, Finished, Joined, Progress, Ready, Started
from mosaic.core.plan import Session
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, NodeName
from mosaic.planning.costs import WeightLocation
from mosaic.planning.length_forecast import Indexes, Lengths, Speed, Underway, drain_s
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.planning.wrapped_costs import HostLoads, LoadedModels


@dataclass(frozen=True)
class SessionForecast:
    """An unended session and its predicted times, in seconds from now."""

    session: Session
    is_up: bool
    calls: Mapping[CallKey, Call]
    underway: Underway
    """These calls, in the same order."""
    ready_s: float
    """When it starts to serve."""
    serve_s: float
    """Time that its calls take from then on."""
    before_s: float = 0.0
    """When its workers become free for it."""

    @property
    def end_s(self) -> float:
        return self.ready_s + self.serve_s if self.calls else self.before_s


@dataclass(frozen=True)
class RunForecast:
    """All unended sessions, in the order of opening."""

    sessions: tuple[SessionForecast, ...]

    @cached_property
    def end_s_by_worker(self) -> dict[int, float]:
        """When the last session of each worker will have served its calls."""
        return {worker: one.end_s for one in self.sessions for worker in one.session.workers}

    def behind_s(self, one: SessionForecast) -> float:
        """Compute the time on its workers of the sessions that wait after one."""
        return max(self.end_s_by_worker[worker] for worker in one.session.workers) - one.end_s

    @property
    def end_s(self) -> float:
        return max(self.end_s_by_worker.values(), default=0.0)


class Forecaster:
    """Follows the events of a run and predicts from them; sends no commands. It must come before its readers."""

    reacts = True

    def __init__(
        self,
        profiles: Mapping[NodeName, Profile],
        cluster: Cluster,
        experts: Sequence[Expert] = (),
        host_loads: HostLoads | None = None,
    ) -> None:
        self._cluster = cluster
        self._experts = {expert.name: expert for expert in experts}
        self._host_loads = host_loads
        self.use(profiles)
        self.written: dict[CallKey, int] = {}
        """Tokens of running calls, as last reported."""
        self.counting: set[int] = set()
        """Sessions whose engines count tokens."""
        self._free_ts: dict[int, float] = {}
        self._first_seen_ts: dict[int, float] = {}
        self._held = LoadedModels()
        """Models left by sessions that were up."""

    def use(self, profiles: Mapping[NodeName, Profile]) -> None:
        """Use other profiles from now on: lengths by node, and speeds and loads by GPU and degree."""
        self._profiles = profiles
        self._samples: list[Lengths] = []
        """Samples of lengths, of the nodes and experts whose calls were priced."""
        self._sample_of: dict[tuple[NodeName, ExpertName], int] = {}
        self._entries: dict[tuple[ExpertName, str, int], ProfileEntry] = {}
        for profile in profiles.values():
            for entry in profile.entries:
                self._entries.setdefault((entry.expert, entry.gpu, entry.tp_degree), entry)

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Record an event; the view supplies the rest of the state."""
        if isinstance(event, Started):
            for number, session in view.opened.items():
                if number in view.up:
                    self._held = self._held.after(session.expert, session.workers)
                if (record := view.ended.get(number)) is not None:
                    self._free_ts |= dict.fromkeys(record.workers, record.end_ts)
        elif isinstance(event, Finished):
            self.written.pop(event.record.key, None)
        elif isinstance(event, Progress):
            self.written.update(event.tokens)
            if event.tokens:
                self.counting.add(event.session)
        elif isinstance(event, Ready):
            session = view.opened[event.session]
            self._held = self._held.after(session.expert, session.workers)
        elif isinstance(event, Closed):
            self._free_ts |= dict.fromkeys(event.record.workers, event.ts)
        elif isinstance(event, Joined):
            self._held = self._held.without(event.worker)
        return ()

    def forecast(self, view: View) -> RunForecast:
        """Predict all unended sessions."""
        free_s: dict[int, float] = {}
        held = self._held
        sessions = []
        for number, session in view.opened.items():
            if number in view.ended:
                continue
            calls, workers = view.held[number], session.workers
            before_s = max(free_s.get(worker, 0.0) for worker in workers)
            waits = any(worker in free_s for worker in workers)
            load_s = 0.0 if number in view.up else self._load_left_s(session, held, view, waits)
            ready_s = before_s + load_s
            underway = self.underway(calls, session.expert)
            serve_s = self.drain_s(underway, session.expert, workers)
            one = SessionForecast(session, number in view.up, calls, underway, ready_s, serve_s, before_s)
            sessions.append(one)
            if calls or number in view.up:
                held = held.after(session.expert, workers)
            free_s |= dict.fromkeys(workers, one.end_s)
        return RunForecast(tuple(sessions))

    def left_s(self, view: View) -> float | None:
        """Predict the seconds until all calls have ended; None: calls wait in queues, or sessions have no prices."""
        if any(calls for to, calls in view.held.items() if isinstance(to, str)):
            return None
        return self.forecast(view).end_s or None

    def underway(self, calls: Mapping[CallKey, Call], expert: ExpertName) -> Underway:
        """Collect the data of an expert's unended calls for `drain_s`."""
        written = self.written
        return Underway(
            self._samples,
            self._samples_of(calls, expert),
            np.array([written.get(key, 0) for key in calls], dtype=float),
            np.array([call.prompt_tokens for call in calls.values()], dtype=float),
        )

    def drain_s(self, calls: Underway, expert: ExpertName, workers: Sequence[int], head_start_s: float = 0.0) -> float:
        """Predict the seconds in which an expert serves the rest of some calls."""
        speed = self.speed(expert, workers)
        if not len(calls) or speed is None:
            return 0.0
        unread_s = speed.read_s * float(calls.prompt_tokens[calls.written == 0].sum())
        return unread_s + drain_s(calls, speed, head_start_s)

    def speed(self, expert: ExpertName, workers: Sequence[int]) -> Speed | None:
        """Return the speed of an expert on some workers; None: it was not measured there."""
        entry = self._entry(expert, workers)
        return None if entry is None else entry.speed

    def load_s(self, expert: ExpertName, workers: tuple[int, ...], held: LoadedModels | None = None) -> float:
        """Predict the seconds to load an expert on free workers, given the loaded models; None: those of now."""
        location = (self._held if held is None else held).location(expert, workers)
        if location is WeightLocation.RESIDENT:
            return 0.0
        if self._host_loads is not None and location is not WeightLocation.COLD and expert in self._experts:
            return self._host_loads(self._experts[expert], self._cluster.select(workers), location)
        entry = self._entry(expert, workers)
        return 0.0 if entry is None else entry.load_s

    def soonest(self, expert: ExpertName, free: Iterable[int]) -> tuple[float, int] | None:
        """Find the free worker that loads an expert soonest, with its load in seconds; None: there is none."""
        known = [worker for worker in free if self.speed(expert, (worker,)) is not None]
        return min(((self.load_s(expert, (worker,)), worker) for worker in known), default=None)

    def _entry(self, expert: ExpertName, workers: Sequence[int]) -> ProfileEntry | None:
        return self._entries.get((expert, self._cluster.workers[workers[0]].gpu.name, len(workers)))

    def _samples_of(self, calls: Mapping[CallKey, Call], expert: ExpertName) -> Indexes:
        """Return the index in ``_samples`` of each of an expert's calls."""
        nodes = [key.node for key in calls]
        index = {node: self._index(node, expert) for node in dict.fromkeys(nodes)}
        if len(index) == 1:
            return np.full(len(nodes), index[nodes[0]])
        return np.array([index[node] for node in nodes], dtype=np.int64)

    def _index(self, node: NodeName, expert: ExpertName) -> int:
        if (node, expert) not in self._sample_of:
            entries = self._profiles[node].entries
            sample = next(entry.output_tokens for entry in entries if entry.expert == expert)
            self._sample_of[node, expert] = len(self._samples)
            self._samples.append(Lengths(sample))
        return self._sample_of[node, expert]

    def _load_left_s(self, session: Session, held: LoadedModels, view: View, waits: bool) -> float:
        load_s = self.load_s(session.expert, session.workers, held)
        if waits or not load_s:
            return load_s
        begun_ts = self._first_seen_ts.setdefault(session.id, view.ts)
        free_ts = max(self._free_ts.get(worker, 0.0) for worker in session.workers)
        return max(0.0, load_s - (view.ts - max(begun_ts, free_ts)))

"""From a plan to session work: experts found, lengths drawn, engines configured, everything checked."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from mosaic.core.cluster import Cluster, Gpu, Worker
from mosaic.core.errors import BackendError
from mosaic.core.plan import Plan, Session
from mosaic.core.realization import Outcome, Outcomes
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, ModelShape
from mosaic.planning.costs import kv_capacity_tokens
from sim.cluster.live_session import Job, SessionWork
from sim.cluster.lower_bound import Demand, Place
from sim.engine.engine import Engine
from sim.engine.engine_settings import EngineSettings
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import IterationTime

IterationTimes: TypeAlias = Callable[[Hardware, ModelShape, int], IterationTime]
"""Builds the iteration time of a model on a kind of GPU at a tensor-parallel degree."""


class Places:
    """The experts on the kinds of GPU of a cluster; each pair is built once, when it is first needed."""

    def __init__(
        self,
        experts: Sequence[Expert],
        hardware: Mapping[str, Hardware],
        cluster: Cluster,
        settings: EngineSettings,
        iteration_times: IterationTimes,
    ) -> None:
        self.settings = settings
        self._experts = {expert.name: expert for expert in experts}
        self._hardware = hardware
        self._cluster = cluster
        self._iteration_times = iteration_times
        self._places: dict[tuple[ExpertName, Gpu], Place] = {}

    def expert(self, session: Session) -> Expert:
        """Find a session's expert.

        Raises
        ------
        BackendError
            If the backend does not have it.
        """
        expert = self._experts.get(session.expert)
        if expert is None:
            raise BackendError(
                f"plan session {session.id}: expert must be one of {sorted(self._experts)}, got {session.expert!r}"
            )
        return expert

    def place(self, session: Session) -> Place:
        """Price a session's expert on the session's workers.

        Raises
        ------
        BackendError
            If the workers do not exist, are of two kinds or too many or few, or cannot hold the expert.
        """
        label = f"plan session {session.id} of {session.expert!r}"
        expert = self.expert(session)
        if len(session.workers) != expert.tp_degree:
            raise BackendError(
                f"{label}: workers must be as many as tp_degree {expert.tp_degree}, got {session.workers}"
            )
        try:
            workers = self._cluster.select(session.workers)
            if len({worker.gpu for worker in workers}) > 1:
                raise BackendError(f"{label}: workers must be of one kind, got {[w.gpu.name for w in workers]}")
            return self._place(expert, workers)
        except ValueError as error:
            raise BackendError(f"{label}: {error}") from error

    def demand(self, name: ExpertName, jobs: Sequence[Job]) -> Demand:
        """Describe an expert's calls with all the places where they could run."""
        expert = self._experts[name]
        places = []
        for gpu in dict.fromkeys(worker.gpu for worker in self._cluster.workers):
            workers = [worker for worker in self._cluster.workers if worker.gpu == gpu][: expert.tp_degree]
            if len(workers) < expert.tp_degree:
                continue
            try:
                places.append(self._place(expert, workers))
            except ValueError:
                continue  # It cannot run there, so no plan can use it.
        return Demand(jobs, expert.tp_degree, expert.context_tokens, places)

    def _place(self, expert: Expert, workers: Sequence[Worker]) -> Place:
        gpu = workers[0].gpu
        place = self._places.get((expert.name, gpu))
        if place is None:
            capacity = kv_capacity_tokens(expert, workers)
            if capacity < self.settings.block_size:
                raise ValueError(
                    f"{expert.name} must fit into {expert.tp_degree} x {gpu.name}, KV tokens left: {capacity}"
                )
            hardware = self._hardware[gpu.name]
            place = self._places[expert.name, gpu] = Place(
                load_s=hardware.load_s(expert.shape, expert.tp_degree),
                time=self._iteration_times(hardware, expert.shape, expert.tp_degree),
                kv_tokens=capacity if self.settings.kv_tokens is None else self.settings.kv_tokens,
            )
        return place


def prepare(plan: Plan, calls: Sequence[Call], outcomes: Outcomes, places: Places) -> list[SessionWork]:
    """Check a plan against the calls and make each session ready to run.

    Raises
    ------
    BackendError
        If the plan names what does not exist, or does not serve each call exactly once.
    """
    left = {call.key: call for call in calls}
    if len(left) != len(calls):
        raise BackendError(f"calls: key must be unique, {len(calls)} calls have {len(left)} keys")
    for call in calls:
        for key in call.after:
            if key in left:
                raise BackendError(f"call {call.key}: after must name calls of an earlier run, got {key} of this one")
    known = {session.id for session in plan.sessions}
    work = []
    for session in plan.sessions:
        for needed in session.after:
            if needed not in known:
                raise BackendError(f"plan session {session.id}: after must name sessions of the plan, got {needed}")
        place, expert = places.place(session), places.expert(session)
        jobs = tuple(_job(left.pop(key, None), key, session, expert, outcomes) for key in session.shard)
        work.append(SessionWork(session, jobs, place.load_s, partial(_make_engine, place, expert, places.settings)))
    if left:
        raise BackendError(f"plan drops {len(left)} calls, the first of them {next(iter(left))}")
    return work


def _make_engine(place: Place, expert: Expert, settings: EngineSettings, start_ts: float) -> Engine:
    return Engine(
        iteration_time=place.time,
        settings=settings,
        kv_tokens=place.kv_tokens,
        context_tokens=expert.context_tokens,
        start_ts=start_ts,
    )


def _job(call: Call | None, key: CallKey, session: Session, expert: Expert, outcomes: Outcomes) -> Job:
    """Draw what will happen to a call; one that reaches the expert's limit is cut off there."""
    if call is None:
        raise BackendError(f"plan session {session.id}: call {key} is not one of the calls, or is served twice")
    if call.expert != session.expert:
        raise BackendError(f"plan session {session.id} of {session.expert!r}: call {key} is for {call.expert!r}")
    limit = expert.output_limit(call.prompt_tokens)
    if limit < 1:
        raise BackendError(
            f"call {key}: prompt_tokens must be below {expert.name}'s context of {expert.context_tokens}, "
            f"got {call.prompt_tokens}"
        )
    return cut_off(call, expert, outcomes(call))


def cut_off(call: Call, expert: Expert, outcome: Outcome) -> Job:
    """Cut a response off at its expert's limit; one that reaches the limit never came to its answer."""
    limit = expert.output_limit(call.prompt_tokens)
    if outcome.output_tokens < limit:
        return Job(call, *outcome)
    # Where thinking does not count as visible, it was still thinking.
    return Job(call, limit, None, None if outcome.visible_tokens is None else 0)

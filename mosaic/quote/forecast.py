"""How long a plan takes if calls have given lengths: every session simulated, and put together worker by worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.workload import CallKey, Expert, ExpertName
from mosaic.planning.session_model import Request, SessionModel

Served: TypeAlias = dict[tuple[ExpertName, int, tuple[Request, ...]], float]


class LoadTimes(Protocol):
    """Knows how long experts take to load."""

    def load_s(self, expert: Expert, num_workers: int) -> float:
        """From idle workers to a ready engine."""

    def unload_s(self, expert: Expert, num_workers: int) -> float:
        """To make room for it where another expert was."""


@dataclass(frozen=True, slots=True)
class Factors:
    """By how much the machine's seconds differ from simulated ones; 1: not at all, or nobody has measured."""

    load: float = 1.0
    serve: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """Steps sessions of one kind of worker; what it has stepped it remembers."""

    experts: Mapping[ExpertName, Expert]
    sessions: SessionModel
    loads: LoadTimes
    factors: Factors = Factors()
    _served: Served = field(default_factory=dict, repr=False, compare=False)

    def serve_s(self, expert: Expert, requests: Sequence[Request], cluster: Cluster, degree: int) -> float:
        """Seconds until the last of some requests has ended, which are all there from the start."""
        key = expert.name, degree, tuple(requests)
        if key not in self._served:
            served = self.sessions.serve(expert, requests, cluster.workers[:degree]) if requests else ()
            self._served[key] = max((one.finished_s for one in served), default=0.0)
        return self._served[key] * self.factors.serve

    def plan_s(self, plan: Plan, requests: Mapping[CallKey, Request], cluster: Cluster) -> float:
        """Seconds from the first load of a plan to the end of its last session."""
        free_s = [0.0] * plan.num_workers
        resident: list[tuple[ExpertName, tuple[int, ...]] | None] = [None] * plan.num_workers
        end_s: dict[int, float] = {}
        for session in plan.sessions:
            degree, home = len(session.workers), (session.expert, session.workers)
            expert = self.experts[session.expert]
            start_s = max([free_s[worker] for worker in session.workers] + [end_s[needed] for needed in session.after])
            if any(resident[worker] != home for worker in session.workers):
                if any(resident[worker] is not None for worker in session.workers):
                    start_s += self.loads.unload_s(expert, degree) * self.factors.load
                start_s += self.loads.load_s(expert, degree) * self.factors.load
            own = [requests[key] for key in session.shard]
            end_s[session.id] = start_s + self.serve_s(expert, own, cluster, degree)
            for worker in session.workers:
                free_s[worker], resident[worker] = end_s[session.id], home
        return max(free_s)

    def merge_s(self, expert: Expert, requests: Sequence[Request], cluster: Cluster, degrees: Sequence[int]) -> float:
        """Seconds that an aggregator takes behind the experts, at the degree at which it ends first.

        At one worker it has a replica on each, and their calls are split evenly; at others it is one session.
        """
        if not requests:
            return 0.0
        times = []
        for degree in (degree for degree in degrees if degree <= cluster.num_workers):
            num_places = min(cluster.num_workers, len(requests)) if degree == 1 else 1
            parts = [list(requests[place::num_places]) for place in range(num_places)]
            load_s = self.loads.unload_s(expert, degree) + self.loads.load_s(expert, degree)
            times.append(
                load_s * self.factors.load + max(self.serve_s(expert, part, cluster, degree) for part in parts)
            )
        return min(times)

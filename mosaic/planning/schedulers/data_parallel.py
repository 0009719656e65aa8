"""Every expert on every worker, one expert after the other."""

from dataclasses import dataclass

from mosaic.core.plan import Plan, Session
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.base import make_plan
from mosaic.planning.schedulers.instance import make_instance
from mosaic.planning.schedulers.lower_bounds import lower_bound_s, without_caps
from mosaic.planning.schedulers.shards import replica_sessions, split_evenly


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallel:
    """Copy each expert in first-seen order to all workers, its calls split evenly, with a barrier before the next.

    It knows no replica caps and no K. Where there are fewer calls than workers some workers sit an expert out.
    """

    name: str = "data_parallel"

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(problem)
        sessions: list[Session] = []
        barrier: tuple[int, ...] = ()
        for places, calls in zip(instance.places, problem.calls_by_expert().values(), strict=True):
            shards = split_evenly(len(calls), len(places))
            wave = replica_sessions(calls, places, shards, first_id=len(sessions), after=barrier)
            barrier = tuple(session.id for session in wave)
            sessions += wave
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=sessions,
            lower_bound_s=lower_bound_s(without_caps(instance)),
            notes=("every expert on every worker, one after the other with a barrier; replica caps do not apply",),
        )

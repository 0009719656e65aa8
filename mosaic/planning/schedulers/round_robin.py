"""The paper's baseline: experts in first-seen order, dealt to the workers in turn."""

from dataclasses import dataclass

from mosaic.core.plan import Plan, Session
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.base import make_plan
from mosaic.planning.schedulers.instance import make_instance, places_for
from mosaic.planning.schedulers.lower_bounds import lower_bound_s
from mosaic.planning.schedulers.shards import replica_sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Expert m on worker m mod N, experts in the order in which the query stream first names them; one load each.

    An expert that spans several workers goes to gang m mod (number of gangs); one that does not fit there goes
    to the next place where it does.
    """

    name: str = "round_robin"

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        sessions: list[Session] = []
        for turn, (name, calls) in enumerate(problem.calls_by_expert().items()):
            expert = problem.expert(name)
            places = [tuple(worker.id for worker in gang) for gang in places_for(problem, expert)]
            num_gangs = problem.cluster.num_workers // expert.tp_degree
            degree = expert.tp_degree
            place = min(places, key=lambda workers: (workers[0] // degree - turn) % num_gangs)
            sessions += replica_sessions(calls, [place], [len(calls)], first_id=len(sessions))
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=sessions,
            lower_bound_s=lower_bound_s(make_instance(problem)),
            notes=("experts in the order in which the query stream first names them, expert m on worker m mod N",),
        )

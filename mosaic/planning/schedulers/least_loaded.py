"""Whole experts, each to the worker with the least predicted load."""

from dataclasses import dataclass

from mosaic.core.plan import Plan, Session
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.base import PredictedTimeline, make_plan
from mosaic.planning.schedulers.instance import Instance, make_instance
from mosaic.planning.schedulers.lower_bounds import lower_bound_s
from mosaic.planning.schedulers.shards import replica_sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastLoaded:
    """Place whole experts one by one where the predicted load, in seconds, is least; ties to the first worker."""

    longest_first: bool = False
    """Place the longest sessions first (LPT); otherwise experts in first-seen order."""
    name: str = "least_loaded"

    def __post_init__(self) -> None:
        if not isinstance(self.longest_first, bool):
            raise TypeError(f"scheduler.longest_first must be true or false, got {self.longest_first!r}")

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(problem)
        calls_by_expert = problem.calls_by_expert()
        timeline = PredictedTimeline(problem)
        sessions: list[Session] = []
        for expert in _order(instance, longest_first=self.longest_first):
            calls = calls_by_expert[instance.names[expert]]
            place = min(instance.places[expert], key=timeline.free_s)
            sessions += replica_sessions(calls, [place], [len(calls)], first_id=len(sessions))
            timeline.append(sessions[-1])
        order = "longest expert first" if self.longest_first else "experts in first-seen order"
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=sessions,
            lower_bound_s=lower_bound_s(instance),
            notes=(f"{order}, each whole to the worker with the least predicted load",),
        )


def _order(instance: Instance, *, longest_first: bool) -> list[int]:
    def shortest_s(expert: int) -> float:
        places = range(len(instance.places[expert]))
        return min(instance.session_s(expert, place, instance.num_calls[expert]) for place in places)

    experts = list(range(instance.num_experts))
    return sorted(experts, key=shortest_s, reverse=True) if longest_first else experts

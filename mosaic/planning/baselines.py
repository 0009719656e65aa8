"""The baselines: round robin, first in first out, least loaded, and every expert on every worker."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from mosaic.core.checks import AtLeast1, checked
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import Call, ExpertName
from mosaic.planning.problem import Problem
from mosaic.planning.program.instance import Instance, make_instance
from mosaic.planning.scheduler import PredictedTimeline, make_plan, replica_sessions, split_evenly


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Expert m on worker m mod N, experts in the order in which the questions first name them; one load each.

    An expert that spans several workers goes to gang m mod (number of gangs). If it does not fit there, it goes to the
    next gang where it fits.
    """

    name: str = "round_robin"

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(problem)
        sessions: list[Session] = []
        for turn, (places, calls) in enumerate(zip(instance.places, problem.calls_by_expert().values(), strict=True)):
            degree = len(places[0])
            num_gangs = problem.cluster.num_workers // degree
            place = min(places, key=lambda workers: (workers[0] // degree - turn) % num_gangs)
            sessions += replica_sessions(calls, [place], [len(calls)], first_id=len(sessions))
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=sessions,
            lower_bound_s=instance.lower_bound_s(),
            notes=("experts in the order in which the query stream first names them, expert m on worker m mod N",),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("scheduler.")
class Fifo:
    """In each window of questions the calls of one expert form a session, which goes to the worker that is free first.

    Sessions are taken in first-seen order and ties go to the first worker. An expert that its worker served last stays
    loaded into the next window. Replica caps and K do not apply.
    """

    window_questions: AtLeast1 = 256
    name: str = "fifo"

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(problem)
        groups = chain.from_iterable(window.items() for window in windows(problem.calls, self.window_questions))
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=_where_free_first(problem, instance, groups),
            lower_bound_s=instance.without_limits().lower_bound_s(),
            notes=(
                f"windows of {self.window_questions} questions in arrival order, each session to the worker predicted "
                "free first; replica caps do not apply",
            ),
        )


def windows(calls: Sequence[Call], window_questions: int) -> Iterator[dict[ExpertName, list[Call]]]:
    """Group calls by window of questions, and inside a window by expert, both in first-seen order."""
    rank: dict[str, int] = {}
    groups: dict[int, dict[ExpertName, list[Call]]] = {}
    for call in calls:
        window = rank.setdefault(call.key.question, len(rank)) // window_questions
        groups.setdefault(window, {}).setdefault(call.expert, []).append(call)
    for window in sorted(groups):
        yield groups[window]


def _where_free_first(
    problem: Problem, instance: Instance, groups: Iterable[tuple[ExpertName, Sequence[Call]]]
) -> list[Session]:
    """Make a session of each group of calls, in turn, on the workers that are predicted to be free first."""
    places = dict(zip(instance.names, instance.places, strict=True))
    timeline = PredictedTimeline(problem)
    sessions: list[Session] = []
    for name, calls in groups:
        place = min(places[name], key=timeline.free_s)
        sessions += replica_sessions(calls, [place], [len(calls)], first_id=len(sessions))
        timeline.append(sessions[-1])
    return sessions


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("scheduler.")
class LeastLoaded:
    """Place whole experts one by one where the predicted load, in seconds, is least; ties to the first worker."""

    longest_first: bool = False
    """Place the longest sessions first (LPT); otherwise experts in first-seen order."""
    name: str = "least_loaded"

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(problem)
        experts = list(problem.calls_by_expert().items())
        if self.longest_first:
            ranked = sorted(range(instance.num_experts), key=instance.shortest_s, reverse=True)
            experts = [experts[m] for m in ranked]
        order = "longest expert first" if self.longest_first else "experts in first-seen order"
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=_where_free_first(problem, instance, experts),
            lower_bound_s=instance.lower_bound_s(),
            notes=(f"{order}, each whole to the worker with the least predicted load",),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallel:
    """Copy each expert in first-seen order to all workers, its calls split evenly, with a barrier before the next.

    It ignores replica caps and K. If an expert has fewer calls than workers, some workers are idle during its sessions.
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
            lower_bound_s=instance.without_limits().lower_bound_s(),
            notes=("every expert on every worker, one after the other with a barrier; replica caps do not apply",),
        )

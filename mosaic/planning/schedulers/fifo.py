"""Calls in arrival order, in windows; small windows show what reloading costs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mosaic.core.checks import require_count
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import Call, ExpertName
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.base import PredictedTimeline, make_plan
from mosaic.planning.schedulers.instance import make_instance
from mosaic.planning.schedulers.lower_bounds import lower_bound_s, without_caps
from mosaic.planning.schedulers.shards import replica_sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Fifo:
    """In each window of questions the calls of one expert form a session, which goes to the worker free first.

    Sessions are taken in first-seen order and ties go to the first worker. An expert that its worker served
    last stays resident into the next window. Replica caps and K do not apply.
    """

    window_questions: int = 256
    name: str = "fifo"

    def __post_init__(self) -> None:
        require_count(self.window_questions, "scheduler.window_questions", at_least=1)

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(problem)
        places = dict(zip(instance.names, instance.places, strict=True))
        timeline = PredictedTimeline(problem)
        sessions: list[Session] = []
        for window in windows(problem.calls, self.window_questions):
            for name, calls in window.items():
                place = min(places[name], key=timeline.free_s)
                sessions += replica_sessions(calls, [place], [len(calls)], first_id=len(sessions))
                timeline.append(sessions[-1])
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=sessions,
            lower_bound_s=lower_bound_s(without_caps(instance)),
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

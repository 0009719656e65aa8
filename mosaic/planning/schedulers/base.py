"""What every scheduler shares: its contract, and the closed-form timeline of a plan."""

from collections.abc import Sequence
from typing import Protocol

from mosaic.core.plan import Plan, PredictedTimes, Session, SolveReport, SolveStatus, home_of
from mosaic.planning.problem import Problem


class Scheduler(Protocol):
    """Decides which expert loads on which workers and which calls each replica serves."""

    @property
    def name(self) -> str:
        """Its name in plans and summaries."""

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem.

        Raises
        ------
        InfeasibleError
            If memory, replica caps or the limit K leave no place for an expert.
        """


class PredictedTimeline:
    """Prices sessions one after the other: each starts when its workers and its predecessors are done.

    An expert that its workers served last is still resident and loads in no time; one that was loaded before may come
    out of the host's memory, as the costs have it.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._free_s = [0.0] * problem.cluster.num_workers
        self._held = problem.held
        self._end_s_by_session: dict[int, float] = {}

    def free_s(self, workers: Sequence[int]) -> float:
        """Tell when the last of these workers is free."""
        return max(self._free_s[worker] for worker in workers)

    def append(self, session: Session) -> PredictedTimes:
        """Price the next session of the total order."""
        problem = self._problem
        expert = problem.expert(session.expert)
        workers = problem.cluster.select(session.workers)
        start_s = max([self.free_s(session.workers), *(self._end_s_by_session[needed] for needed in session.after)])
        residency = self._held.residency(*home_of(session))
        load_s = problem.costs.load_s(expert, workers, residency)
        serve_s = problem.costs.session_s(expert, problem.summary(session.expert, len(session.shard)), workers)
        end_s = start_s + load_s + serve_s
        for worker in session.workers:
            self._free_s[worker] = end_s
        self._held = self._held.after(*home_of(session))
        self._end_s_by_session[session.id] = end_s
        return PredictedTimes(start_s, load_s, end_s)


def predict_times(problem: Problem, sessions: Sequence[Session]) -> tuple[PredictedTimes, ...]:
    """Price the sessions in their total order: a session starts when its workers and its predecessors are done."""
    timeline = PredictedTimeline(problem)
    return tuple(timeline.append(session) for session in sessions)


def make_plan(
    problem: Problem,
    *,
    scheduler: str,
    sessions: Sequence[Session],
    lower_bound_s: float,
    notes: Sequence[str] = (),
    solve: SolveReport | None = None,
) -> Plan:
    """Assemble a plan from a scheduler's decisions; the cost model's own notes are added to the scheduler's."""
    used = dict.fromkeys(session.expert for session in sessions)
    return Plan(
        scheduler=scheduler,
        costs=problem.costs.name,
        problem_fingerprint=problem.fingerprint(),
        num_workers=problem.cluster.num_workers,
        sessions=tuple(sessions),
        predicted=predict_times(problem, sessions),
        lengths={name: problem.lengths[name] for name in used},
        lower_bound_s=lower_bound_s,
        solve=solve or SolveReport(status=SolveStatus.HEURISTIC),
        notes=(*notes, *problem.costs.notes()),
    )

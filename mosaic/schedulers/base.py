"""What every scheduler shares: its contract, and the closed-form timeline of a plan."""

from collections.abc import Sequence
from typing import Protocol

from mosaic.costs import Residency
from mosaic.plan import Plan, PredictedTimes, Session
from mosaic.problem import Problem


class Scheduler(Protocol):
    """Decides which expert loads on which workers and which calls each replica serves."""

    name: str

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem.

        Raises
        ------
        InfeasibleError
            If memory, replica caps or the limit K leave no place for an expert.
        """


def predict_times(problem: Problem, sessions: Sequence[Session]) -> tuple[PredictedTimes, ...]:
    """Price the sessions in their total order: a session starts when its workers and its predecessors are done."""
    free_s = [0.0] * problem.cluster.num_workers
    resident: dict[int, tuple[str, tuple[int, ...]]] = {}
    end_s_by_session: dict[int, float] = {}
    times: list[PredictedTimes] = []
    for session in sessions:
        expert = problem.expert(session.expert)
        workers = problem.cluster.select(session.workers)
        start_s = max(free_s[worker] for worker in session.workers)
        start_s = max([start_s, *(end_s_by_session[needed] for needed in session.after)])
        home = (session.expert, session.workers)
        stays = all(resident.get(worker) == home for worker in session.workers)
        residency = Residency.RESIDENT if stays else Residency.COLD
        load_s = problem.costs.load_s(expert, workers, residency).mean_s
        serve_s = problem.costs.session_s(expert, problem.summary(session.expert, len(session.shard)), workers).mean_s
        end_s = start_s + load_s + serve_s
        for worker in session.workers:
            free_s[worker] = end_s
            resident[worker] = home
        end_s_by_session[session.id] = end_s
        times.append(PredictedTimes(start_s, load_s, end_s))
    return tuple(times)

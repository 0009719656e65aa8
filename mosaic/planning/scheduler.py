"""Shared parts of schedulers: their protocol, the sessions that serve an expert's calls, and the timeline of a plan."""

from collections.abc import Sequence
from typing import Protocol

from mosaic.core.plan import Plan, PredictedTimes, Session, SolveReport, SolveStatus, placement_of
from mosaic.core.workload import Call, CallKey
from mosaic.planning.costs import price_s
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


def split_calls(calls: Sequence[Call], num_calls: Sequence[int]) -> tuple[tuple[CallKey, ...], ...]:
    """Divide calls into shards of given sizes, evenly interleaved in arrival order.

    The j-th call of a shard of n is at position (j + 1/2) / n of the stream. So every shard is an equal sample of early
    and late calls, for any order of the questions. Calls keep their order inside a shard.

    Raises
    ------
    ValueError
        If the sizes do not add up to the number of calls.

    Examples
    --------
    >>> from mosaic.core.workload import Call, CallKey, PROPOSE
    >>> calls = [Call(CallKey(f"q{i}", PROPOSE, 0), "A", 10) for i in range(6)]
    >>> [[key.question for key in shard] for shard in split_calls(calls, (4, 2))]
    [['q0', 'q2', 'q3', 'q5'], ['q1', 'q4']]
    """
    if sum(num_calls) != len(calls) or min(num_calls, default=0) < 0:
        raise ValueError(f"shard sizes must add up to {len(calls)} calls, got {list(num_calls)}")
    if sum(size > 0 for size in num_calls) == 1:
        return tuple(tuple(call.key for call in calls) if size else () for size in num_calls)
    positions = [((j + 0.5) / size, shard) for shard, size in enumerate(num_calls) for j in range(size)]
    positions.sort()
    shards: list[list[CallKey]] = [[] for _ in num_calls]
    for (_, shard), call in zip(positions, calls, strict=True):
        shards[shard].append(call.key)
    return tuple(tuple(keys) for keys in shards)


def split_evenly(num_calls: int, num_shards: int) -> tuple[int, ...]:
    """Split a number into parts that differ by at most one, the larger ones first."""
    small, extra = divmod(num_calls, num_shards)
    return tuple(small + (shard < extra) for shard in range(num_shards))


def replica_sessions(
    calls: Sequence[Call],
    places: Sequence[tuple[int, ...]],
    num_calls: Sequence[int],
    *,
    first_id: int,
    after: tuple[int, ...] = (),
) -> tuple[Session, ...]:
    """Make one session of one expert per place that gets calls; ids count up from ``first_id``."""
    shards = split_calls(calls, num_calls)
    filled = [(place, shard) for place, shard in zip(places, shards, strict=True) if shard]
    return tuple(
        Session(
            id=first_id + number,
            expert=calls[0].expert,
            node=calls[0].key.node,
            workers=place,
            shard=shard,
            after=after,
        )
        for number, (place, shard) in enumerate(filled)
    )


class PredictedTimeline:
    """Prices sessions one after the other: each starts when its workers are free and its predecessors have ended.

    An expert that its workers served last is still loaded and needs no load. An expert that was loaded before may be in
    the machine's memory, which the costs take into account.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._free_s = [0.0] * problem.cluster.num_workers
        self._held = problem.held
        self._end_s_by_session: dict[int, float] = {}

    def free_s(self, workers: Sequence[int]) -> float:
        """Return when the last of these workers is free."""
        return max(self._free_s[worker] for worker in workers)

    def append(self, session: Session) -> PredictedTimes:
        """Price the next session of the total order."""
        problem = self._problem
        expert = problem.expert(session.expert)
        workers = problem.cluster.select(session.workers)
        start_s = max([self.free_s(session.workers), *(self._end_s_by_session[needed] for needed in session.after)])
        location = self._held.location(*placement_of(session))
        load_s = problem.costs.load_s(expert, workers, location)
        serve_s = price_s(problem.costs.pieces(expert, workers), len(session.shard))
        end_s = start_s + load_s + serve_s
        for worker in session.workers:
            self._free_s[worker] = end_s
        self._held = self._held.after(*placement_of(session))
        self._end_s_by_session[session.id] = end_s
        return PredictedTimes(start_s, load_s, end_s)


def predict_times(problem: Problem, sessions: Sequence[Session]) -> tuple[PredictedTimes, ...]:
    """Price the sessions in their total order: each starts when its workers are free and its predecessors ended."""
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
        problem_fingerprint=problem.fingerprint,
        num_workers=problem.cluster.num_workers,
        sessions=tuple(sessions),
        predicted=predict_times(problem, sessions),
        lengths={name: problem.lengths[name] for name in used},
        lower_bound_s=lower_bound_s,
        solve=solve or SolveReport(status=SolveStatus.HEURISTIC),
        notes=(*notes, *problem.costs.notes()),
    )

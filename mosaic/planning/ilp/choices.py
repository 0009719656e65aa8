"""What the flexible program chooses among: every expert, at every degree, where it fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from mosaic.core.cluster import Worker
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.costs import LinearTerms, price_s
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.instance import Place, places_for

Pieces: TypeAlias = tuple[LinearTerms, ...]
"""Affine prices of which a session costs the highest, its load apart."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A session that could be opened."""

    expert: int
    """By number, in the order in which the query stream first names them."""
    workers: Place
    load_s: float
    pieces: Pieces
    """Affine prices; the session costs the highest."""

    def session_s(self, num_calls: int, pieces: Pieces | None = None) -> float:
        """Price the session, load included, by these prices or its own; 0 without calls."""
        return self.load_s + price_s(self.pieces if pieces is None else pieces, num_calls) if num_calls else 0.0

    @cached_property
    def least(self) -> LinearTerms:
        """Affine terms that it never costs less than, load included, however its calls are shared out."""
        positive = [piece for piece in self.pieces if piece.fixed_s >= 0]
        terms = max(positive, key=lambda piece: piece.per_call_s, default=LinearTerms(0.0, 0.0))
        return LinearTerms(self.load_s + terms.fixed_s, terms.per_call_s)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Options, calls and limits."""

    names: tuple[ExpertName, ...]
    num_calls: tuple[int, ...]
    options: tuple[Option, ...]
    max_replicas: tuple[int | None, ...]
    """By expert; None: as many as pay for themselves."""
    num_workers: int
    max_experts_per_worker: int | None
    """K; None: as many as pay for themselves."""

    @cached_property
    def of_expert(self) -> tuple[tuple[int, ...], ...]:
        """Options by expert."""
        return tuple(
            tuple(o for o, option in enumerate(self.options) if option.expert == m) for m in range(len(self.names))
        )

    @cached_property
    def on_worker(self) -> tuple[tuple[int, ...], ...]:
        """Options by worker."""
        return tuple(
            tuple(o for o, option in enumerate(self.options) if n in option.workers) for n in range(self.num_workers)
        )

    def worker_s(self, counts: Mapping[int, int], prices: Sequence[Pieces] | None = None) -> list[float]:
        """Price every worker's sessions, by the calls of each option that is used, in seconds by worker.

        ``prices`` are those of a scenario, by option; None: the options' own.
        """
        busy_s = [0.0] * self.num_workers
        for o, number in counts.items():
            option = self.options[o]
            session_s = option.session_s(number, None if prices is None else prices[o])
            for worker in option.workers:
                busy_s[worker] += session_s
        return busy_s

    def makespan_s(self, counts: Mapping[int, int], prices: Sequence[Pieces] | None = None) -> float:
        """Price the busiest worker."""
        return max(self.worker_s(counts, prices), default=0.0)

    @property
    def bound_s(self) -> float:
        """Bound every placement's makespan from below: all work spread evenly, and each expert alone."""
        work_s = alone_s = 0.0
        for m, number in enumerate(self.num_calls):
            mine = [self.options[o] for o in self.of_expert[m]]
            work_s += min(
                len(option.workers) * (option.least.fixed_s + option.least.per_call_s * number) for option in mine
            )
            alone_s = max(alone_s, min(option.session_s(1) for option in mine))
        return max(alone_s, work_s / self.num_workers)


def make_choices(
    problem: Problem,
    *,
    max_replicas: int | Mapping[ExpertName, int] | None = None,
    max_experts_per_worker: int | None = None,
) -> Choices:
    """Price every expert that has calls wherever it fits, at each degree that it may have.

    Raises
    ------
    InfeasibleError
        If an expert fits nowhere.
    """
    num_calls = {name: len(calls) for name, calls in problem.calls_by_expert().items()}
    options: list[Option] = []
    for m, name in enumerate(num_calls):
        expert = problem.expert(name)
        shapes = [replace(expert, tp_degree=degree) for degree in expert.possible_degrees]
        gangs = [(shape, gang) for shape in shapes for gang in problem.gangs(shape)]
        if not gangs:
            places_for(problem, expert)  # says why
        options += [_option(problem, m, shape, gang) for shape, gang in gangs]
    caps = max_replicas if isinstance(max_replicas, Mapping) else dict.fromkeys(num_calls, max_replicas)
    return Choices(
        names=tuple(num_calls),
        num_calls=tuple(num_calls.values()),
        options=tuple(options),
        max_replicas=tuple(caps.get(name) for name in num_calls),
        num_workers=problem.cluster.num_workers,
        max_experts_per_worker=max_experts_per_worker,
    )


def _option(problem: Problem, number: int, expert: Expert, gang: Sequence[Worker]) -> Option:
    return Option(
        expert=number,
        workers=tuple(worker.id for worker in gang),
        load_s=problem.costs.load_s(expert, gang, problem.held.anywhere(expert.name)),
        pieces=tuple(problem.costs.pieces(expert, gang)),
    )

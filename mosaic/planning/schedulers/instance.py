"""The numbers of a placement problem: experts, the places where each can run, prices and limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.checks import require
from mosaic.core.cluster import Worker
from mosaic.core.errors import InfeasibleError
from mosaic.core.kv_memory import describe_need
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.problem import Problem

Place: TypeAlias = tuple[int, ...]
"""Workers that one session holds together; a single worker unless the expert is tensor parallel."""

Counts: TypeAlias = tuple[tuple[int, ...], ...]
"""X of the paper, shape ``(num_experts, num_places of the expert)``; Y is where it is positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What the program and the bound compute with; rows are the experts that have calls, in first-seen order."""

    names: tuple[ExpertName, ...]
    num_calls: tuple[int, ...]
    """N_m of the paper."""
    places: tuple[tuple[Place, ...], ...]
    setup_s: tuple[tuple[float, ...], ...]
    """Paid once per session: load and fixed part, shape as ``places``."""
    per_call_s: tuple[tuple[float, ...], ...]
    max_replicas: tuple[int, ...]
    cap_reasons: tuple[str, ...]
    """Where each cap comes from, in words."""
    num_workers: int
    max_experts_per_worker: int
    """K of the paper."""

    @property
    def num_experts(self) -> int:
        return len(self.names)

    def session_s(self, expert: int, place: int, num_calls: int) -> float:
        """Price one session, load included; 0 without calls."""
        return self.setup_s[expert][place] + self.per_call_s[expert][place] * num_calls if num_calls else 0.0

    def worker_s(self, counts: Counts) -> list[float]:
        """Price every worker's sessions (equation 4 of the paper), seconds by worker."""
        total_s = [0.0] * self.num_workers
        for expert, row in enumerate(counts):
            for place, number in enumerate(row):
                if number:
                    for worker in self.places[expert][place]:
                        total_s[worker] += self.session_s(expert, place, number)
        return total_s

    def makespan_s(self, counts: Counts) -> float:
        """Price the busiest worker (equation 10 of the paper)."""
        return max(self.worker_s(counts), default=0.0)

    @property
    def longest_s(self) -> float:
        """Seconds that no sensible placement exceeds: every expert whole, at its dearest place, one after the other."""
        return add_in_order(
            max(self.session_s(m, p, number) for p in range(len(self.places[m])))
            for m, number in enumerate(self.num_calls)
        )

    def calls_within(self, expert: int, place: int, room_s: float) -> int:
        """Count the calls that one session can serve in a time, its load included."""
        rest_s = room_s - self.setup_s[expert][place]
        if rest_s < 0:
            return 0
        per_call_s = self.per_call_s[expert][place]
        everything = self.num_calls[expert]
        if per_call_s * everything <= rest_s:
            return everything
        # The slack keeps a shard that fits exactly from being lost to rounding.
        return min(everything, floor(rest_s / per_call_s * (1 + 1e-12) + 1e-9))


def places_for(problem: Problem, expert: Expert) -> tuple[tuple[Worker, ...], ...]:
    """List the gangs where an expert fits.

    Raises
    ------
    InfeasibleError
        If there are none; the message gives the sizes and what to change.
    """
    gangs = problem.gangs(expert)
    if gangs:
        return gangs
    workers, degree = problem.cluster.workers, expert.tp_degree
    if degree > len(workers):
        raise InfeasibleError(
            f"expert {expert.name!r} spans {degree} workers and cluster {problem.cluster.name!r} has {len(workers)}: "
            "lower its tp_degree or add workers"
        )
    usable = ", ".join(
        f"{gpu.name} {gpu.usable_bytes / 2**30:.1f} GiB" for gpu in dict.fromkeys(worker.gpu for worker in workers)
    )
    raise InfeasibleError(
        f"expert {expert.name!r} fits on no aligned group of {degree} equal worker(s): each needs "
        f"{describe_need(expert)}, beside activations; usable: {usable}. Raise its tp_degree, lower its context_tokens "
        "or use a larger GPU"
    )


def make_instance(
    problem: Problem,
    *,
    max_replicas: int | Mapping[ExpertName, int] | None = None,
    max_experts_per_worker: int | None = None,
) -> Instance:
    """Price a problem's experts on their places.

    Parameters
    ----------
    problem
        What to price.
    max_replicas
        One cap for all experts, or caps by name that override the experts' own; None: the experts' own caps,
        and equation 8 for experts without one.
    max_experts_per_worker
        K; None: max(2, ceil(workers wanted / workers)), the least that can be feasible but never below 2. Workers on
        which an expert fits are counted, and not those that were lost.

    Raises
    ------
    InfeasibleError
        If an expert fits nowhere.
    ValueError
        If a cap names an expert that the pool lacks.
    """
    num_calls = {name: len(calls) for name, calls in problem.calls_by_expert().items()}
    if isinstance(max_replicas, Mapping):
        known = sorted(expert.name for expert in problem.experts)
        for name in max_replicas:
            require(name in known, "scheduler.max_replicas: expert", f"one of {known}", name)
    places: list[tuple[Place, ...]] = []
    setup_s: list[tuple[float, ...]] = []
    per_call_s: list[tuple[float, ...]] = []
    caps: list[tuple[int, str]] = []
    for name, number in num_calls.items():
        expert = problem.expert(name)
        gangs = places_for(problem, expert)
        places.append(tuple(tuple(worker.id for worker in gang) for gang in gangs))
        prices = {gang[0].gpu: _price(problem, expert, gang) for gang in gangs}
        setup_s.append(tuple(prices[gang[0].gpu][0] for gang in gangs))
        per_call_s.append(tuple(prices[gang[0].gpu][1] for gang in gangs))
        override = max_replicas.get(name) if isinstance(max_replicas, Mapping) else max_replicas
        caps.append(_cap(problem, expert, gangs, number, override))
    return Instance(
        names=tuple(num_calls),
        num_calls=tuple(num_calls.values()),
        places=tuple(places),
        setup_s=tuple(setup_s),
        per_call_s=tuple(per_call_s),
        max_replicas=tuple(cap for cap, _ in caps),
        cap_reasons=tuple(reason for _, reason in caps),
        num_workers=problem.cluster.num_workers,
        max_experts_per_worker=max_experts_per_worker or max(2, _least_slots(places)),
    )


def _least_slots(places: Sequence[Sequence[Place]]) -> int:
    """Count the experts that the busiest worker must hold: those that fit on the same workers only share these."""
    reach = [frozenset(worker for gang in options for worker in gang) for options in places]
    wanted = [
        (sum(len(options[0]) for options, mine in zip(places, reach, strict=True) if mine <= workers), len(workers))
        for workers in {*reach, frozenset[int]().union(*reach)}
    ]
    return max((-(-num_wanted // num_workers) for num_wanted, num_workers in wanted if num_workers), default=0)


def _price(problem: Problem, expert: Expert, gang: Sequence[Worker]) -> tuple[float, float]:
    terms = problem.costs.linear_terms(expert, gang)
    return problem.costs.load_s(expert, gang, problem.held.anywhere(expert.name)) + terms.fixed_s, terms.per_call_s


def _cap(
    problem: Problem, expert: Expert, gangs: Sequence[tuple[Worker, ...]], num_calls: int, override: int | None
) -> tuple[int, str]:
    """Cap an expert's replicas, and say by what: the scheduler's option, the pool, or equation 8 of the paper."""
    if override is not None:
        return min(override, len(gangs)), "scheduler.max_replicas"
    if expert.max_replicas is not None:
        return min(expert.max_replicas, len(gangs)), "the pool's cap"
    # Equation 8: clamp(1, floor(T_m / l_m), N). On unlike GPUs the place where the session is shortest decides.
    summary = problem.summary(expert.name, num_calls)
    session_s, load_s = min(
        (
            problem.costs.session_s(expert, summary, gang),
            problem.costs.load_s(expert, gang, problem.held.anywhere(expert.name)),
        )
        for gang in {gang[0].gpu: gang for gang in gangs}.values()
    )
    worth = len(gangs) if session_s >= load_s * len(gangs) else floor(session_s / load_s)
    return max(1, worth), f"equation 8: runs {session_s:.1f} s, loads {load_s:.1f} s"

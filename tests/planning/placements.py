"""Placement problems that are drawn, and what the best placement of a tiny one takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random

from mosaic.core.cluster import Worker
from mosaic.core.workload import Expert
from mosaic.planning.costs import LinearTerms, WeightLocation
from mosaic.planning.problem import Problem
from mosaic.planning.program.instance import Counts, Instance, Pieces, make_instance
from mosaic.planning.program.solve import risk_s
from mosaic.planning.wrapped_costs import RunCosts
from tests.factories import make_expert, make_gpu, make_mixed_cluster, make_problem


@dataclass(frozen=True, kw_only=True)
class BentCosts(RunCosts):
    """Piecewise prices by expert, lower at higher degrees."""

    pieces_by_expert: dict[str, Pieces]
    load_of_all_s: float

    def load_s(self, expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        return 0.0 if location is WeightLocation.RESIDENT else self.load_of_all_s

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        speed = {1: 1.0, 2: 1.6, 4: 2.2}[len(workers)]
        return tuple(LinearTerms(fixed / speed, call / speed) for fixed, call in self.pieces_by_expert[expert.name])


def bent_problem(
    num_calls: dict[str, int],
    pieces: dict[str, Pieces],
    *,
    load_s: float = 1.0,
    num_workers: int = 2,
    degrees: Mapping[str, tuple[int, ...]] = {},
) -> Problem:
    plain = make_problem(num_calls, num_workers=num_workers)
    experts = tuple(replace(make_expert(name), tp_degrees=degrees.get(name, ())) for name in num_calls)
    return replace(
        plain, experts=experts, costs=BentCosts(costs=plain.costs, pieces_by_expert=pieces, load_of_all_s=load_s)
    )


def random_bent(rng: Random) -> Problem:
    """Draw an expert or two on up to four workers, with prices of up to two pieces and several degrees."""
    names = ["A", "B", "C"][: rng.randint(1, 2)]
    num_workers = rng.choice([1, 2, 2, 4]) if len(names) == 1 else rng.choice([1, 2])
    pieces = {
        name: (
            LinearTerms(rng.uniform(0, 5), rng.uniform(0, 1)),
            *([LinearTerms(rng.uniform(-5, 2), rng.uniform(1, 3))] if rng.random() < 0.6 else []),
        )
        for name in names
    }
    degrees = {name: rng.choice([(), (2,), (2, 4)]) for name in names}
    num_calls = {name: rng.randint(1, 5) for name in names}
    return bent_problem(num_calls, pieces, load_s=rng.uniform(0, 3), num_workers=num_workers, degrees=degrees)


def random_tiny(random: Random) -> tuple[Problem, dict[str, int], int]:
    """Draw two or three experts on two or three workers (or gangs on four), few calls, odd prices; caps and K."""
    gangs = random.random() < 0.2
    num_workers = 4 if gangs else random.choice([2, 3])
    names = "AB" if gangs else "ABC"[: random.choice([2, 3])]
    kinds = [make_gpu("fast"), make_gpu("slow")] if random.random() < 0.3 and not gangs else [make_gpu("fast")]
    cluster = make_mixed_cluster(*(random.choice(kinds) for _ in range(num_workers)))
    caps = {name: random.randint(1, num_workers) for name in names}
    problem = make_problem(
        {name: random.randint(1, 4 if len(names) * num_workers < 9 else 3) for name in names},
        cluster=cluster,
        load_s={name: random.uniform(0, 5) for name in names},
        fixed_s={name: random.choice([0.0, random.uniform(0, 3)]) for name in names},
        per_call_s={name: random.uniform(0.2, 4) for name in names},
        max_replicas=caps,
        tp_degree={name: random.choice([1, 2]) if gangs else 1 for name in names},
        slowdown_by_gpu={"slow": 2.5},
    )
    return problem, caps, random.choice([2, 3])


def drawn_instance(
    seed: int, num_experts: int, num_workers: int, *, reasoning_frac: float = 0.3, most_per_worker: int = 3
) -> Instance:
    """Draw loads near 40 s and a few experts that need many workers, as in the solver benchmarks."""
    random = Random(seed)
    names = [f"e{number}" for number in range(num_experts)]
    problem = make_problem(
        {name: random.randint(100, 3000) for name in names},
        num_workers=num_workers,
        load_s={name: random.uniform(38, 47) for name in names},
        per_call_s={
            name: random.uniform(1, 2.5) if random.random() < reasoning_frac else random.uniform(0.05, 0.3)
            for name in names
        },
    )
    return make_instance(problem, max_experts_per_worker=most_per_worker)


def brute_force_s(
    problem: Problem,
    *,
    caps: Mapping[str, int] = {},
    most_per_worker: int = 99,
    scenarios: Sequence[Instance] = (),
    quantile: float | None = None,
) -> float:
    """Try every split of every expert over the gangs of its degrees; nothing of the program is used but the risk."""
    num_workers = problem.cluster.num_workers
    rows: list[list[tuple[list[list[float]], list[int]]]] = []
    for m, (name, calls) in enumerate(problem.calls_by_expert().items()):
        shapes = [replace(problem.expert(name), tp_degree=d) for d in problem.expert(name).possible_degrees]
        gangs = [(shape, gang) for shape in shapes for gang in problem.gangs(shape)]
        loads_s = [problem.costs.load_s(shape, gang, WeightLocation.COLD) for shape, gang in gangs]
        own = [problem.costs.pieces(shape, gang) for shape, gang in gangs]
        rows.append([])
        for split in compositions(len(calls), len(gangs)):
            if sum(number > 0 for number in split) > caps.get(name, 99):
                continue
            busy_s, hosted = [[0.0] * num_workers for _ in scenarios or (0,)], [0] * num_workers
            for o, (number, (_, gang)) in enumerate(zip(split, gangs, strict=True)):
                for worker in gang if number else ():
                    hosted[worker.id] += 1
                    for s, prices in enumerate(
                        [[option.pieces for option in one.options[m]] for one in scenarios] or [own]
                    ):
                        busy_s[s][worker.id] += loads_s[o] + max(a + b * number for a, b in prices[o])
            rows[-1].append((busy_s, hosted))
    return min(
        risk_s([max(map(sum, zip(*busy, strict=True))) for busy in zip(*busy_s, strict=True)], quantile)
        for busy_s, hosted in (zip(*choice, strict=True) for choice in product(*rows))
        if max(map(sum, zip(*hosted, strict=True))) <= most_per_worker
    )


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def assert_keeps_limits(instance: Instance, counts: Counts) -> None:
    for row, number, cap in zip(counts, instance.num_calls, instance.max_replicas, strict=True):
        assert sum(row) == number
        assert min(row) >= 0
        assert sum(part > 0 for part in row) <= cap
    for worker in range(instance.num_workers):
        assert sum(row[worker] > 0 for row in counts) <= instance.max_experts_per_worker

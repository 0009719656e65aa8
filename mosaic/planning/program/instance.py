"""Describes a placement problem in numbers: each expert's possible sessions, their prices, and the limits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import floor, inf
from typing import NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.checks import require
from mosaic.core.cluster import Gpu
from mosaic.core.errors import InfeasibleError
from mosaic.core.kv_memory import describe_need
from mosaic.core.workload import Expert, ExpertName
from mosaic.planning.costs import LinearTerms, least_terms, price_s
from mosaic.planning.problem import Problem

Place: TypeAlias = tuple[int, ...]
"""Workers that one session holds together; a single worker unless the expert is tensor parallel."""

Counts: TypeAlias = tuple[tuple[int, ...], ...]
"""X of the paper, calls by expert and option; Y is 1 where X is positive."""

Pieces: TypeAlias = tuple[LinearTerms, ...]
"""Affine prices; the highest of them is the session's price, without its load."""

NO_LIMIT = 1_000_000
"""K when the number of experts per worker has no limit."""
RELATIVE_PRECISION = 1e-9
MAX_BISECTIONS = 100
"""More than the precision ever needs, unless times are too small to be halved."""


class Option(NamedTuple):
    """A session that an expert could open."""

    workers: Place
    load_s: float
    pieces: Pieces

    def session_s(self, num_calls: int) -> float:
        """Price the session, load included; 0 without calls."""
        return self.load_s + price_s(self.pieces, num_calls) if num_calls else 0.0


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The input of the program and the bounds; rows are the experts that have calls, in first-seen order."""

    names: tuple[ExpertName, ...]
    num_calls: tuple[int, ...]
    """N_m of the paper."""
    options: tuple[tuple[Option, ...], ...]
    """By expert."""
    max_replicas: tuple[int, ...]
    cap_reasons: tuple[str, ...]
    """Reason for each cap, in words."""
    num_workers: int
    max_experts_per_worker: int
    """K of the paper."""

    @property
    def num_experts(self) -> int:
        return len(self.names)

    @cached_property
    def places(self) -> tuple[tuple[Place, ...], ...]:
        """Workers of each option."""
        return tuple(tuple(option.workers for option in row) for row in self.options)

    @cached_property
    def setup_s(self) -> tuple[tuple[float, ...], ...]:
        """Cost per session: load and fixed part of the least terms, shape as ``options``."""
        return tuple(tuple(o.load_s + least_terms(o.pieces).fixed_s for o in row) for row in self.options)

    @cached_property
    def per_call_s(self) -> tuple[tuple[float, ...], ...]:
        """Cost per call by the least terms, shape as ``options``."""
        return tuple(tuple(least_terms(o.pieces).per_call_s for o in row) for row in self.options)

    @cached_property
    def serving_s(self) -> tuple[float, ...]:
        """Seconds to serve all calls of each expert at its first option, without loads."""
        return tuple(n * row[0] for n, row in zip(self.num_calls, self.per_call_s, strict=True))

    @cached_property
    def whole_s(self) -> tuple[float, ...]:
        """Seconds of each expert in one session at its first option."""
        return tuple(row[0] + serve_s for row, serve_s in zip(self.setup_s, self.serving_s, strict=True))

    def session_s(self, expert: int, option: int, num_calls: int) -> float:
        """Price one session, load included; 0 without calls."""
        return self.options[expert][option].session_s(num_calls)

    def shortest_s(self, expert: int) -> float:
        """Price an expert in one session at its fastest option."""
        return min(option.session_s(self.num_calls[expert]) for option in self.options[expert])

    def worker_s(self, counts: Counts) -> list[float]:
        """Price every worker's sessions (equation 4 of the paper), seconds by worker."""
        total_s = [0.0] * self.num_workers
        for row, options in zip(counts, self.options, strict=True):
            for number, option in zip(row, options, strict=True):
                if number:
                    session_s = option.session_s(number)
                    for worker in option.workers:
                        total_s[worker] += session_s
        return total_s

    def makespan_s(self, counts: Counts) -> float:
        """Price the busiest worker (equation 10 of the paper)."""
        return max(self.worker_s(counts), default=0.0)

    def longest_s(self) -> float:
        """Bound every sensible placement from above: all experts whole, at their slowest option, in sequence."""
        return add_in_order(
            max(option.session_s(number) for option in options)
            for number, options in zip(self.num_calls, self.options, strict=True)
        )

    def calls_within(self, expert: int, option: int, room_s: float) -> int:
        """Count the calls that one session can serve within a time, its load included."""
        num_calls, per_call_s = self.num_calls[expert], self.per_call_s[expert][option]
        rest_s = room_s - self.setup_s[expert][option]
        if rest_s < 0:
            return 0
        if per_call_s * num_calls <= rest_s:
            return num_calls
        # The slack keeps rounding from excluding a shard that fits exactly.
        return min(num_calls, floor(rest_s / per_call_s * (1 + 1e-12) + 1e-9))

    @cached_property
    def _unlike_options(self) -> tuple[tuple[int, ...], ...]:
        """List one option of each price, by expert."""
        rows = (zip(*prices, strict=True) for prices in zip(self.setup_s, self.per_call_s, strict=True))
        return tuple(tuple({price: option for option, price in enumerate(row)}.values()) for row in rows)

    def least_replicas(self, expert: int, makespan_s: float) -> float:
        """Count the replicas that an expert needs at least under a makespan; infinite if its cap is below that."""
        most = max(self.calls_within(expert, option, makespan_s) for option in self._unlike_options[expert])
        needed = -(-self.num_calls[expert] // most) if most else inf
        return needed if needed <= self.max_replicas[expert] else inf

    @cached_property
    def _least_work(self) -> tuple[tuple[int, float, float], ...]:
        """By expert, over its options: least workers of a session, and least worker-seconds to set up and per call."""
        return tuple(
            (
                min(len(option.workers) for option in options),
                min(len(option.workers) * setup_s for option, setup_s in zip(options, setups_s, strict=True)),
                min(len(option.workers) * call_s for option, call_s in zip(options, calls_s, strict=True)),
            )
            for options, setups_s, calls_s in zip(self.options, self.setup_s, self.per_call_s, strict=True)
        )

    def may_end_by(self, makespan_s: float, *, k_applies: bool) -> bool:
        """Check necessary conditions for a placement of at most this makespan; they are monotone in it."""
        work_s = slots = 0.0
        for expert, (num_workers, setup_s, per_call_s) in enumerate(self._least_work):
            replicas = self.least_replicas(expert, makespan_s)
            if replicas == inf:
                return False
            work_s += replicas * setup_s + per_call_s * self.num_calls[expert]
            slots += replicas * num_workers
        if k_applies and slots > self.num_workers * self.max_experts_per_worker:
            return False
        return work_s <= self.num_workers * makespan_s * (1 + 1e-12)

    def lower_bound_s(self, *, k_applies: bool = False) -> float:
        """Bound the makespan of every placement from below in closed form, in seconds.

        NOTE: a makespan limits the calls of one session, and so gives a least number of replicas of each expert. Each
        replica pays its load again. So the work grows as the makespan falls, while the room for it shrinks, and
        bisection finds the least makespan. It is the largest of two terms. The first is the work of all experts, loads
        of the needed replicas included, spread evenly over the workers. The second is the longest session of any expert
        when its calls are spread over as many places as its cap allows.

        Parameters
        ----------
        k_applies
            Count K as a limit too; False if the policy ignores K.
        """
        if not self.num_experts:
            return 0.0
        low_s = 0.0
        high_s = add_in_order(
            min(setup) + min(per_call) * number
            for setup, per_call, number in zip(self.setup_s, self.per_call_s, self.num_calls, strict=True)
        ) * max(num_workers for num_workers, *_ in self._least_work)
        if not self.may_end_by(high_s, k_applies=k_applies):
            return high_s
        for _ in range(MAX_BISECTIONS):
            if high_s - low_s <= RELATIVE_PRECISION * high_s:
                break
            middle_s = (low_s + high_s) / 2
            if self.may_end_by(middle_s, k_applies=k_applies):
                high_s = middle_s
            else:
                low_s = middle_s
        return low_s

    @property
    def gangs_nest(self) -> bool:
        """Whether every gang lies inside or outside every wider one: the sizes divide one another."""
        widths = sorted({len(options[0].workers) for options in self.options})
        return all(wide % narrow == 0 for narrow, wide in pairwise(widths))

    def without_limits(self) -> "Instance":
        """Remove the replica caps and K, for policies that ignore both."""
        caps = tuple(len(options) for options in self.options)
        return replace(self, max_replicas=caps, max_experts_per_worker=NO_LIMIT)


def identical_workers(instance: Instance) -> Instance | None:
    """Return an instance as one of identical workers; None if prices or places differ, or sessions span several.

    Workers on which no expert fits are left out, and no cap is above an expert's calls.
    """
    places = instance.places[0] if instance.places else ()
    if any(len(workers) != 1 for workers in places) or any(other != places for other in instance.places):
        return None
    if any(len(set(prices)) != 1 for prices in (*instance.setup_s, *instance.per_call_s)):
        return None
    options = tuple(
        tuple(option._replace(workers=(number,)) for number, option in enumerate(row)) for row in instance.options
    )
    caps = tuple(map(min, instance.max_replicas, instance.num_calls))
    return replace(instance, options=options, max_replicas=caps, num_workers=len(places))


def make_instance(
    problem: Problem,
    *,
    max_replicas: int | Mapping[ExpertName, int] | None = None,
    max_experts_per_worker: int | None = None,
) -> Instance:
    """Build the paper's problem: experts at their own degrees, one affine price each, caps and K.

    Parameters
    ----------
    problem
        The problem to price.
    max_replicas
        One cap for all experts, or caps by name that override the experts' own. None: the experts' own caps, and
        equation 8 for experts without one.
    max_experts_per_worker
        K; None: max(2, ceil(worker slots needed / workers)), the least feasible value but never below 2. Only workers
        on which an expert fits count, without lost ones.

    Raises
    ------
    InfeasibleError
        If an expert fits nowhere.
    ValueError
        If a cap names an expert that the pool lacks.
    """
    num_calls = {name: len(calls) for name, calls in problem.calls_by_expert().items()}
    given = _caps_by_name(problem, num_calls, max_replicas)
    options: list[tuple[Option, ...]] = []
    caps: list[tuple[int, str]] = []
    for name, number in num_calls.items():
        expert = problem.expert(name)
        priced = _options(problem, expert, (expert.tp_degree,))
        options.append(tuple(map(_affine, priced)))
        cap, reason = given[name], "scheduler.max_replicas"
        if cap is None:
            cap, reason = expert.max_replicas, "the pool's cap"
        if cap is None:
            cap, reason = _cap_by_equation_8(problem, priced, number)
        caps.append((min(cap, len(priced)), reason))
    return Instance(
        names=tuple(num_calls),
        num_calls=tuple(num_calls.values()),
        options=tuple(options),
        max_replicas=tuple(cap for cap, _ in caps),
        cap_reasons=tuple(reason for _, reason in caps),
        num_workers=problem.cluster.num_workers,
        max_experts_per_worker=max_experts_per_worker or max(2, _least_slots(options)),
    )


def make_free_instance(
    problem: Problem,
    *,
    max_replicas: int | Mapping[ExpertName, int] | None = None,
    max_experts_per_worker: int | None = None,
) -> Instance:
    """Build the problem without the paper's limits: any degree that an expert may have, and all price pieces.

    Limits that are not given do not apply: loads and the fixed part of prices limit the copies. Parameters and errors
    are those of ``make_instance``.
    are those of ``make_instance``.
    """
    num_calls = {name: len(calls) for name, calls in problem.calls_by_expert().items()}
    given = _caps_by_name(problem, num_calls, max_replicas)
    experts = map(problem.expert, num_calls)
    options = tuple(_options(problem, expert, expert.possible_degrees) for expert in experts)
    return Instance(
        names=tuple(num_calls),
        num_calls=tuple(num_calls.values()),
        options=options,
        max_replicas=tuple(given[name] or len(row) for name, row in zip(num_calls, options, strict=True)),
        cap_reasons=("scheduler.max_replicas",) * len(num_calls),
        num_workers=problem.cluster.num_workers,
        max_experts_per_worker=max_experts_per_worker or NO_LIMIT,
    )


def _options(problem: Problem, expert: Expert, degrees: Sequence[int]) -> tuple[Option, ...]:
    """List the sessions that an expert could open at some degrees.

    Workers of one kind serve at one price; their loads differ if some of them already have the expert loaded.
    """
    options: list[Option] = []
    for degree in degrees:
        shaped = replace(expert, tp_degree=degree)
        pieces: dict[Gpu, Pieces] = {}
        for gang in problem.gangs(shaped):
            kind = gang[0].gpu
            if kind not in pieces:
                pieces[kind] = tuple(problem.costs.pieces(shaped, gang))
            load_s = problem.costs.load_s(shaped, gang, problem.held.anywhere(expert.name))
            options.append(Option(tuple(worker.id for worker in gang), load_s, pieces[kind]))
    if not options:
        raise InfeasibleError(_fits_nowhere(problem, expert))
    return tuple(options)


def _fits_nowhere(problem: Problem, expert: Expert) -> str:
    """Describe the sizes, and what to change."""
    workers, degree = problem.cluster.workers, expert.tp_degree
    if degree > len(workers):
        return (
            f"expert {expert.name!r} spans {degree} workers and cluster {problem.cluster.name!r} has {len(workers)}: "
            "lower its tp_degree or add workers"
        )
    usable = ", ".join(
        f"{gpu.name} {gpu.usable_bytes / 2**30:.1f} GiB" for gpu in dict.fromkeys(worker.gpu for worker in workers)
    )
    return (
        f"expert {expert.name!r} fits on no aligned group of {degree} equal worker(s): each needs "
        f"{describe_need(expert)}, beside activations; usable: {usable}. Raise its tp_degree, lower its context_tokens "
        "or use a larger GPU"
    )


def _caps_by_name(
    problem: Problem, names: Iterable[ExpertName], max_replicas: int | Mapping[ExpertName, int] | None
) -> dict[ExpertName, int | None]:
    """Return the cap that a scheduler's option sets for each expert; None: no cap."""
    if not isinstance(max_replicas, Mapping):
        return dict.fromkeys(names, max_replicas)
    known = sorted(expert.name for expert in problem.experts)
    for name in max_replicas:
        require(name in known, "scheduler.max_replicas: expert", f"one of {known}", name)
    return {name: max_replicas.get(name) for name in names}


def _least_slots(options: Sequence[Sequence[Option]]) -> int:
    """Count the experts that the busiest worker must hold: experts that fit only on the same workers share these."""
    reach = [frozenset(worker for option in row for worker in option.workers) for row in options]
    wanted = [
        (sum(len(row[0].workers) for row, mine in zip(options, reach, strict=True) if mine <= workers), len(workers))
        for workers in {*reach, frozenset[int]().union(*reach)}
    ]
    return max((-(-num_wanted // num_workers) for num_wanted, num_workers in wanted if num_workers), default=0)


def _affine(option: Option) -> Option:
    """Price a session by its least terms, with the fixed part added to the load."""
    terms = least_terms(option.pieces)
    return Option(option.workers, option.load_s + terms.fixed_s, (LinearTerms(0.0, terms.per_call_s),))


def _cap_by_equation_8(problem: Problem, options: Sequence[Option], num_calls: int) -> tuple[int, str]:
    """Compute clamp(1, floor(T_m / l_m), N) for the kind of worker with the shortest session, and for a cold copy."""
    loads_s: dict[tuple[Gpu, Pieces], float] = {}
    for workers, load_s, pieces in options:
        key = problem.cluster.workers[workers[0]].gpu, pieces
        loads_s[key] = max(loads_s.get(key, 0.0), load_s)
    run_s, load_s = min((price_s(pieces, num_calls), load_s) for (_, pieces), load_s in loads_s.items())
    worth = len(options) if run_s >= load_s * len(options) else floor(run_s / load_s)
    return max(1, worth), f"equation 8: runs {run_s:.1f} s, loads {load_s:.1f} s"

"""The placement program as schedulers: with the paper's limits, or with a free choice of what the paper fixes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import Annotated

from mosaic.core.checks import AtLeast0, AtLeast1, Limit, NotNegative, Positive, checked, require, require_count
from mosaic.core.cluster import Worker
from mosaic.core.errors import ProfileError
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import Call, Expert, ExpertName
from mosaic.planning.costs import LinearTerms
from mosaic.planning.problem import Problem, Request
from mosaic.planning.profiles import SweepPoint, convex_pieces
from mosaic.planning.program.instance import Counts, Instance, Option, Pieces, make_free_instance, make_instance
from mosaic.planning.program.packing import best_packing
from mosaic.planning.program.solve import solve_instance, solve_scenarios
from mosaic.planning.scheduler import make_plan, replica_sessions

MAX_LEVELS = 7
"""Largest number of different factors on an expert's mean length: sessions are priced once for each."""
SHARES = (1, 2, 4, 8)
"""Sessions of all calls of an expert, a half, a quarter and an eighth are priced; other sizes are interpolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("scheduler.")
class Ilp:
    """Equations 4 to 10 of the paper, solved by HiGHS, or by a search and bounds if there are many equal workers.

    Prices are affine: the load and the fixed part are paid per replica, the rest per call.
    A time limit with an incumbent gives a plan with a gap; it never falls back to another policy silently.

    References
    ----------
    MOSAIC, arXiv 2606.03014.
    """

    max_experts_per_worker: AtLeast1 | None = None
    """K; None: max(2, ceil(M / N)), where a tensor-parallel expert counts once for each worker it spans."""
    max_replicas: int | Mapping[ExpertName, int] | None = None
    """One cap for all or caps by expert; None: the experts' own, and equation 8 for experts without one."""
    time_limit_s: Positive = 10.0
    """Wall seconds to solve, packing and building the program included; pricing takes extra time."""
    name: str = "ilp"

    def __post_init__(self) -> None:
        check_caps(self.max_replicas)

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(
            problem, max_replicas=self.max_replicas, max_experts_per_worker=self.max_experts_per_worker
        )
        solved = solve_instance(instance, time_limit_s=self.time_limit_s)
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=order_sessions(problem, instance, solved.counts),
            lower_bound_s=solved.lower_bound_s,
            notes=(*solved.notes, *_notes_on_limits(instance, solved.counts)),
            solve=solved.report,
        )


def check_caps(max_replicas: int | Mapping[ExpertName, int] | None) -> None:
    """Check a cap for all experts, or caps by expert."""
    if isinstance(max_replicas, Mapping):
        for expert, cap in max_replicas.items():
            require_count(cap, f"scheduler.max_replicas: cap of {expert}", at_least=1)
    elif max_replicas is not None:
        require_count(max_replicas, "scheduler.max_replicas", at_least=1)


def order_sessions(problem: Problem, instance: Instance, counts: Counts) -> list[Session]:
    """Order the sessions: widest gangs first, so that nested gangs never wait, then the shortest first.

    The order on a worker does not change its makespan, but with light experts first more questions complete early.
    """
    calls_by_expert = problem.calls_by_expert()
    keyed: list[tuple[tuple[float, ...], Session]] = []
    for m, row in enumerate(counts):
        used = [o for o, number in enumerate(row) if number]
        sessions = replica_sessions(
            calls_by_expert[instance.names[m]],
            [instance.places[m][o] for o in used],
            [row[o] for o in used],
            first_id=0,
        )
        for o, session in zip(used, sessions, strict=True):
            keyed.append(((-len(session.workers), instance.session_s(m, o, row[o]), m, o), session))
    keyed.sort(key=lambda pair: pair[0])
    return [replace(session, id=number) for number, (_, session) in enumerate(keyed)]


def _notes_on_limits(instance: Instance, counts: Counts) -> list[str]:
    notes = [f"at most K={instance.max_experts_per_worker} experts per worker; shortest session first on each worker"]
    for m, row in enumerate(counts):
        replicas = sum(number > 0 for number in row)
        notes.append(
            f"{instance.names[m]}: {replicas} of at most {instance.max_replicas[m]} replica(s) "
            f"({instance.cap_reasons[m]}), {instance.num_calls[m]} calls"
        )
    if not instance.gangs_nest:
        notes.append(
            "gang sizes do not divide one another: gangs may wait for each other beyond the program's makespan"
        )
    return notes


class PriceSource(StrEnum):
    """Where the prices of sessions come from."""

    COSTS = "costs"
    """The cost model; in a scenario the price without the load is multiplied by the factor on the mean length."""
    ITERATIONS = "iterations"
    """Stepping a session's iterations over sampled lengths, which include the longest of all the expert's calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("scheduler.")
class Flexible:
    """Equations 4 to 10 of the paper with K, replicas and tensor-parallel degrees chosen by the program.

    Loads and the fixed part of sessions limit copies, instead of the paper's caps: the pool's caps and equation 8 do
    not apply. If an expert lists ``tp_degrees``, each of its sessions takes one of them. Prices may be piecewise linear
    (``costs=piecewise``). With scenarios the plan allows for wrong predictions: it minimises the mean makespan over the
    scenarios, or the mean of the worst ones.

    References
    ----------
    MOSAIC, arXiv 2606.03014.
    """

    max_experts_per_worker: AtLeast1 | None = None
    """K; None: the program chooses."""
    max_replicas: int | Mapping[ExpertName, int] | None = None
    """One cap for all or caps by expert; None: the program chooses."""
    gap_frac: NotNegative = 0.002
    """Gap to the optimum at which the solver may stop."""
    time_limit_s: Positive = 10.0
    """Seconds for the solver; pricing and building the model take extra time."""
    num_scenarios: AtLeast1 = 1
    """1: the prediction alone."""
    length_error: Annotated[float, Limit(at_least=1)] = 1.0
    """e: each expert's true mean length may be off by a factor between 1/e and e, log-uniform."""
    quantile: Annotated[float, Limit(above=0, below=1)] | None = None
    """The mean makespan of the worst 1 - quantile of the scenarios counts; None: the mean of all."""
    prices: PriceSource = PriceSource.COSTS
    seed: AtLeast0 = 0
    name: str = "flexible"

    def __post_init__(self) -> None:
        rule = "above 1 where length_error or quantile is given: one scenario is the prediction itself"
        given = self.length_error > 1 or self.quantile is not None
        require(self.num_scenarios > 1 or not given, "scheduler.num_scenarios", rule, self.num_scenarios)
        check_caps(self.max_replicas)

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_free_instance(
            problem, max_replicas=self.max_replicas, max_experts_per_worker=self.max_experts_per_worker
        )
        solved = solve_scenarios(
            self.scenarios(problem, instance),
            start=_packed(problem, instance),
            quantile=self.quantile,
            time_limit_s=self.time_limit_s,
            gap_frac=self.gap_frac,
        )
        bound_s = instance.lower_bound_s()
        if self.num_scenarios == 1 and self.prices is PriceSource.COSTS:
            bound_s = max(bound_s, solved.lower_bound_s)
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=order_sessions(problem, instance, solved.counts),
            lower_bound_s=min(bound_s, instance.makespan_s(solved.counts)),
            notes=(*solved.notes, *self._notes(instance, solved.counts)),
            solve=solved.report,
        )

    def _notes(self, instance: Instance, counts: Counts) -> list[str]:
        notes = ["copies, experts per worker and degrees as they pay for themselves; shortest session first"]
        if self.num_scenarios > 1:
            what = "mean" if self.quantile is None else f"mean of the worst {1 - self.quantile:.0%}"
            notes.append(
                f"{what} of {self.num_scenarios} scenarios of lengths, means off by up to x{self.length_error:g}"
            )
        for name, options, row in zip(instance.names, instance.options, counts, strict=True):
            degrees = [len(option.workers) for option, number in zip(options, row, strict=True) if number]
            notes.append(f"{name}: {len(degrees)} session(s) over {sorted(degrees)} worker(s)")
        return notes

    def scenarios(self, problem: Problem, instance: Instance) -> tuple[Instance, ...]:
        """Return the instance of every scenario, with its prices of the options.

        A scenario gives each expert a factor on its mean length. With ``prices=iterations`` each factor has its own
        lengths, drawn from the calibration lengths.

        Raises
        ------
        ValueError, ProfileError
            If ``prices=iterations`` has no model of iterations, or an expert has no calibration lengths.
        """
        known: dict[tuple[object, ...], Pieces] = {}

        def price(m: int, option: Option, level: int) -> Pieces:
            if self.prices is PriceSource.COSTS:
                factor = self._factor(level)
                return tuple(LinearTerms(factor * fixed_s, factor * call_s) for fixed_s, call_s in option.pieces)
            workers = problem.cluster.select(option.workers)
            key = (m, workers[0].gpu.name, len(workers), level)
            if key not in known:
                known[key] = self._iterations(problem, problem.expert(instance.names[m]), workers, level)
            return known[key]

        levels = [self._levels(name) for name in instance.names]
        return tuple(
            replace(
                instance,
                options=tuple(
                    tuple(option._replace(pieces=price(m, option, levels[m][scenario])) for option in options)
                    for m, options in enumerate(instance.options)
                ),
            )
            for scenario in range(self.num_scenarios)
        )

    @property
    def num_levels(self) -> int:
        """Count the different factors."""
        return 1 if self.length_error == 1 and self.prices is PriceSource.COSTS else min(MAX_LEVELS, self.num_scenarios)

    def _levels(self, name: str) -> list[int]:
        """Draw an expert's level for each scenario: all levels equally often, in random order."""
        levels = [scenario % self.num_levels for scenario in range(self.num_scenarios)]
        Random(f"{self.seed}|{name}").shuffle(levels)
        return levels

    def _factor(self, level: int) -> float:
        return float(self.length_error ** (2 * (level + 0.5) / self.num_levels - 1))

    def _iterations(self, problem: Problem, expert: Expert, workers: Sequence[Worker], level: int) -> Pieces:
        calls, sample = problem.calls_by_expert()[expert.name], problem.length_samples.get(expert.name, ())
        requests = self._requests(expert, calls, sample, level)
        model = problem.session_model
        require(model is not None, "scheduler.prices=iterations: session model", "one that steps iterations", model)
        assert model is not None
        longest = max(range(len(requests)), key=lambda i: requests[i].output_tokens)
        points = []
        for size in dict.fromkeys(max(1, len(requests) // share) for share in SHARES):
            shard = [requests[i * len(requests) // size] for i in range(size - 1)] + [requests[longest]]
            seconds = max(model.serve_s(expert, shard, workers), 1e-9)
            points.append(SweepPoint(num_calls=size, session_s=seconds, output_tokens=0))
        return tuple(LinearTerms(*piece) for piece in convex_pieces(points))

    def _requests(self, expert: Expert, calls: Sequence[Call], sample: Sequence[int], level: int) -> list[Request]:
        if not sample:
            name = expert.name
            raise ProfileError(f"scheduler.prices=iterations: the profile must keep lengths of {name!r}, got none")
        rng, factor = Random(f"{self.seed}|{expert.name}|{level}"), self._factor(level)
        return [
            Request(
                call.prompt_tokens,
                max(1, min(round(factor * rng.choice(sample)), expert.output_limit(call.prompt_tokens))),
            )
            for call in calls
        ]


def _packed(problem: Problem, instance: Instance) -> Counts | None:
    """Pack the experts at their own degrees; None: one fits only at other degrees, or no packing obeys the limits."""
    if any(not problem.gangs(problem.expert(name)) for name in instance.names):
        return None
    own = make_instance(problem).without_limits()
    caps = tuple(map(min, own.max_replicas, instance.max_replicas))
    own = replace(own, max_replicas=caps, max_experts_per_worker=instance.max_experts_per_worker)
    packed = best_packing(own, own.lower_bound_s(k_applies=True))
    if packed is None:
        return None
    calls_on = [dict(zip(places, row, strict=True)) for places, row in zip(own.places, packed, strict=True)]
    return tuple(
        tuple(calls.get(workers, 0) for workers in places)
        for calls, places in zip(calls_on, instance.places, strict=True)
    )

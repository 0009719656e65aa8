"""The placement program with what the paper holds fixed left to choose, and with lengths that are not certain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mosaic.core.checks import require_count, require_number
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan, Session, SolveReport, SolveStatus
from mosaic.core.workload import ExpertName
from mosaic.planning.ilp.choices import Choices, Pieces, make_choices
from mosaic.planning.ilp.packing import best_packing
from mosaic.planning.ilp.scenarios import Prices, Uncertainty
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.base import make_plan
from mosaic.planning.schedulers.instance import make_instance
from mosaic.planning.schedulers.lower_bounds import without_caps
from mosaic.planning.schedulers.shards import replica_sessions

PROVED_FRAC = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Flexible:
    """Equations 4 to 10 of the paper with K, replicas and tensor-parallel degrees chosen by the program.

    Loads and the fixed part of sessions limit copies, where the paper has caps: the pool's caps and equation 8 do not
    apply. Where an expert lists ``tp_degrees``, each of its sessions takes one of them. Prices may be piecewise linear
    (``costs=piecewise``). With scenarios the plan is made for predictions that are wrong: its mean makespan over them
    is least, or the mean of the worst of them.

    References
    ----------
    MOSAIC, arXiv 2606.03014.
    """

    max_experts_per_worker: int | None = None
    """K; None: the program chooses."""
    max_replicas: int | Mapping[ExpertName, int] | None = None
    """One cap for all or caps by expert; None: the program chooses."""
    num_scenarios: int = 1
    length_error: float = 1.0
    quantile: float | None = None
    prices: str = Prices.COSTS.value
    seed: int = 0
    """Of the scenarios; for these five see ``Uncertainty``."""
    gap_frac: float = 0.002
    """The solver may stop so near the optimum."""
    time_limit_s: float = 10.0
    """Seconds for the solver; pricing and building the model come on top."""
    name: str = "flexible"

    def __post_init__(self) -> None:
        for key in ("max_experts_per_worker", "max_replicas"):
            value = getattr(self, key)
            if isinstance(value, Mapping):
                for expert, cap in value.items():
                    require_count(cap, f"scheduler.{key}: cap of {expert}", at_least=1)
            elif value is not None:
                require_count(value, f"scheduler.{key}", at_least=1)
        require_number(self.gap_frac, "scheduler.gap_frac", at_least=0)
        require_number(self.time_limit_s, "scheduler.time_limit_s", above=0)
        _ = self.uncertainty

    @property
    def uncertainty(self) -> Uncertainty:
        """What the plan should hold up against."""
        return Uncertainty(
            num_scenarios=self.num_scenarios,
            length_error=self.length_error,
            quantile=self.quantile,
            prices=Prices(self.prices) if self.prices in list(Prices) else self.prices,  # type: ignore[arg-type]
            seed=self.seed,
        )

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        choices = make_choices(
            problem,
            max_replicas=self.max_replicas,
            max_experts_per_worker=self.max_experts_per_worker,
        )
        if not choices.names:
            nothing = SolveReport(status=SolveStatus.OPTIMAL, objective_s=0.0, bound_s=0.0, gap_frac=0.0)
            return make_plan(problem, scheduler=self.name, sessions=(), lower_bound_s=0.0, solve=nothing)
        counts, report = self._solve(problem, choices)
        bound_s = choices.bound_s
        if self.num_scenarios == 1 and self.prices == Prices.COSTS and report.bound_s is not None:
            bound_s = max(bound_s, report.bound_s)
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=_sessions(problem, choices, counts),
            lower_bound_s=min(bound_s, choices.makespan_s(counts)),
            notes=self._notes(choices, counts),
            solve=report,
        )

    def _solve(self, problem: Problem, choices: Choices) -> tuple[Mapping[int, int], SolveReport]:
        # Pyomo takes a quarter of a second to import: the other schedulers do not pay for it.
        from mosaic.planning.ilp.flexible_model import build_model, risk_s, set_start, solve_model

        scenarios = self.uncertainty.scenarios(problem, choices)
        start = self._start(problem, choices)
        if start is None:
            longest_s = [_longest_s(choices, prices) for prices in scenarios]
        else:
            # With scenarios one may be longer than in the start where others are shorter by more.
            slack = 1.0 if len(scenarios) == 1 else 2.0
            longest_s = [slack * choices.makespan_s(start, prices) for prices in scenarios]
        model = build_model(choices, scenarios, self.uncertainty, longest_s)
        if start is not None:
            set_start(model, choices, scenarios, start, max(longest_s))
        solution = solve_model(
            model, choices, warm=start is not None, time_limit_s=self.time_limit_s, gap_frac=self.gap_frac
        )

        def objective_s(counts: Mapping[int, int]) -> float:
            return risk_s([choices.makespan_s(counts, prices) for prices in scenarios], self.quantile)

        found = [counts for counts in (solution.counts, start) if counts is not None]
        if not found:
            raise InfeasibleError(
                f"no placement of {len(choices.names)} experts on {choices.num_workers} workers with "
                f"K={choices.max_experts_per_worker} ({solution.termination}): raise max_experts_per_worker, "
                f"max_replicas or time_limit_s={self.time_limit_s:g}"
            )
        counts = min(found, key=objective_s)
        value_s = objective_s(counts)
        bound_s = min(solution.bound_s, value_s)
        proved = solution.finished and value_s - bound_s <= PROVED_FRAC * max(1.0, value_s)
        return counts, SolveReport(
            status=SolveStatus.OPTIMAL if proved else SolveStatus.TIME_LIMIT,
            objective_s=value_s,
            bound_s=bound_s,
            gap_frac=(value_s - bound_s) / value_s if value_s else 0.0,
            num_vars=solution.num_vars,
            num_constraints=solution.num_constraints,
            wall_s=solution.wall_s,
        )

    def _start(self, problem: Problem, choices: Choices) -> dict[int, int] | None:
        """Pack the experts at their own degrees; None: nothing is known, or it would break a limit."""
        if any(not problem.gangs(problem.expert(name)) for name in choices.names):
            return None
        instance = without_caps(make_instance(problem))
        packed = best_packing(instance)
        if packed is None:
            return None
        options = {(option.expert, option.workers): o for o, option in enumerate(choices.options)}
        start = {
            options[m, place]: number
            for m, row in enumerate(packed)
            for place, number in zip(instance.places[m], row, strict=True)
            if number
        }
        return start if _within_limits(choices, start) else None

    def _notes(self, choices: Choices, counts: Mapping[int, int]) -> list[str]:
        notes = ["copies, experts per worker and degrees as they pay for themselves; shortest session first"]
        if self.num_scenarios > 1:
            what = "mean" if self.quantile is None else f"mean of the worst {1 - self.quantile:.0%}"
            notes.append(
                f"{what} of {self.num_scenarios} scenarios of lengths, means off by up to x{self.length_error:g}"
            )
        for m, name in enumerate(choices.names):
            degrees = [len(choices.options[o].workers) for o in choices.of_expert[m] if o in counts]
            notes.append(f"{name}: {len(degrees)} session(s) over {sorted(degrees)} worker(s)")
        return notes


def _within_limits(choices: Choices, counts: Mapping[int, int]) -> bool:
    per_worker = choices.max_experts_per_worker
    for here in choices.on_worker:
        if per_worker is not None and sum(o in counts for o in here) > per_worker:
            return False
    caps = zip(choices.max_replicas, choices.of_expert, strict=True)
    return all(cap is None or sum(o in counts for o in mine) <= cap for cap, mine in caps)


def _longest_s(choices: Choices, prices: Sequence[Pieces]) -> float:
    """Seconds that no sensible placement exceeds: every expert whole, at its dearest place, one after the other."""
    return sum(
        max(choices.options[o].session_s(choices.num_calls[m], prices[o]) for o in mine)
        for m, mine in enumerate(choices.of_expert)
    )


def _sessions(problem: Problem, choices: Choices, counts: Mapping[int, int]) -> list[Session]:
    """Order the sessions: widest gangs first, so that nested gangs never wait, then the shortest first."""
    calls_by_expert = problem.calls_by_expert()
    keyed: list[tuple[tuple[float, ...], Session]] = []
    for m, name in enumerate(choices.names):
        used = [o for o in choices.of_expert[m] if o in counts]
        places = [choices.options[o].workers for o in used]
        sessions = replica_sessions(calls_by_expert[name], places, [counts[o] for o in used], first_id=0)
        for o, session in zip(used, sessions, strict=True):
            keyed.append(((-len(session.workers), choices.options[o].session_s(counts[o]), m, o), session))
    keyed.sort(key=lambda pair: pair[0])
    return [replace(session, id=number) for number, (_, session) in enumerate(keyed)]

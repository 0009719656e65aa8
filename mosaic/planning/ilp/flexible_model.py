"""The flexible program in Pyomo, and its solution by HiGHS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyomo.core as pyo
from pyomo.contrib.appsi.base import TerminationCondition
from pyomo.contrib.appsi.solvers.highs import Highs

from mosaic.planning.costs import price_s
from mosaic.planning.ilp.choices import Choices, Pieces
from mosaic.planning.ilp.scenarios import Uncertainty

SLACK_FRAC = 1e-7
"""Room kept above the start's makespan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexibleSolution:
    """What the solver returned."""

    counts: Mapping[int, int] | None
    """Calls by option, of those that are used; None without an incumbent."""
    finished: bool
    termination: str
    bound_s: float
    """On the objective."""
    num_vars: int
    num_constraints: int
    wall_s: float


def build_model(
    choices: Choices, scenarios: Sequence[Sequence[Pieces]], uncertainty: Uncertainty, longest_s: Sequence[float]
) -> pyo.ConcreteModel:
    """State equations 4 to 10 of the paper for options of any degree and KV cache, piecewise prices and scenarios.

    NOTE: a session costs the highest of its affine prices, so its seconds are a variable above all of them. The
    objective is the mean makespan over the scenarios, or the mean of the worst of them:
    t + E[max(0, makespan - t)] / (1 - quantile), least over t.

    Parameters
    ----------
    choices, scenarios, uncertainty
        What may be placed, the options' prices by scenario, and which scenarios count.
    longest_s
        By scenario, a makespan that the optimum need not exceed: every variable is bounded.

    References
    ----------
    Rockafellar and Uryasev, Optimization of conditional value-at-risk, Journal of Risk 2 (2000).
    """
    model = pyo.ConcreteModel("flexible placement")
    options = choices.options
    model.EXPERTS = pyo.RangeSet(0, len(choices.names) - 1)
    model.OPTIONS = pyo.RangeSet(0, len(options) - 1)
    model.SCENARIOS = pyo.RangeSet(0, len(scenarios) - 1)
    model.placed = pyo.Var(model.OPTIONS, domain=pyo.Binary)
    model.num_calls = pyo.Var(
        model.OPTIONS,
        domain=pyo.NonNegativeIntegers,
        bounds=lambda _, o: (0, choices.num_calls[options[o].expert]),
    )
    model.makespan_s = pyo.Var(model.SCENARIOS, bounds=lambda _, s: (0, longest_s[s] * (1 + SLACK_FRAC)))
    _add_expert_rules(model, choices)
    _add_worker_rules(model, choices, scenarios)
    _add_objective(model, uncertainty, max(longest_s))
    return model


def _add_expert_rules(model: pyo.ConcreteModel, choices: Choices) -> None:
    model.each_call_served_once = pyo.Constraint(
        model.EXPERTS,
        doc="equation 5",
        rule=lambda model, m: pyo.quicksum(model.num_calls[o] for o in choices.of_expert[m]) == choices.num_calls[m],
    )
    model.calls_only_where_placed = pyo.Constraint(
        model.OPTIONS,
        doc="equation 6",
        rule=lambda model, o: model.num_calls[o] - choices.num_calls[choices.options[o].expert] * model.placed[o] <= 0,
    )

    def replica_limits(model: pyo.ConcreteModel, m: int) -> object:
        replicas = pyo.quicksum(model.placed[o] for o in choices.of_expert[m])
        return pyo.inequality(1, replicas, choices.max_replicas[m] or len(choices.of_expert[m]))

    model.replicas_within_cap = pyo.Constraint(model.EXPERTS, doc="equation 7", rule=replica_limits)


def _add_worker_rules(model: pyo.ConcreteModel, choices: Choices, scenarios: Sequence[Sequence[Pieces]]) -> None:
    options = choices.options
    # A worker where nothing fits has no rule: Pyomo refuses constant ones.
    model.WORKERS = pyo.Set(initialize=[n for n, here in enumerate(choices.on_worker) if here])
    if choices.max_experts_per_worker is not None:
        model.experts_per_worker_within_k = pyo.Constraint(
            model.WORKERS,
            doc="equation 9",
            rule=lambda model, n: (
                pyo.quicksum(model.placed[o] for o in choices.on_worker[n]) <= choices.max_experts_per_worker
            ),
        )
    bent = [(s, o) for s, prices in enumerate(scenarios) for o, pieces in enumerate(prices) if len(pieces) > 1]
    model.BENT = pyo.Set(dimen=2, initialize=bent)
    model.PIECES = pyo.Set(dimen=3, initialize=[(s, o, k) for s, o in bent for k in range(len(scenarios[s][o]))])

    def dearest_s(_: object, s: int, o: int) -> tuple[float, float]:
        return 0.0, price_s(scenarios[s][o], choices.num_calls[options[o].expert])

    model.serve_s = pyo.Var(model.BENT, bounds=dearest_s)

    def line_s(model: pyo.ConcreteModel, s: int, o: int, k: int) -> object:
        piece = scenarios[s][o][k]
        return piece.fixed_s * model.placed[o] + piece.per_call_s * model.num_calls[o]

    model.price_covers_piece = pyo.Constraint(
        model.PIECES, rule=lambda model, s, o, k: line_s(model, s, o, k) - model.serve_s[s, o] <= 0
    )

    def busy_s(model: pyo.ConcreteModel, n: int, s: int) -> object:
        return pyo.quicksum(
            options[o].load_s * model.placed[o]
            + (model.serve_s[s, o] if len(scenarios[s][o]) > 1 else line_s(model, s, o, 0))
            for o in choices.on_worker[n]
        )

    model.makespan_covers_worker = pyo.Constraint(
        model.WORKERS,
        model.SCENARIOS,
        doc="equations 4 and 10, by scenario",
        rule=lambda model, n, s: busy_s(model, n, s) - model.makespan_s[s] <= 0,
    )


def _add_objective(model: pyo.ConcreteModel, uncertainty: Uncertainty, longest_s: float) -> None:
    num_scenarios = len(model.SCENARIOS)
    if uncertainty.quantile is None:
        mean_s = pyo.quicksum(model.makespan_s[s] for s in model.SCENARIOS) / num_scenarios
        model.least_makespan = pyo.Objective(expr=mean_s, sense=pyo.minimize)
        return
    model.threshold_s = pyo.Var(bounds=(0, longest_s))
    model.above_s = pyo.Var(model.SCENARIOS, bounds=(0, longest_s))
    model.excess_covers_scenario = pyo.Constraint(
        model.SCENARIOS, rule=lambda model, s: model.makespan_s[s] - model.threshold_s - model.above_s[s] <= 0
    )
    tail = 1 / ((1 - uncertainty.quantile) * num_scenarios)
    excess_s = pyo.quicksum(model.above_s[s] for s in model.SCENARIOS)
    model.least_makespan = pyo.Objective(expr=model.threshold_s + tail * excess_s, sense=pyo.minimize)


def risk_s(makespans_s: Sequence[float], quantile: float | None) -> float:
    """Compute the objective: the mean of the makespans, or of the worst 1 - quantile of them."""
    if quantile is None:
        return sum(makespans_s) / len(makespans_s)
    left = (1 - quantile) * len(makespans_s)
    total_s = 0.0
    for seconds in sorted(makespans_s, reverse=True):
        weight = min(1.0, left)
        total_s += weight * seconds
        left -= weight
        if left <= 0:
            break
    return total_s / ((1 - quantile) * len(makespans_s))


def set_start(
    model: pyo.ConcreteModel,
    choices: Choices,
    scenarios: Sequence[Sequence[Pieces]],
    start: Mapping[int, int],
    longest_s: float,
) -> None:
    """Give the solver a placement to begin with."""
    for o in model.OPTIONS:
        number = start.get(o, 0)
        model.placed[o].set_value(int(number > 0))
        model.num_calls[o].set_value(number)
    for s, o in model.BENT:
        model.serve_s[s, o].set_value(price_s(scenarios[s][o], start.get(o, 0)))
    for s, prices in enumerate(scenarios):
        model.makespan_s[s].set_value(choices.makespan_s(start, prices))
    if model.find_component("threshold_s") is not None:
        model.threshold_s.set_value(longest_s)
        for s in model.SCENARIOS:
            model.above_s[s].set_value(0.0)


def solve_model(
    model: pyo.ConcreteModel, choices: Choices, *, warm: bool, time_limit_s: float, gap_frac: float
) -> FlexibleSolution:
    """Solve with HiGHS on one thread, until the gap is small enough or time is up."""
    solver = Highs()
    solver.config.load_solution = False
    solver.config.time_limit = time_limit_s
    solver.config.mip_gap = gap_frac
    solver.config.warmstart = warm
    solver.highs_options = {
        "output_flag": False,
        "threads": 1,
        "parallel": "off",
        "random_seed": 0,
        "mip_abs_gap": 1e-6,
        "mip_feasibility_tolerance": 1e-7,
    }
    results = solver.solve(model)
    condition = results.termination_condition
    bound_s = results.best_objective_bound
    return FlexibleSolution(
        counts=_read_counts(results, model, choices),
        finished=condition in (TerminationCondition.optimal, TerminationCondition.infeasible),
        termination=condition.name,
        bound_s=max(0.0, bound_s) if bound_s is not None and bound_s < float("inf") else 0.0,
        num_vars=model.nvariables(),
        num_constraints=model.nconstraints(),
        wall_s=results.wallclock_time,
    )


def _read_counts(results: object, model: pyo.ConcreteModel, choices: Choices) -> dict[int, int] | None:
    if results.best_feasible_objective is None:  # type: ignore[attr-defined]
        return None
    values = results.solution_loader.get_primals(list(model.num_calls.values()))  # type: ignore[attr-defined]
    counts = {o: round(values[model.num_calls[o]]) for o in model.OPTIONS}
    served = all(sum(counts[o] for o in mine) == choices.num_calls[m] for m, mine in enumerate(choices.of_expert))
    return {o: number for o, number in counts.items() if number} if served else None

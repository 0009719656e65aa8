"""The paper's integer program in Pyomo, and its solution by HiGHS.

References
----------
MOSAIC, arXiv 2606.03014, equations 4 to 10.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import pyomo.core as pyo  # pyomo.environ would load twice as much: what reads data, and solvers by name
from pyomo.contrib.appsi.base import Results, TerminationCondition
from pyomo.contrib.appsi.solvers.highs import Highs

from mosaic.planning.ilp.symmetry import Symmetry
from mosaic.planning.schedulers.instance import Counts, Instance
from mosaic.planning.schedulers.lower_bounds import least_replicas

RELATIVE_GAP = 1e-7
ABSOLUTE_GAP_S = 1e-6
SLACK_FRAC = 1e-7
"""Room kept above the incumbent's makespan: rounding must never cut the incumbent itself off."""
ANSWERS = (TerminationCondition.optimal, TerminationCondition.infeasible, TerminationCondition.maxTimeLimit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What the solver returned, as data."""

    counts: Counts | None
    """X of the paper; None without an incumbent."""
    finished: bool
    """True when the incumbent is proved optimal or, without one, when none can exist; False at a time limit."""
    termination: str
    """How it ended, as the solver names it."""
    bound_s: float | None
    num_vars: int
    num_constraints: int
    wall_s: float
    """Seconds inside the solver, building the model left out."""


def build_model(
    instance: Instance, *, shortest_s: float, longest_s: float, beat_longest: bool, symmetry: Symmetry | None
) -> pyo.ConcreteModel:
    """State equations 4 to 10 of the paper.

    Every variable is bounded: HiGHS once called a feasible model with free variables infeasible.

    Parameters
    ----------
    instance
        Experts, places, prices and limits.
    shortest_s, longest_s
        Makespans between which the optimum lies, seconds.
    beat_longest
        True when a placement of ``longest_s`` is known: no session may then outlast it, which makes the big-M of
        equation 6 tight and bounds the replicas from below.
    symmetry
        Blocks of equal workers to tell apart; None: none.
    """
    model = pyo.ConcreteModel("mosaic placement")
    ceiling_s = longest_s * (1 + SLACK_FRAC)
    model.EXPERTS = pyo.Set(initialize=range(instance.num_experts))
    options = [(m, p) for m in range(instance.num_experts) for p in range(len(instance.places[m]))]
    # An expert's places are the workers unless it is tensor parallel: then they are gangs of workers.
    model.OPTIONS = pyo.Set(dimen=2, initialize=options)
    most_calls = {
        (m, p): instance.calls_within(m, p, ceiling_s) if beat_longest else instance.num_calls[m] for m, p in options
    }
    model.placed = pyo.Var(model.OPTIONS, domain=pyo.Binary)
    model.num_calls = pyo.Var(
        model.OPTIONS, domain=pyo.NonNegativeIntegers, bounds=lambda _, m, p: (0, most_calls[m, p])
    )
    model.makespan_s = pyo.Var(domain=pyo.NonNegativeReals, bounds=(min(shortest_s, longest_s), ceiling_s))
    model.least_makespan = pyo.Objective(expr=model.makespan_s, sense=pyo.minimize)
    _add_expert_rules(model, instance, most_calls, ceiling_s if beat_longest else None)
    _add_worker_rules(model, instance)
    if symmetry:
        _add_order(model, symmetry)
    return model


def _add_expert_rules(
    model: pyo.ConcreteModel, instance: Instance, most_calls: dict[tuple[int, int], int], ceiling_s: float | None
) -> None:
    def replica_limits(model: pyo.ConcreteModel, m: int) -> object:
        least = 1 if ceiling_s is None else least_replicas(instance, m, ceiling_s)
        # The incumbent proves that `least` is finite; the guard keeps rounding from ever inverting the limits.
        least = least if isfinite(least) else 1
        replicas = pyo.quicksum(model.placed[m, p] for p in range(len(instance.places[m])))
        return pyo.inequality(least, replicas, instance.max_replicas[m])

    model.each_call_served_once = pyo.Constraint(
        model.EXPERTS,
        doc="equation 5",
        rule=lambda model, m: (
            pyo.quicksum(model.num_calls[m, p] for p in range(len(instance.places[m]))) == instance.num_calls[m]
        ),
    )
    model.calls_only_where_placed = pyo.Constraint(
        model.OPTIONS,
        doc="equation 6",
        rule=lambda model, m, p: model.num_calls[m, p] - most_calls[m, p] * model.placed[m, p] <= 0,
    )
    model.replicas_within_cap = pyo.Constraint(
        model.EXPERTS, doc="equation 7 with equation 8's cap", rule=replica_limits
    )


def _add_worker_rules(model: pyo.ConcreteModel, instance: Instance) -> None:
    at_worker: list[list[tuple[int, int]]] = [[] for _ in range(instance.num_workers)]
    for m, places in enumerate(instance.places):
        for p, workers in enumerate(places):
            for worker in workers:
                at_worker[worker].append((m, p))
    # A worker where nothing fits has no rule: Pyomo refuses constant ones.
    model.WORKERS = pyo.Set(initialize=[worker for worker, here in enumerate(at_worker) if here])
    model.experts_per_worker_within_k = pyo.Constraint(
        model.WORKERS,
        doc="equation 9",
        rule=lambda model, n: (
            pyo.quicksum(model.placed[option] for option in at_worker[n]) <= instance.max_experts_per_worker
        ),
    )

    def busy_s(model: pyo.ConcreteModel, n: int) -> object:
        return pyo.quicksum(
            instance.setup_s[m][p] * model.placed[m, p] + instance.per_call_s[m][p] * model.num_calls[m, p]
            for m, p in at_worker[n]
        )

    model.makespan_covers_worker = pyo.Constraint(
        model.WORKERS, doc="equations 4 and 10", rule=lambda model, n: busy_s(model, n) - model.makespan_s <= 0
    )


def _add_order(model: pyo.ConcreteModel, symmetry: Symmetry) -> None:
    m = symmetry.expert
    model.NEIGHBOURS = pyo.Set(dimen=2, initialize=[pair for places in symmetry.classes for pair in pairwise(places)])
    model.shards_shrink_over_equal_workers = pyo.Constraint(
        model.NEIGHBOURS,
        doc="equal workers are interchangeable",
        rule=lambda model, p, q: model.num_calls[m, p] >= model.num_calls[m, q],
    )
    model.replicas_fill_equal_workers_in_order = pyo.Constraint(
        model.NEIGHBOURS,
        doc="equal workers are interchangeable",
        rule=lambda model, p, q: model.placed[m, p] >= model.placed[m, q],
    )


def solve_model(
    model: pyo.ConcreteModel, instance: Instance, *, start: Counts | None, time_limit_s: float, seed: int = 0
) -> Solution:
    """Solve with HiGHS on one thread, from a known placement if there is one.

    When HiGHS fails its own final check (it once claimed optimality with a violation of exactly its tolerance)
    the model is solved once more without presolve.
    """
    if start is not None:
        _set_start(model, instance, start)
    wall_s = 0.0
    for presolve in ("choose", "off"):
        left_s = max(time_limit_s - wall_s, 0.0)
        results = _run_highs(model, warm=start is not None, time_limit_s=left_s, presolve=presolve, seed=seed)
        wall_s += results.wallclock_time
        if results.termination_condition in ANSWERS:
            break
    condition = results.termination_condition
    return Solution(
        counts=_read_counts(results, model, instance),
        finished=condition in (TerminationCondition.optimal, TerminationCondition.infeasible),
        termination=condition.name,
        bound_s=_finite(results.best_objective_bound) if condition in ANSWERS else None,
        num_vars=model.nvariables(),
        num_constraints=model.nconstraints(),
        wall_s=wall_s,
    )


def _run_highs(model: pyo.ConcreteModel, *, warm: bool, time_limit_s: float, presolve: str, seed: int) -> Results:
    solver = Highs()
    # Loading would raise when there is no incumbent, and warn at a time limit: both are results here.
    solver.config.load_solution = False
    solver.config.time_limit = time_limit_s
    solver.config.mip_gap = RELATIVE_GAP
    solver.config.warmstart = warm
    solver.highs_options = {
        "output_flag": False,
        "threads": 1,
        "parallel": "off",
        "random_seed": seed,
        "presolve": presolve,
        "mip_abs_gap": ABSOLUTE_GAP_S,
        # Tighter than the final check's 1e-6, which otherwise fails on solutions that sit right at it.
        "mip_feasibility_tolerance": 1e-7,
        # On problems of the paper's size restarts only cost: 2.7 s against 2.0 s over 18 of them.
        "mip_allow_restart": False,
    }
    return solver.solve(model)


def _set_start(model: pyo.ConcreteModel, instance: Instance, start: Counts) -> None:
    for m, row in enumerate(start):
        for p, number in enumerate(row):
            model.placed[m, p].set_value(int(number > 0))
            model.num_calls[m, p].set_value(number)
    model.makespan_s.set_value(instance.makespan_s(start))


def _read_counts(results: Results, model: pyo.ConcreteModel, instance: Instance) -> Counts | None:
    if results.best_feasible_objective is None:
        return None
    values = results.solution_loader.get_primals([model.num_calls[option] for option in model.OPTIONS])
    counts = tuple(
        tuple(round(values[model.num_calls[m, p]]) for p in range(len(places)))
        for m, places in enumerate(instance.places)
    )
    # At a time limit HiGHS may hand over values that are no solution.
    served = all(sum(row) == number for row, number in zip(counts, instance.num_calls, strict=True))
    return counts if served else None


def _finite(number: float | None) -> float | None:
    return number if number is not None and isfinite(number) else None

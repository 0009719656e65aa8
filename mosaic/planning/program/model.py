"""Builds the placement program in Pyomo, equations 4 to 10 of the paper, and solves it with HiGHS.

Parts beyond the paper are optional. Prices may have several affine pieces. Options may have several tensor-parallel
degrees. Prices may differ by scenario; then the mean or the worst scenarios count. Without them there is one scenario.

References
----------
MOSAIC, arXiv 2606.03014, equations 4 to 10.
Rockafellar and Uryasev, Optimization of conditional value-at-risk, Journal of Risk 2 (2000).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import TypeAlias

import pyomo.core as pyo  # pyomo.environ would load twice as much: what reads data, and solvers by name
from pyomo.common.dependencies import DeferredImportCallbackFinder
from pyomo.contrib.appsi.base import Results, TerminationCondition
from pyomo.contrib.appsi.solvers.highs import Highs

from mosaic.planning.costs import price_s
from mosaic.planning.program.instance import NO_LIMIT, Counts, Instance

# NOTE: Pyomo imports pyplot as soon as any other module imports matplotlib, which takes a third of a second.
DeferredImportCallbackFinder._callbacks.pop("matplotlib", None)

ABSOLUTE_GAP_S = 1e-6
SLACK_FRAC = 1e-7
"""Room kept above the incumbent's makespan: rounding must never exclude the incumbent itself."""
ANSWERS = (TerminationCondition.optimal, TerminationCondition.infeasible, TerminationCondition.maxTimeLimit)

OptionIndex: TypeAlias = tuple[int, int]
"""An expert and one of its options, both by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetry:
    """An expert whose shards may be ordered by size over equal blocks of workers, and these blocks."""

    expert: int
    classes: tuple[tuple[int, ...], ...]
    """Options of the expert, grouped into blocks of workers that are interchangeable."""
    in_block: dict[int, tuple[OptionIndex, ...]]
    """Options of all experts inside each of those blocks, in the same order in every block of a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What the solver returned, as data."""

    counts: Counts | None
    """X of the paper; None without an incumbent."""
    finished: bool
    """True if the incumbent is proved to the gap or, without one, if none can exist; False at a time limit."""
    termination: str
    """How the solver ended, in its own words."""
    bound_s: float | None
    """Bound on the objective."""
    num_vars: int
    num_constraints: int


def build_model(
    scenarios: Sequence[Instance],
    longest_s: Sequence[float],
    *,
    quantile: float | None = None,
    shortest_s: float = 0.0,
    is_reached: bool = False,
    symmetry: Symmetry | None = None,
) -> pyo.ConcreteModel:
    """Build equations 4 to 10 of the paper.

    NOTE: a session costs the highest of its affine pieces. So with several pieces its seconds are a variable above all
    of them. The objective is the mean makespan over the scenarios, or the mean of the worst scenarios. The latter is t
    + E[max(0, makespan - t)] / (1 - quantile), minimised over t. Every variable is bounded: HiGHS once reported a
    feasible model with free variables as infeasible.

    Parameters
    ----------
    scenarios
        Experts, options and limits, the same in all scenarios, with the prices of each; one scenario if they are
        certain.
    longest_s
        By scenario, a makespan that the optimum need not exceed, seconds.
    quantile
        The worst 1 - quantile of the scenarios count; None: all.
    shortest_s
        A lower bound on the makespan of every placement, seconds.
    is_reached
        True if a placement of ``longest_s`` is known and there is one scenario. Then no session may be longer, which
        makes the big-M of equation 6 tight and bounds the replicas from below.
    symmetry
        Equal blocks of workers to order; None: none.
    """
    model, instance = pyo.ConcreteModel("mosaic placement"), scenarios[0]
    reached_s = longest_s[0] * (1 + SLACK_FRAC) if is_reached else None
    model.EXPERTS = pyo.RangeSet(0, instance.num_experts - 1)
    # An expert's options are single workers, or gangs of workers if it is tensor parallel.
    options = [(m, o) for m in range(instance.num_experts) for o in range(len(instance.options[m]))]
    model.OPTIONS = pyo.Set(dimen=2, initialize=options)
    model.SCENARIOS = pyo.RangeSet(0, len(scenarios) - 1)
    most_calls = {
        (m, o): instance.num_calls[m] if reached_s is None else instance.calls_within(m, o, reached_s)
        for m, o in options
    }
    model.placed = pyo.Var(model.OPTIONS, domain=pyo.Binary)
    model.num_calls = pyo.Var(
        model.OPTIONS, domain=pyo.NonNegativeIntegers, bounds=lambda _, m, o: (0, most_calls[m, o])
    )
    model.makespan_s = pyo.Var(
        model.SCENARIOS, bounds=lambda _, s: (min(shortest_s, longest_s[s]), longest_s[s] * (1 + SLACK_FRAC))
    )
    _add_expert_rules(model, instance, most_calls, reached_s)
    _add_worker_rules(model, scenarios)
    _add_order(model, symmetry)
    _add_objective(model, quantile, max(longest_s))
    return model


def _add_expert_rules(
    model: pyo.ConcreteModel, instance: Instance, most_calls: dict[OptionIndex, int], reached_s: float | None
) -> None:
    def replica_limits(model: pyo.ConcreteModel, m: int) -> object:
        least = 1 if reached_s is None else instance.least_replicas(m, reached_s)
        # The incumbent proves that `least` is finite; the guard keeps rounding from inverting the limits.
        least = least if isfinite(least) else 1
        replicas = pyo.quicksum(model.placed[m, o] for o in range(len(instance.options[m])))
        return pyo.inequality(least, replicas, instance.max_replicas[m])

    model.each_call_served_once = pyo.Constraint(
        model.EXPERTS,
        doc="equation 5",
        rule=lambda model, m: (
            pyo.quicksum(model.num_calls[m, o] for o in range(len(instance.options[m]))) == instance.num_calls[m]
        ),
    )
    model.calls_only_where_placed = pyo.Constraint(
        model.OPTIONS,
        doc="equation 6",
        rule=lambda model, m, o: model.num_calls[m, o] - most_calls[m, o] * model.placed[m, o] <= 0,
    )
    model.replicas_within_cap = pyo.Constraint(
        model.EXPERTS, doc="equation 7 with equation 8's cap", rule=replica_limits
    )


def _add_worker_rules(model: pyo.ConcreteModel, scenarios: Sequence[Instance]) -> None:
    instance = scenarios[0]
    at_worker: list[list[OptionIndex]] = [[] for _ in range(instance.num_workers)]
    for m, o in model.OPTIONS:
        for worker in instance.places[m][o]:
            at_worker[worker].append((m, o))
    # A worker on which no expert fits has no rule: Pyomo refuses constant ones.
    model.WORKERS = pyo.Set(initialize=[worker for worker, here in enumerate(at_worker) if here])
    if instance.max_experts_per_worker < NO_LIMIT:
        model.experts_per_worker_within_k = pyo.Constraint(
            model.WORKERS,
            doc="equation 9",
            rule=lambda model, n: (
                pyo.quicksum(model.placed[option] for option in at_worker[n]) <= instance.max_experts_per_worker
            ),
        )
    pieces = {
        (s, m, o): scenario.options[m][o].pieces for s, scenario in enumerate(scenarios) for m, o in model.OPTIONS
    }
    bent = [index for index, several in pieces.items() if len(several) > 1]
    model.BENT = pyo.Set(dimen=3, initialize=bent)
    model.PIECES = pyo.Set(dimen=4, initialize=[(*index, k) for index in bent for k in range(len(pieces[index]))])
    model.serve_s = pyo.Var(
        model.BENT, bounds=lambda _, s, m, o: (0.0, price_s(pieces[s, m, o], instance.num_calls[m]))
    )

    def piece_s(model: pyo.ConcreteModel, s: int, m: int, o: int, k: int) -> object:
        piece = pieces[s, m, o][k]
        return piece.fixed_s * model.placed[m, o] + piece.per_call_s * model.num_calls[m, o]

    def session_s(model: pyo.ConcreteModel, s: int, m: int, o: int) -> object:
        serve_s = model.serve_s[s, m, o] if (s, m, o) in model.BENT else piece_s(model, s, m, o, 0)
        return instance.options[m][o].load_s * model.placed[m, o] + serve_s

    model.price_covers_piece = pyo.Constraint(
        model.PIECES, rule=lambda model, s, m, o, k: piece_s(model, s, m, o, k) - model.serve_s[s, m, o] <= 0
    )
    model.makespan_covers_worker = pyo.Constraint(
        model.WORKERS,
        model.SCENARIOS,
        doc="equations 4 and 10, by scenario",
        rule=lambda model, n, s: (
            pyo.quicksum(session_s(model, s, m, o) for m, o in at_worker[n]) - model.makespan_s[s] <= 0
        ),
    )


def _add_order(model: pyo.ConcreteModel, symmetry: Symmetry | None) -> None:
    if symmetry is None:
        return
    m = symmetry.expert
    model.NEIGHBOURS = pyo.Set(dimen=2, initialize=[pair for options in symmetry.classes for pair in pairwise(options)])
    model.shards_shrink_over_equal_workers = pyo.Constraint(
        model.NEIGHBOURS,
        doc="equal workers are interchangeable",
        rule=lambda model, o, p: model.num_calls[m, o] >= model.num_calls[m, p],
    )
    model.replicas_fill_equal_workers_in_order = pyo.Constraint(
        model.NEIGHBOURS,
        doc="equal workers are interchangeable",
        rule=lambda model, o, p: model.placed[m, o] >= model.placed[m, p],
    )


def _add_objective(model: pyo.ConcreteModel, quantile: float | None, longest_s: float) -> None:
    num_scenarios = len(model.SCENARIOS)
    if quantile is None:
        mean_s = pyo.quicksum(model.makespan_s[s] for s in model.SCENARIOS) / num_scenarios
        model.least_makespan = pyo.Objective(expr=mean_s, sense=pyo.minimize)
        return
    model.threshold_s = pyo.Var(bounds=(0, longest_s))
    model.above_s = pyo.Var(model.SCENARIOS, bounds=(0, longest_s))
    model.excess_covers_scenario = pyo.Constraint(
        model.SCENARIOS, rule=lambda model, s: model.makespan_s[s] - model.threshold_s - model.above_s[s] <= 0
    )
    tail = 1 / ((1 - quantile) * num_scenarios)
    excess_s = pyo.quicksum(model.above_s[s] for s in model.SCENARIOS)
    model.least_makespan = pyo.Objective(expr=model.threshold_s + tail * excess_s, sense=pyo.minimize)


def solve_model(
    model: pyo.ConcreteModel,
    scenarios: Sequence[Instance],
    *,
    start: Counts | None,
    time_limit_s: float,
    gap_frac: float,
    allows_restart: bool = False,
) -> Solution:
    """Solve with HiGHS on one thread, from a known placement if there is one.

    HiGHS may fail its own final check: it once claimed optimality with a violation of exactly its tolerance. Then the
    model is solved once more without presolve.
    """
    if start is not None:
        _set_start(model, scenarios, start)
    wall_s = 0.0
    for presolve in ("choose", "off"):
        results = _run_highs(
            model,
            warm=start is not None,
            time_limit_s=max(time_limit_s - wall_s, 0.0),
            gap_frac=gap_frac,
            options={"presolve": presolve, "mip_allow_restart": allows_restart},
        )
        wall_s += results.wallclock_time
        if results.termination_condition in ANSWERS:
            break
    condition, bound_s = results.termination_condition, results.best_objective_bound
    return Solution(
        counts=_read_counts(results, model, scenarios[0]),
        finished=condition in (TerminationCondition.optimal, TerminationCondition.infeasible),
        termination=condition.name,
        bound_s=bound_s if condition in ANSWERS and bound_s is not None and isfinite(bound_s) else None,
        num_vars=model.nvariables(),
        num_constraints=model.nconstraints(),
    )


def _run_highs(
    model: pyo.ConcreteModel, *, warm: bool, time_limit_s: float, gap_frac: float, options: dict[str, object]
) -> Results:
    solver = Highs()
    # Loading would raise without an incumbent, and warn at a time limit: both are regular results here.
    solver.config.load_solution = False
    solver.config.time_limit = time_limit_s
    solver.config.mip_gap = gap_frac
    solver.config.warmstart = warm
    solver.highs_options = {
        "output_flag": False,
        "threads": 1,
        "parallel": "off",
        "random_seed": 0,
        "mip_abs_gap": ABSOLUTE_GAP_S,
        # Tighter than the final check's 1e-6, which otherwise fails on solutions that are exactly at it.
        "mip_feasibility_tolerance": 1e-7,
        **options,
    }
    return solver.solve(model)


def _set_start(model: pyo.ConcreteModel, scenarios: Sequence[Instance], start: Counts) -> None:
    for m, o in model.OPTIONS:
        model.placed[m, o].set_value(int(start[m][o] > 0))
        model.num_calls[m, o].set_value(start[m][o])
    for s, m, o in model.BENT:
        model.serve_s[s, m, o].set_value(price_s(scenarios[s].options[m][o].pieces, start[m][o]))
    for s, scenario in enumerate(scenarios):
        model.makespan_s[s].set_value(scenario.makespan_s(start))
    if model.find_component("threshold_s") is not None:
        model.threshold_s.set_value(model.threshold_s.ub)
        for s in model.SCENARIOS:
            model.above_s[s].set_value(0.0)


def _read_counts(results: Results, model: pyo.ConcreteModel, instance: Instance) -> Counts | None:
    if results.best_feasible_objective is None:
        return None
    values = results.solution_loader.get_primals(list(model.num_calls.values()))
    counts = tuple(
        tuple(round(values[model.num_calls[m, o]]) for o in range(len(options)))
        for m, options in enumerate(instance.options)
    )
    # At a time limit HiGHS may return values that are no solution.
    served = all(sum(row) == number for row, number in zip(counts, instance.num_calls, strict=True))
    return counts if served else None


def find_symmetry(instance: Instance) -> Symmetry | None:
    """Find interchangeable blocks; None if sizes of gangs do not nest or no two blocks are equal.

    NOTE: aligned gangs whose sizes divide one another nest. So moving a whole block of the widest size moves every
    narrower gang with it. The expert that orders the blocks is the one that can have most replicas: it distinguishes
    most blocks.
    """
    if not instance.num_experts or not instance.gangs_nest:
        return None
    widths = [len(places[0]) for places in instance.places]
    widest = max(widths)

    def rank(m: int) -> tuple[int, float]:
        return instance.max_replicas[m], instance.session_s(m, 0, instance.num_calls[m])

    expert = max((m for m in range(instance.num_experts) if widths[m] == widest), key=rank)
    blocks: dict[int, list[OptionIndex]] = {}
    for m, places in enumerate(instance.places):
        for o, workers in enumerate(places):
            blocks.setdefault(workers[0] // widest, []).append((m, o))
    block_of = {o: tuple(blocks[workers[0] // widest]) for o, workers in enumerate(instance.places[expert])}
    classes: dict[object, list[int]] = {}
    for o, block in block_of.items():
        classes.setdefault(_signature(instance, block, widest), []).append(o)
    if all(len(members) < 2 for members in classes.values()):
        return None
    return Symmetry(expert=expert, classes=tuple(map(tuple, classes.values())), in_block=block_of)


def _signature(instance: Instance, block: Sequence[OptionIndex], width: int) -> object:
    """Describe a block's prices: equal blocks have equal descriptions."""
    return tuple(
        (m, instance.places[m][o][0] % width, instance.setup_s[m][o], instance.per_call_s[m][o]) for m, o in block
    )


def order_blocks(counts: Counts, symmetry: Symmetry) -> Counts:
    """Move a placement's blocks so that the ordering expert's shards shrink within each class."""
    rows = [list(row) for row in counts]
    for members in symmetry.classes:
        sources = sorted(members, key=lambda option: -counts[symmetry.expert][option])
        for target, source in zip(members, sources, strict=True):
            for (m, to), (_, origin) in zip(symmetry.in_block[target], symmetry.in_block[source], strict=True):
                rows[m][to] = counts[m][origin]
    return tuple(tuple(row) for row in rows)

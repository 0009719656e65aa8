"""Finds a placement and a bound for an instance in a given time: by the program, or by a search on equal workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from mosaic.core.addition import add_in_order
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import SolveReport, SolveStatus
from mosaic.planning.program.bounds import MAX_SUBSET_EXPERTS
from mosaic.planning.program.equal_workers import solve_identical
from mosaic.planning.program.instance import NO_LIMIT, Counts, Instance, identical_workers
from mosaic.planning.program.packing import best_packing, drop_needless_replicas

if TYPE_CHECKING:
    from mosaic.planning.program.model import Solution

RELATIVE_GAP = 1e-7
OPTIMAL_GAP_FRAC = 1e-6
FEW_OPTIONS = 64
"""Up to so many options of all experts the program is tried first: it proves optima."""
FIRST_FRAC = 0.8
"""Share of the time for the program when the search follows it."""
SEARCH_FRAC = 0.5
"""Share of the time for the search when the program follows it."""
KEPT_FRAC = 0.98
"""Share of the time limit that is used: solvers check their clocks only now and then."""
BUILD_S_PER_OPTION = 1e-4
"""Seconds that building the program is expected to take at most, for each option."""
SCENARIO_SLACK = 2.0
"""How much longer than a known placement one scenario may be if others are shorter by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedInstance:
    """A placement, and what is known about its quality."""

    counts: Counts
    """X of the paper."""
    report: SolveReport
    notes: tuple[str, ...] = ()

    @property
    def lower_bound_s(self) -> float:
        """Bound on the objective; 0 if the solver has none."""
        return self.report.bound_s or 0.0


NOTHING = SolvedInstance(
    counts=(),
    report=SolveReport(status=SolveStatus.OPTIMAL, objective_s=0.0, bound_s=0.0, gap_frac=0.0),
)
"""For an instance without calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """What is known of an instance during its solution."""

    counts: Counts | None = None
    """The best placement; None: there is none yet."""
    finish_s: float = inf
    """Its makespan, or the value of another objective."""
    bound_s: float
    """Lower bound on all placements."""
    solution: "Solution | None" = None
    """Of the program, if it was run."""
    is_sound: bool = True
    """False if a placement refutes the solver's bound."""
    notes: tuple[str, ...] = ()

    @property
    def is_proved(self) -> bool:
        # HiGHS works to tolerances: its bound counts only if it finished, and the shards, priced anew, meet it.
        finished = self.solution is None or self.solution.finished
        return self.is_sound and finished and self.finish_s - self.bound_s <= _tolerance_s(self.finish_s)

    def after(self, solution: "Solution", start: Counts | None, objective_s: Callable[[Counts], float]) -> "_Progress":
        """Add the program's result, with a note if a known placement refutes its bound."""
        found = [counts for counts in (solution.counts, start) if counts is not None]
        if not found:
            return replace(self, solution=solution)
        counts = min(found, key=objective_s)
        finish_s = objective_s(counts)
        bound_s = max(self.bound_s, solution.bound_s or 0.0)
        notes = list(self.notes)
        if not (solution.finished and solution.counts):
            notes.append(f"the solver stopped early: {solution.termination}")
        is_sound = bound_s <= finish_s + _tolerance_s(finish_s)
        if not is_sound:
            notes.append(
                f"the bound of {bound_s:.6g} s is above a placement of {finish_s:.6g} s: only the closed form counts"
            )
            bound_s = self.bound_s
        return _Progress(
            counts=counts,
            finish_s=finish_s,
            bound_s=min(bound_s, finish_s),
            solution=solution,
            is_sound=is_sound,
            notes=tuple(notes),
        )

    def solved(self, counts: Counts, objective_s: float, begin_ts: float) -> SolvedInstance:
        """Report on a placement that is at least as good as the best."""
        bound_s, solution = min(self.bound_s, objective_s), self.solution
        report = SolveReport(
            status=SolveStatus.OPTIMAL if self.is_proved else SolveStatus.TIME_LIMIT,
            objective_s=objective_s,
            bound_s=bound_s,
            gap_frac=(objective_s - bound_s) / objective_s if objective_s else 0.0,
            num_vars=solution.num_vars if solution else None,
            num_constraints=solution.num_constraints if solution else None,
            wall_s=monotonic() - begin_ts,
        )
        return SolvedInstance(counts=counts, report=report, notes=self.notes)


def solve_instance(instance: Instance, *, time_limit_s: float) -> SolvedInstance:
    """Solve equations 4 to 10 within a time, packing and building the program included.

    NOTE: a small program goes to HiGHS at once, which proves optima. With equal workers and a larger program, or if
    HiGHS was late, no formulation has a variable per worker. Then a search over groups finds placements, and subsets
    and patterns bound them from below. With few experts HiGHS then tries to close the remaining gap.

    Raises
    ------
    InfeasibleError
        If no placement obeys K and the caps, or none was found in time.
    """
    # Pyomo takes 0.3 to 0.7 s to import: other schedulers do not import it, and a first plan should not lose this time.
    import mosaic.planning.program.model  # noqa: F401

    begin_ts = monotonic()
    until_ts = begin_ts + KEPT_FRAC * time_limit_s
    if not instance.num_experts:
        return NOTHING
    _require_slots(instance)
    progress = _Progress(bound_s=instance.lower_bound_s(k_applies=True))
    workers = identical_workers(instance)
    if workers is None:
        progress = _run_program(instance, progress, until_ts=until_ts)
    else:
        progress = _solve_equal_workers(instance, workers, progress, begin_ts=begin_ts, until_ts=until_ts)
    if progress.counts is None:
        raise InfeasibleError(_no_placement(instance, progress, time_limit_s))
    counts = drop_needless_replicas(instance, progress.counts)
    return progress.solved(counts, instance.makespan_s(counts), begin_ts)


def solve_scenarios(
    scenarios: Sequence[Instance],
    *,
    start: Counts | None,
    quantile: float | None,
    time_limit_s: float,
    gap_frac: float,
) -> SolvedInstance:
    """Solve the program for pieces, degrees and scenarios, with HiGHS alone; its lower bound is on the objective.

    Parameters
    ----------
    scenarios, quantile
        See ``build_model``.
    start
        A placement to start from; None: none is known.
    time_limit_s
        Seconds for the solver; building the program takes extra time.
    gap_frac
        Gap to the optimum at which the solver may stop.

    Raises
    ------
    InfeasibleError
        If no placement obeys the limits, or none was found in time.
    """
    # Pyomo takes a quarter of a second to import: the other schedulers do not import it.
    from mosaic.planning.program.model import build_model, solve_model

    begin_ts = monotonic()
    if not scenarios[0].num_experts:
        return NOTHING

    def objective_s(counts: Counts) -> float:
        return risk_s([scenario.makespan_s(counts) for scenario in scenarios], quantile)

    if start is None:
        longest_s = [scenario.longest_s() for scenario in scenarios]
    else:
        slack = 1.0 if len(scenarios) == 1 else SCENARIO_SLACK
        longest_s = [slack * scenario.makespan_s(start) for scenario in scenarios]
    model = build_model(scenarios, longest_s, quantile=quantile)
    solution = solve_model(
        model, scenarios, start=start, time_limit_s=time_limit_s, gap_frac=gap_frac, allows_restart=True
    )
    progress = _Progress(bound_s=0.0).after(solution, start, objective_s)
    if progress.counts is None:
        raise InfeasibleError(_no_placement(scenarios[0], progress, time_limit_s))
    return progress.solved(progress.counts, progress.finish_s, begin_ts)


def risk_s(makespans_s: Sequence[float], quantile: float | None) -> float:
    """Compute the objective: the mean of the makespans, or of the worst 1 - quantile of them."""
    if quantile is None:
        return add_in_order(makespans_s) / len(makespans_s)
    left = (1 - quantile) * len(makespans_s)
    total_s = 0.0
    for seconds in sorted(makespans_s, reverse=True):
        weight = min(1.0, left)
        total_s += weight * seconds
        left -= weight
        if left <= 0:
            break
    return total_s / ((1 - quantile) * len(makespans_s))


def _solve_equal_workers(
    instance: Instance, workers: Instance, progress: _Progress, *, begin_ts: float, until_ts: float
) -> _Progress:
    """Choose how equal workers are solved: with the program first, last or not at all."""
    is_small = sum(len(places) for places in instance.places) <= FEW_OPTIONS
    if is_small:
        progress = _run_program(instance, progress, until_ts=begin_ts + FIRST_FRAC * (until_ts - begin_ts))
        if progress.counts is None or (progress.solution and progress.solution.finished):
            return progress
    few_experts = workers.num_experts <= MAX_SUBSET_EXPERTS and not is_small
    search_ts = begin_ts + SEARCH_FRAC * (until_ts - begin_ts) if few_experts else until_ts
    counts, bound_s = solve_identical(workers, progress.counts, progress.bound_s, until_ts=search_ts)
    if (counts, bound_s) != (progress.counts, progress.bound_s):
        note = f"{workers.num_workers} equal workers: placed by a search over groups, bounded by subsets or patterns"
        finish_s = inf if counts is None else workers.makespan_s(counts)
        notes = (*progress.notes, note)
        progress = replace(progress, counts=counts, finish_s=finish_s, bound_s=bound_s, notes=notes)
    if counts is None or (few_experts and not progress.is_proved):
        progress = _run_program(instance, progress, until_ts=until_ts)
    return progress


def _run_program(instance: Instance, progress: _Progress, *, until_ts: float) -> _Progress:
    """Let HiGHS improve a placement, or the best packing if there is none."""
    from mosaic.planning.program.model import build_model, find_symmetry, order_blocks, solve_model

    start = progress.counts or best_packing(instance, progress.bound_s, until_ts=until_ts)
    symmetry = find_symmetry(instance)
    if start and symmetry:
        start = order_blocks(start, symmetry)
    longest_s = instance.makespan_s(start) if start else instance.longest_s()
    if start and BUILD_S_PER_OPTION * sum(map(len, instance.options)) > until_ts - monotonic():
        late = "too little time to build the program: packed, bounded in closed form"
        return replace(progress, counts=start, finish_s=longest_s, notes=(*progress.notes, late))
    model = build_model(
        [instance],
        [longest_s],
        shortest_s=progress.bound_s,
        is_reached=start is not None,
        symmetry=symmetry,
    )
    time_limit_s = max(until_ts - monotonic(), 0.0)
    # On problems of the paper's size restarts only cost time: 2.7 s against 2.0 s over 18 of them.
    solution = solve_model(
        model, [instance], start=start, time_limit_s=time_limit_s, gap_frac=RELATIVE_GAP, allows_restart=False
    )
    return progress.after(solution, start, instance.makespan_s)


def _tolerance_s(objective_s: float) -> float:
    """Return how far apart an objective and a bound may be to count as equal, in seconds; HiGHS stops at 1e-6 s too."""
    return OPTIMAL_GAP_FRAC * max(1.0, objective_s)


def _require_slots(instance: Instance) -> None:
    """Refuse a K that cannot hold one copy of every expert, before the solver would."""
    needed = sum(len(options[0]) for options in instance.places)
    slots = instance.num_workers * instance.max_experts_per_worker
    if needed > slots:
        raise InfeasibleError(
            f"max_experts_per_worker K={instance.max_experts_per_worker} is too small: {instance.num_experts} experts "
            f"need {needed} places and {instance.num_workers} workers offer {slots}; raise K to at least "
            f"{-(-needed // instance.num_workers)} or add workers"
        )


def _no_placement(instance: Instance, progress: _Progress, time_limit_s: float) -> str:
    scarce = min(range(instance.num_experts), key=lambda m: len(instance.places[m]))
    where = sorted({worker for workers in instance.places[scarce] for worker in workers})
    most = instance.max_experts_per_worker
    limits = (
        f"{f'K={most}' if most < NO_LIMIT else 'any number of'} experts per worker on {instance.num_workers} workers; "
        f"expert {instance.names[scarce]!r} has the fewest places, workers {where}"
    )
    if progress.solution is not None and progress.solution.finished:
        return f"no placement of {instance.num_experts} experts satisfies {limits}: raise max_experts_per_worker"
    return f"no placement found in time_limit_s={time_limit_s:g} under {limits}: raise the limit or K"

"""From an instance to a placement with a bound, within a time: the program itself, or equal workers aggregated."""

from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import SolveReport, SolveStatus
from mosaic.planning.ilp.aggregate import Bracket, solve_alike
from mosaic.planning.ilp.alike import AlikeWorkers, alike_workers
from mosaic.planning.ilp.packing import best_packing, drop_needless_replicas
from mosaic.planning.ilp.subset_bound import MAX_EXPERTS
from mosaic.planning.ilp.symmetry import find_symmetry, order_blocks
from mosaic.planning.schedulers.instance import Counts, Instance
from mosaic.planning.schedulers.lower_bounds import lower_bound_s

if TYPE_CHECKING:
    from mosaic.planning.ilp.formulation import Solution

OPTIMAL_GAP_FRAC = 1e-6
FEW_OPTIONS = 64
"""Pairs of an expert and a place up to which the program is tried first: it proves optima."""
FIRST_FRAC = 0.8
"""Share of the time for the program where it comes first and the search after it."""
SEARCH_FRAC = 0.5
"""Share of the time for the search where the program comes after it."""
KEPT_FRAC = 0.98
"""Share of the time limit that is used: solvers look at their clocks now and then only."""
BUILD_S_PER_OPTION = 1e-4
"""Seconds that building the program is expected to take at most, for each pair of an expert and a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedInstance:
    """A placement and what is known about how good it is."""

    counts: Counts
    """X of the paper."""
    report: SolveReport
    lower_bound_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """What is known of an instance while it is being solved."""

    bracket: Bracket
    solution: "Solution | None" = None
    """Of the program, if it has been run."""
    is_sound: bool = True
    """False where a placement refutes the solver's bound."""
    notes: tuple[str, ...] = ()

    @property
    def is_proved(self) -> bool:
        # HiGHS works to tolerances: its bound counts only where it finished, and the shards, priced anew, meet it.
        finished = self.solution is None or self.solution.finished
        tolerance_s = _tolerance_s(self.bracket.finish_s)
        return self.is_sound and finished and self.bracket.finish_s - self.bracket.bound_s <= tolerance_s


def solve_instance(instance: Instance, *, time_limit_s: float) -> SolvedInstance:
    """Solve equations 4 to 10 within a time, packing and building the program included.

    NOTE: a small program goes to HiGHS at once, which proves optima. Where workers are equal and the program is
    larger, or HiGHS was late, nothing has a variable for each worker: a search over groups finds placements, and
    subsets and patterns bound them from below. With few experts HiGHS then tries to close what is left.

    Raises
    ------
    InfeasibleError
        If no placement obeys K and the caps, or none was found in time.
    """
    begin_ts = monotonic()
    until_ts = begin_ts + KEPT_FRAC * time_limit_s
    if not instance.num_experts:
        nothing = SolveReport(status=SolveStatus.OPTIMAL, objective_s=0.0, bound_s=0.0, gap_frac=0.0)
        return SolvedInstance(counts=(), report=nothing, lower_bound_s=0.0)
    _require_slots(instance)
    progress = _Progress(bracket=Bracket(None, inf, lower_bound_s(instance, k_applies=True)))
    workers = alike_workers(instance)
    if workers is None:
        progress = _run_program(instance, progress, until_ts=until_ts)
    else:
        progress = _solve_equal_workers(instance, workers, progress, begin_ts=begin_ts, until_ts=until_ts)
    counts = progress.bracket.counts
    if counts is None:
        finished = progress.solution is not None and progress.solution.finished
        raise InfeasibleError(_no_placement(instance, finished=finished, time_limit_s=time_limit_s))
    counts = drop_needless_replicas(instance, counts)
    report = _report(instance.makespan_s(counts), progress, wall_s=monotonic() - begin_ts)
    return SolvedInstance(counts=counts, report=report, lower_bound_s=report.bound_s or 0.0, notes=progress.notes)


def _solve_equal_workers(
    instance: Instance, workers: AlikeWorkers, progress: _Progress, *, begin_ts: float, until_ts: float
) -> _Progress:
    """Choose what equal workers are solved by: the program first, last or not at all."""
    is_small = sum(len(places) for places in instance.places) <= FEW_OPTIONS
    if is_small:
        progress = _run_program(instance, progress, until_ts=begin_ts + FIRST_FRAC * (until_ts - begin_ts))
        if progress.bracket.counts is None or (progress.solution and progress.solution.finished):
            return progress
    few_experts = workers.num_experts <= MAX_EXPERTS and not is_small
    search_ts = begin_ts + SEARCH_FRAC * (until_ts - begin_ts) if few_experts else until_ts
    bracket = solve_alike(instance, workers, progress.bracket, until_ts=search_ts)
    if bracket != progress.bracket:
        note = f"{workers.num_workers} equal workers: placed by a search over groups, bounded by subsets or patterns"
        progress = replace(progress, bracket=bracket, notes=(*progress.notes, note))
    if bracket.counts is None or (few_experts and not progress.is_proved):
        progress = _run_program(instance, progress, until_ts=until_ts)
    return progress


def _run_program(instance: Instance, progress: _Progress, *, until_ts: float) -> _Progress:
    """Let HiGHS improve on a placement, or on the best packing where there is none."""
    # Pyomo takes a quarter of a second to import: the other schedulers do not pay for it.
    from mosaic.planning.ilp.formulation import build_model, solve_model

    bracket = progress.bracket
    start = bracket.counts or best_packing(instance, until_ts=until_ts)
    symmetry = find_symmetry(instance)
    if start and symmetry:
        start = order_blocks(start, symmetry)
    longest_s = instance.makespan_s(start) if start else instance.longest_s
    if start and BUILD_S_PER_OPTION * sum(map(len, instance.places)) > until_ts - monotonic():
        late = "too little time to build the program: packed, bounded in closed form"
        return replace(progress, bracket=Bracket(start, longest_s, bracket.bound_s), notes=(*progress.notes, late))
    model = build_model(
        instance, shortest_s=bracket.bound_s, longest_s=longest_s, beat_longest=start is not None, symmetry=symmetry
    )
    solution = solve_model(model, instance, start=start, time_limit_s=max(until_ts - monotonic(), 0.0))
    found = [counts for counts in (solution.counts, start) if counts is not None]
    if not found:
        return replace(progress, solution=solution)
    counts = min(found, key=instance.makespan_s)
    finish_s = instance.makespan_s(counts)
    bound_s, contradictions = _bound(finish_s, bracket.bound_s, solution.bound_s)
    early = () if solution.finished and solution.counts else (f"the solver stopped early: {solution.termination}",)
    return _Progress(
        bracket=Bracket(counts, finish_s, bound_s),
        solution=solution,
        is_sound=not contradictions,
        notes=(*progress.notes, *early, *contradictions),
    )


def _tolerance_s(objective_s: float) -> float:
    """Tell how far apart an objective and a bound count as equal, in seconds; HiGHS stops at 1e-6 s as well."""
    return OPTIMAL_GAP_FRAC * max(1.0, objective_s)


def _bound(objective_s: float, proved_s: float, solver_bound_s: float | None) -> tuple[float, tuple[str, ...]]:
    """Choose the bound to report, and say so if the placement in hand refutes the solver's."""
    bound_s = max(proved_s, solver_bound_s or 0.0)
    if bound_s > objective_s + _tolerance_s(objective_s):
        contradiction = (
            f"the bound of {bound_s:.6g} s is above a placement of {objective_s:.6g} s: only the closed form counts"
        )
        return proved_s, (contradiction,)
    return min(bound_s, objective_s), ()


def _report(objective_s: float, progress: _Progress, *, wall_s: float) -> SolveReport:
    bound_s = min(progress.bracket.bound_s, objective_s)
    solution = progress.solution
    return SolveReport(
        status=SolveStatus.OPTIMAL if progress.is_proved else SolveStatus.TIME_LIMIT,
        objective_s=objective_s,
        bound_s=bound_s,
        gap_frac=(objective_s - bound_s) / objective_s if objective_s else 0.0,
        num_vars=solution.num_vars if solution else None,
        num_constraints=solution.num_constraints if solution else None,
        wall_s=wall_s,
    )


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


def _no_placement(instance: Instance, *, finished: bool, time_limit_s: float) -> str:
    scarce = min(range(instance.num_experts), key=lambda m: len(instance.places[m]))
    where = sorted({worker for workers in instance.places[scarce] for worker in workers})
    limits = (
        f"K={instance.max_experts_per_worker} experts per worker on {instance.num_workers} workers; expert "
        f"{instance.names[scarce]!r} has the fewest places, workers {where}"
    )
    if finished:
        return f"no placement of {instance.num_experts} experts satisfies {limits}: raise max_experts_per_worker"
    return f"no placement found in time_limit_s={time_limit_s:g} under {limits}: raise the limit or K"

"""The paper's policy: the placement and the split of calls that make the busiest worker finish first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic.core.checks import require_count, require_number
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan, Session, SolveReport, SolveStatus
from mosaic.core.workload import ExpertName
from mosaic.planning.ilp.packing import best_packing, drop_needless_replicas
from mosaic.planning.ilp.symmetry import find_symmetry, nests, order_blocks
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.base import make_plan
from mosaic.planning.schedulers.instance import Counts, Instance, make_instance
from mosaic.planning.schedulers.lower_bounds import lower_bound_s
from mosaic.planning.schedulers.shards import replica_sessions

if TYPE_CHECKING:
    from mosaic.planning.ilp.formulation import Solution

OPTIMAL_GAP_FRAC = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ilp:
    """Equations 4 to 10 of the paper, solved by HiGHS.

    Prices are the cost model's linear terms: the load and the fixed part are paid per replica, the rest per call.
    A time limit with an incumbent gives a plan with a gap; it never falls back to another policy in silence.

    References
    ----------
    MOSAIC, arXiv 2606.03014.
    """

    max_experts_per_worker: int | None = None
    """K; None: max(2, ceil(M / N)), where a tensor-parallel expert counts once for each worker it spans."""
    max_replicas: int | Mapping[ExpertName, int] | None = None
    """One cap for all or caps by expert; None: the experts' own, and equation 8 for those without."""
    time_limit_s: float = 10.0
    """Seconds for the solver; pricing and building the model come on top."""
    name: str = "ilp"

    def __post_init__(self) -> None:
        if self.max_experts_per_worker is not None:
            require_count(self.max_experts_per_worker, "scheduler.max_experts_per_worker", at_least=1)
        if isinstance(self.max_replicas, Mapping):
            for expert, cap in self.max_replicas.items():
                require_count(cap, f"scheduler.max_replicas: cap of {expert}", at_least=1)
        elif self.max_replicas is not None:
            require_count(self.max_replicas, "scheduler.max_replicas", at_least=1)
        require_number(self.time_limit_s, "scheduler.time_limit_s", above=0)

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``."""
        instance = make_instance(
            problem, max_replicas=self.max_replicas, max_experts_per_worker=self.max_experts_per_worker
        )
        solved = solve_instance(instance, time_limit_s=self.time_limit_s)
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=_sessions(problem, instance, solved.counts),
            lower_bound_s=solved.lower_bound_s,
            notes=(*solved.notes, *_notes(instance, solved.counts)),
            solve=solved.report,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedInstance:
    """A placement and what is known about how good it is."""

    counts: Counts
    """X of the paper."""
    report: SolveReport
    lower_bound_s: float
    notes: tuple[str, ...] = ()


def solve_instance(instance: Instance, *, time_limit_s: float) -> SolvedInstance:
    """Solve the program, from the best placement that packing finds.

    Raises
    ------
    InfeasibleError
        If no placement obeys K and the caps, or none was found in time.
    """
    if not instance.num_experts:
        nothing = SolveReport(status=SolveStatus.OPTIMAL, objective_s=0.0, bound_s=0.0, gap_frac=0.0)
        return SolvedInstance(counts=(), report=nothing, lower_bound_s=0.0)
    _require_slots(instance)
    # Pyomo takes a quarter of a second to import: the other schedulers do not pay for it.
    from mosaic.planning.ilp.formulation import build_model, solve_model

    closed_form_s = lower_bound_s(instance, k_applies=True)
    start = best_packing(instance)
    symmetry = find_symmetry(instance)
    if start and symmetry:
        start = order_blocks(start, symmetry)
    longest_s = instance.makespan_s(start) if start else instance.longest_s
    model = build_model(
        instance,
        shortest_s=closed_form_s,
        longest_s=longest_s,
        beat_longest=start is not None,
        symmetry=symmetry,
    )
    solution = solve_model(model, instance, start=start, time_limit_s=time_limit_s)
    found = [counts for counts in (solution.counts, start) if counts is not None]
    if not found:
        raise InfeasibleError(_no_placement(instance, finished=solution.finished, time_limit_s=time_limit_s))
    counts = drop_needless_replicas(instance, min(found, key=instance.makespan_s))
    bound_s, contradictions = _bound(instance.makespan_s(counts), closed_form_s, solution.bound_s)
    early = () if solution.finished and solution.counts else (f"the solver stopped early: {solution.termination}",)
    report = _report(instance.makespan_s(counts), bound_s, solution, sound=not contradictions)
    return SolvedInstance(counts=counts, report=report, lower_bound_s=bound_s, notes=(*early, *contradictions))


def _tolerance_s(objective_s: float) -> float:
    """Tell how far apart an objective and a bound count as equal, in seconds; HiGHS stops at 1e-6 s as well."""
    return OPTIMAL_GAP_FRAC * max(1.0, objective_s)


def _bound(objective_s: float, closed_form_s: float, solver_bound_s: float | None) -> tuple[float, tuple[str, ...]]:
    """Choose the bound to report, and say so if the placement in hand refutes the solver's."""
    bound_s = max(closed_form_s, solver_bound_s or 0.0)
    if bound_s > objective_s + _tolerance_s(objective_s):
        contradiction = (
            f"the bound of {bound_s:.6g} s is above a placement of {objective_s:.6g} s: only the closed form counts"
        )
        return closed_form_s, (contradiction,)
    return min(bound_s, objective_s), ()


def _report(objective_s: float, bound_s: float, solution: "Solution", *, sound: bool) -> SolveReport:
    # HiGHS works to tolerances: its bound counts only where the shards, priced anew, meet it.
    proved = sound and solution.finished and abs(objective_s - bound_s) <= _tolerance_s(objective_s)
    return SolveReport(
        status=SolveStatus.OPTIMAL if proved else SolveStatus.TIME_LIMIT,
        objective_s=objective_s,
        bound_s=bound_s,
        gap_frac=(objective_s - bound_s) / objective_s if objective_s else 0.0,
        num_vars=solution.num_vars,
        num_constraints=solution.num_constraints,
        wall_s=solution.wall_s,
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


def _sessions(problem: Problem, instance: Instance, counts: Counts) -> list[Session]:
    """Order the sessions: widest gangs first, so that nested gangs never wait, then the shortest first.

    The order inside a worker does not change its makespan, but light experts first completes more questions early.
    """
    calls_by_expert = problem.calls_by_expert()
    keyed: list[tuple[tuple[float, ...], Session]] = []
    for m, row in enumerate(counts):
        used = [p for p, number in enumerate(row) if number]
        sessions = replica_sessions(
            calls_by_expert[instance.names[m]],
            [instance.places[m][p] for p in used],
            [row[p] for p in used],
            first_id=0,
        )
        for p, session in zip(used, sessions, strict=True):
            order = (-len(session.workers), instance.session_s(m, p, row[p]), m, p)
            keyed.append((order, session))
    keyed.sort(key=lambda pair: pair[0])
    return [
        Session(id=number, expert=session.expert, node=session.node, workers=session.workers, shard=session.shard)
        for number, (_, session) in enumerate(keyed)
    ]


def _notes(instance: Instance, counts: Counts) -> list[str]:
    notes = [f"at most K={instance.max_experts_per_worker} experts per worker; shortest session first on each worker"]
    for m, row in enumerate(counts):
        replicas = sum(number > 0 for number in row)
        notes.append(
            f"{instance.names[m]}: {replicas} of at most {instance.max_replicas[m]} replica(s) "
            f"({instance.cap_reasons[m]}), {instance.num_calls[m]} calls"
        )
    if not nests(instance):
        notes.append(
            "gang sizes do not divide one another: gangs may wait for each other beyond the program's makespan"
        )
    return notes

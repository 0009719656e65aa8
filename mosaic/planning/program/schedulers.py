"""The placement program as a scheduler, with the paper's limits; and what both schedulers of the program share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mosaic.core.checks import AtLeast1, Positive, checked, require_count
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import ExpertName
from mosaic.planning.problem import Problem
from mosaic.planning.program.instance import Counts, Instance, make_instance
from mosaic.planning.program.solve import solve_instance
from mosaic.planning.scheduler import make_plan, replica_sessions


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("scheduler.")
class Ilp:
    """Equations 4 to 10 of the paper, solved by HiGHS, or by a search and bounds where equal workers are many.

    Prices are affine: the load and the fixed part are paid per replica, the rest per call.
    A time limit with an incumbent gives a plan with a gap; it never falls back to another policy silently.

    References
    ----------
    MOSAIC, arXiv 2606.03014.
    """

    max_experts_per_worker: AtLeast1 | None = None
    """K; None: max(2, ceil(M / N)), where a tensor-parallel expert counts once for each worker it spans."""
    max_replicas: int | Mapping[ExpertName, int] | None = None
    """One cap for all or caps by expert; None: the experts' own, and equation 8 for those without."""
    time_limit_s: Positive = 10.0
    """Wall seconds to solve, packing and building the program included; pricing comes on top."""
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

    The order inside a worker does not change its makespan, but light experts first completes more questions early.
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

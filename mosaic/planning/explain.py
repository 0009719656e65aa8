"""Describes a plan in words and numbers, with its reasons: the output of ``backend=none``."""

from collections.abc import Sequence

from mosaic.core.plan import Plan, SolveStatus
from mosaic.core.text_table import aligned
from mosaic.planning.costs import price_s
from mosaic.planning.problem import Problem
from mosaic.planning.program.instance import make_instance


def explain(plan: Plan, problem: Problem) -> str:
    """Describe a plan: each expert's prices, cap and replicas, each worker's predicted time, the bound and the gap.

    Raises
    ------
    InfeasibleError
        If an expert of the problem fits nowhere.
    """
    calls = sum(len(session.shard) for session in plan.sessions)
    parts = [
        f"Plan of {plan.scheduler}: {calls} calls in {len(plan.sessions)} sessions on {plan.num_workers} workers "
        f"of {problem.cluster.name}, costs={plan.costs}"
        + (f" (load and run s below: costs={problem.costs.name})" if plan.costs != problem.costs.name else ""),
        _table(_EXPERT_HEAD, _expert_rows(plan, problem)),
        _table(_WORKER_HEAD, _worker_rows(plan)),
        "\n".join(_outcome(plan)),
    ]
    if plan.notes:
        parts.append("Why:\n" + "\n".join(f"- {note}" for note in plan.notes))
    return "\n\n".join(parts) + "\n"


_EXPERT_HEAD = ("expert", "calls", "load s", "run s", "cap", "replicas", "workers x calls")
_WORKER_HEAD = ("worker", "busy s", "idle s", "sessions (load + run s)")


def _expert_rows(plan: Plan, problem: Problem) -> list[tuple[str, ...]]:
    instance = make_instance(problem)
    rows: list[tuple[str, ...]] = []
    for m, name in enumerate(instance.names):
        expert = problem.expert(name)
        gang = problem.cluster.select(instance.places[m][0])
        load_s = problem.costs.load_s(expert, gang, problem.held.anywhere(name))
        run_s = price_s(problem.costs.pieces(expert, gang), instance.num_calls[m])
        shards: dict[tuple[int, ...], int] = {}
        for session in plan.sessions:
            if session.expert == name:
                shards[session.workers] = shards.get(session.workers, 0) + len(session.shard)
        where = ", ".join(f"{_join(workers)}: {number}" for workers, number in sorted(shards.items()))
        rows.append(
            (
                name,
                str(instance.num_calls[m]),
                f"{load_s:.1f}",
                f"{run_s:.1f}",
                str(instance.max_replicas[m]),
                str(len(shards)),
                where,
            )
        )
    return rows


def _worker_rows(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for worker in range(plan.num_workers):
        busy_s = 0.0
        stays = []
        for session, times in zip(plan.sessions, plan.predicted, strict=True):
            if worker in session.workers:
                busy_s += times.end_s - times.start_s
                stays.append(f"{session.expert} {times.load_s:.0f} + {times.end_s - times.start_s - times.load_s:.0f}")
        idle_s = plan.predicted_makespan_s - busy_s
        rows.append((str(worker), f"{busy_s:.1f}", f"{idle_s:.1f}", _shorten(stays) or "none"))
    return rows


def _outcome(plan: Plan) -> list[str]:
    makespan_s = plan.predicted_makespan_s
    above = (makespan_s / plan.lower_bound_s - 1) * 100 if plan.lower_bound_s else 0.0
    lines = [
        f"Predicted makespan {makespan_s:.1f} s; no plan under these prices and caps is below "
        f"{plan.lower_bound_s:.1f} s ({above:.2f}% above the bound)"
    ]
    solve = plan.solve
    if solve.status is SolveStatus.HEURISTIC:
        lines.append("Nothing was solved: the policy is a fixed rule")
    else:
        gap = "unknown" if solve.gap_frac is None else f"{solve.gap_frac * 100:.4f}%"
        size = f", {solve.num_vars} variables, {solve.num_constraints} constraints" if solve.num_vars else ""
        lines.append(
            f"Solver: {solve.status.value}, objective {_seconds(solve.objective_s)}, bound {_seconds(solve.bound_s)}, "
            f"gap {gap}{size}"
        )
    return lines


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f} s"


def _join(workers: Sequence[int]) -> str:
    return "+".join(str(worker) for worker in workers)


def _shorten(stays: Sequence[str], most: int = 8) -> str:
    """Join sessions, without the middle of a long queue (fifo with small windows has hundreds)."""
    if len(stays) <= most:
        return ", ".join(stays)
    return ", ".join([*stays[: most - 2], f"... {len(stays) - most + 1} more ...", stays[-1]])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lay out columns: the first and last left-aligned, numbers right-aligned."""
    return "\n".join(aligned([head, *rows], left=(0, len(head) - 1)))

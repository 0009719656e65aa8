"""Executes a plan to the end: what workers that are gone for good left is planned anew on the others."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mosaic.core.errors import BackendError, InfeasibleError
from mosaic.core.plan import Plan
from mosaic.core.results import Listener, RunResult
from mosaic.core.workload import Call
from mosaic.planning.placement import WithoutWorkers
from mosaic.planning.plan_check import check_plan
from mosaic.planning.plan_file import plan_to_json
from mosaic.planning.problem import Problem
from mosaic.planning.schedulers.base import Scheduler
from mosaic.runtime.backend import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """A plan that was made because workers were lost."""

    lost_workers: Mapping[int, str]
    """All that are lost so far, with the cause."""
    plan: Plan
    """Over the calls that were left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """A run to the end."""

    result: RunResult
    replans: tuple[Replan, ...] = ()


def execute_to_end(
    plan: Plan,
    problem: Problem,
    backend: Backend,
    scheduler: Scheduler,
    listener: Listener | None = None,
    on_plan: Callable[[Replan], None] = lambda replan: None,
) -> Executed:
    """Execute a plan; while workers go away and calls are left, plan these on the other workers and go on.

    Parameters
    ----------
    plan, problem
        The plan, and what it was made for.
    backend, scheduler
        Who runs it, and who plans again.
    listener
        Watches the run.
    on_plan
        Told of each new plan before it runs.

    Raises
    ------
    BackendError
        If a plan cannot be run, or calls are left and no worker for them. What has finished is kept by the backend.
    """
    result = backend.execute(plan, problem.calls, listener)
    lost: dict[int, str] = {}
    replans: list[Replan] = []
    while backend.dead_workers:
        lost |= backend.dead_workers
        left = calls_left(problem.calls, result)
        if not left:
            break
        again = replan_without(replace(problem, calls=left), lost, scheduler)
        replans.append(again)
        on_plan(again)
        result = merge(result, backend.execute(again.plan, left, listener))
    return Executed(result=result, replans=tuple(replans))


def replan_without(problem: Problem, lost: Mapping[int, str], scheduler: Scheduler) -> Replan:
    """Plan what is left of a problem on the workers that are left.

    Raises
    ------
    BackendError
        If there is no plan, with what became of the workers.
    """
    rest = replace(problem, costs=WithoutWorkers(problem.costs, frozenset(lost)))
    causes = "; ".join(f"worker {worker}: {cause}" for worker, cause in sorted(lost.items()))
    if len(lost) == problem.cluster.num_workers:
        raise BackendError(f"all workers are lost and {len(problem.calls)} calls are left ({causes})")
    try:
        plan = scheduler.plan(rest)
    except InfeasibleError as error:
        raise BackendError(
            f"{len(problem.calls)} calls are left that no plan serves without the workers that are lost ({causes}): "
            f"{error}"
        ) from error
    check_plan(plan, rest)
    return Replan(lost_workers=dict(lost), plan=plan)


def merge(first: RunResult, then: RunResult) -> RunResult:
    """Put two parts of a run on one clock together; the later one's sessions are numbered behind the first's."""
    # A session that lost all its calls was never opened: it has no record of its own, and keeps its number.
    numbers = [session.session for session in first.sessions] + [record.session for record in first.calls]
    offset = max(numbers, default=-1) + 1
    return replace(
        first,
        calls=(*first.calls, *(record._replace(session=record.session + offset) for record in then.calls)),
        sessions=(
            *first.sessions,
            *(replace(session, session=session.session + offset) for session in then.sessions),
        ),
        actions=first.actions + then.actions,
    )


def calls_left(calls: Sequence[Call], result: RunResult) -> tuple[Call, ...]:
    """List the calls that a partial result lacks, because the workers of their sessions are gone: plan them anew."""
    ended = {record.key for record in result.calls}
    return tuple(call for call in calls if call.key not in ended)


def describe_replan(replan: Replan) -> str:
    """Say in a line what was lost and what is done about it."""
    lost = ", ".join(f"worker {worker} ({cause})" for worker, cause in sorted(replan.lost_workers.items()))
    num_calls = sum(len(session.shard) for session in replan.plan.sessions)
    return f"lost {lost}: {num_calls:,} calls planned anew in {len(replan.plan.sessions)} sessions on the other workers"


def replans_jsonl(replans: Sequence[Replan]) -> bytes:
    """Encode new plans, one a line, with the workers that were lost."""
    lines = ({"lost_workers": replan.lost_workers, "plan": json.loads(plan_to_json(replan.plan))} for replan in replans)
    return "".join(json.dumps(line) + "\n" for line in lines).encode()

"""From a workload to a result: build the problem, plan it, execute the plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.results import Listener, RunResult
from mosaic.core.workload import Expert, ExpertName, Workload
from mosaic.planning.costs import CostModel
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem
from mosaic.planning.profiles import Profile
from mosaic.planning.schedulers.base import Scheduler
from mosaic.runtime.backend import Backend
from mosaic.runtime.replanning import execute_to_end

CostFactory: TypeAlias = Callable[..., CostModel]
"""Builds a cost model from the keywords ``profile`` and ``num_calls_by_expert``."""


def make_problem(
    workload: Workload, *, experts: Sequence[Expert], cluster: Cluster, profile: Profile, costs: CostFactory
) -> Problem:
    """State all that a scheduler may know about a workload.

    Raises
    ------
    ValueError
        If a call names an expert that is not in the pool.
    ProfileError
        If the profile does not cover an expert that has calls.
    """
    num_calls: Mapping[ExpertName, int] = workload.num_calls_by_expert
    pool = {expert.name: expert for expert in experts}
    return Problem(
        experts=tuple(experts),
        calls=workload.calls,
        cluster=cluster,
        costs=costs(profile=profile, num_calls_by_expert=num_calls),
        lengths={name: profile.lengths(name) for name in num_calls if name in pool},
    )


def plan(
    workload: Workload,
    *,
    experts: Sequence[Expert],
    cluster: Cluster,
    profile: Profile,
    costs: CostFactory,
    scheduler: Scheduler,
) -> Plan:
    """Plan a workload.

    Raises
    ------
    InfeasibleError
        If the scheduler finds no place for an expert.
    """
    return scheduler.plan(make_problem(workload, experts=experts, cluster=cluster, profile=profile, costs=costs))


def run(
    workload: Workload,
    *,
    experts: Sequence[Expert],
    cluster: Cluster,
    profile: Profile,
    costs: CostFactory,
    scheduler: Scheduler,
    backend: Backend,
    listener: Listener | None = None,
) -> tuple[Plan, RunResult]:
    """Plan a workload and execute the plan, and what lost workers leave by new plans on the others.

    Raises
    ------
    InfeasibleError, PlanError, BackendError
        If no plan exists, a plan breaks the problem, or the backend cannot run it.
    """
    problem = make_problem(workload, experts=experts, cluster=cluster, profile=profile, costs=costs)
    made = scheduler.plan(problem)
    check_plan(made, problem)
    return made, execute_to_end(made, problem, backend, scheduler, listener).result

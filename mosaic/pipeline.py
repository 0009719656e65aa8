"""From a workload to a result: build the problem, plan it, execute the plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from mosaic.backends.base import Backend
from mosaic.cluster import Cluster
from mosaic.costs import CostModel
from mosaic.plan import Plan, check_plan
from mosaic.problem import Problem
from mosaic.profiles import Profile
from mosaic.replanning import execute_to_end
from mosaic.results import Listener, RunResult
from mosaic.schedulers.base import Scheduler
from mosaic.workload import Expert, ExpertName, Workload

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

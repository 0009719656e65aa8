"""From a workload to a result: build the problem, plan it, execute the plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.results import RunResult
from mosaic.core.workload import Call, Expert, ExpertName, Workload
from mosaic.planning.costs import CostModel
from mosaic.planning.problem import Problem
from mosaic.planning.profiles import Profile
from mosaic.planning.schedulers.base import Scheduler
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller
from mosaic.runtime.loop import CommandLog, drive
from mosaic.runtime.static_plan import StaticPlan

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


def execute(
    plan: Plan,
    calls: Sequence[Call],
    backend: Backend,
    controllers: Sequence[Controller] = (),
    *,
    log: CommandLog | None = None,
    tick_s: float | None = None,
) -> RunResult:
    """Run a plan over its calls, and whatever else controllers want."""
    everybody = (StaticPlan(plan, calls), *controllers)
    return drive(backend, everybody, num_workers=plan.num_workers, log=log, tick_s=tick_s)

"""Plans the layers of a pipeline, each with the prices that were measured for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.workload import Call, Expert, ExpertName, NodeName
from mosaic.planning.costs import CostModel
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem, SessionModel
from mosaic.planning.profiles import Profile
from mosaic.planning.scheduler import Scheduler
from mosaic.planning.wrapped_costs import HostLoads, LoadedModels, RunCosts

CostFactory: TypeAlias = Callable[..., CostModel]
"""Builds a cost model from the keywords ``profile`` and ``num_calls_by_expert``, and the engines' ``options``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A way to place a node's experts: the number of workers per session, and the scheduler."""

    tp_degree: int
    scheduler: Scheduler | None = None
    """None: the run's scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlacements:
    """The possible placements of a node's experts; the one that is predicted to end first is taken."""

    placements: tuple[Placement, ...] = ()
    """Empty: at the experts' own tensor-parallel degree, by the run's scheduler."""
    costs: CostFactory | None = None
    """Prices the choice; None: the run's cost model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, with its problem and its scheduler."""

    plan: Plan
    problem: Problem
    scheduler: Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Turns the calls of a layer into a plan."""

    experts: tuple[Expert, ...]
    """The pool; a node may have other experts."""
    cluster: Cluster
    scheduler: Scheduler
    costs: CostFactory
    profiles: Mapping[NodeName, Profile]
    """Measured profiles, by node."""
    by_node: Mapping[NodeName, NodePlacements] = field(default_factory=dict)
    session_model: SessionModel | None = None
    host_loads: HostLoads | None = None
    """Prices loads from memory, if the machine keeps weights or engines; None: it keeps nothing."""

    def plan(
        self,
        calls: Sequence[Call],
        lost: Mapping[int, str] | None = None,
        saved: Plan | None = None,
        held: LoadedModels | None = None,
    ) -> Planned:
        """Plan calls of one layer on the workers that are not lost, or use a plan that was saved for them.

        Models loaded before count if the machine keeps them.

        Raises
        ------
        InfeasibleError
            If an expert cannot be placed.
        ProfileError
            If a profile does not cover an expert at a degree.
        PlanError
            If the saved plan is of other calls.
        """
        node = calls[0].key.node
        options = self.by_node.get(node, NodePlacements())
        costs = options.costs or self.costs
        choices: Sequence[Placement | None] = options.placements or (None,)
        plans = [self._plan(calls, choice, costs, lost or {}, saved, held) for choice in choices]
        return min(plans, key=lambda planned: planned.plan.predicted_makespan_s)

    def _plan(
        self,
        calls: Sequence[Call],
        placement: Placement | None,
        costs: CostFactory,
        lost: Mapping[int, str],
        saved: Plan | None,
        held: LoadedModels | None,
    ) -> Planned:
        problem = self.problem(calls, placement, costs)
        run_costs = RunCosts(problem.costs, lost=frozenset(lost), host_loads=self.host_loads)
        kept = held if held is not None and self.host_loads is not None else LoadedModels()
        problem = replace(problem, costs=run_costs, held=kept)
        scheduler = placement.scheduler if placement is not None and placement.scheduler else self.scheduler
        plan = scheduler.plan(problem) if saved is None else saved
        check_plan(plan, problem)
        return Planned(plan=plan, problem=problem, scheduler=scheduler)

    def degrees(self, node: NodeName, expert: Expert) -> tuple[int, ...]:
        """List the tensor-parallel degrees at which a node's expert may be placed."""
        options = self.by_node.get(node, NodePlacements())
        return tuple(placement.tp_degree for placement in options.placements) or (expert.tp_degree,)

    def problem(self, calls: Sequence[Call], placement: Placement | None, costs: CostFactory) -> Problem:
        """Build the problem of some calls for a scheduler.

        The problem also has the other experts of the pool, without calls, so that a scheduler's settings may name them.

        Raises
        ------
        ValueError
            If a call names an expert that is not in the pool.
        ProfileError
            If the profile does not cover an expert that has calls.
        """
        profile = self._profile(calls)
        num_calls: dict[ExpertName, int] = {}
        for call in calls:
            num_calls[call.expert] = num_calls.get(call.expert, 0) + 1
        pool = {expert.name: expert for expert in self.experts}
        if placement is not None:
            pool |= {name: placed(pool[name], placement.tp_degree) for name in num_calls if name in pool}
            pool = {**{name: pool[name] for name in num_calls if name in pool}, **pool}
        return Problem(
            experts=tuple(pool.values()),
            calls=tuple(calls),
            cluster=self.cluster,
            costs=costs(profile=profile, num_calls_by_expert=num_calls),
            lengths={name: profile.lengths(name) for name in num_calls if name in pool},
            length_samples={name: profile.length_sample(name) for name in num_calls if name in pool},
            session_model=self.session_model,
        )

    def _profile(self, calls: Sequence[Call]) -> Profile:
        """Merge the profiles of a layer's nodes."""
        nodes = dict.fromkeys(call.key.node for call in calls)
        profiles = list(dict.fromkeys(id(self.profiles[node]) for node in nodes))
        first = self.profiles[next(iter(nodes))]
        if len(profiles) == 1:
            return first
        entries = {entry.place: entry for node in nodes for entry in self.profiles[node].entries}
        return Profile(source=first.source, entries=tuple(entries.values()))


def placed(expert: Expert, tp_degree: int) -> Expert:
    """Return an expert for a tensor-parallel degree: one session over several workers, or replicas without a cap."""
    return replace(expert, tp_degree=tp_degree, max_replicas=None if tp_degree == 1 else 1)

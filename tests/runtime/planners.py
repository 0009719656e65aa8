"""Pipelines on the simulator, planned by affine prices that are the same for all."""

from collections.abc import Callable, Sequence
from typing import Any

from mosaic.core.plan import Plan
from mosaic.core.realization import Outcome
from mosaic.core.results import Inputs, RunResult
from mosaic.core.workload import Call, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.questions import Questions
from mosaic.planning.baselines import LeastLoaded
from mosaic.planning.costs import AffineCosts
from mosaic.runtime.controller import Controller
from mosaic.runtime.layers import Layers, OnPlan, ignore_plan
from mosaic.runtime.loop import drive
from mosaic.runtime.no_barrier import PlannedAhead
from mosaic.runtime.planner import Planner
from tests.answered_questions import make_question
from tests.factories import make_call, make_cluster, make_expert, make_profile
from tests.sim.cluster_runs import make_backend


def make_planner(graph: CallGraph, recruited: str = "ABCD", *, num_workers: int = 2, **changes: Any) -> Planner:
    """A planner for the experts of a graph and those that are recruited."""
    experts = (*(make_expert(name) for name in recruited), *graph.experts)
    profile = make_profile(*(expert.name for expert in experts))
    return Planner(
        **{
            "experts": experts,
            "cluster": make_cluster(num_workers),
            "scheduler": LeastLoaded(),
            "costs": AffineCosts,
            "profiles": {node.name: profile for node in graph.nodes},
            **changes,
        }
    )


def batch_of(num_questions: int, num_calls: int = 4) -> Workload:
    """Questions that A, B, C and D are asked in turn."""
    questions = tuple(make_question(f"q{i}", answer="A") for i in range(num_questions))
    calls = tuple(make_call(one.id, expert="ABCD"[slot], slot=slot) for one in questions for slot in range(num_calls))
    return Workload(name="test", questions=questions, calls=calls)


def run_layers(
    graph: CallGraph,
    batch: Workload,
    outcome: Callable[[Call, Inputs], Outcome],
    *,
    recruited: str = "ABCD",
    num_workers: int = 2,
    expected: Sequence[Sequence[Call]] | None = None,
    stops: Callable[[Questions], Sequence[Controller]] = lambda questions: (),
    plans: Sequence[Plan] = (),
    on_plan: OnPlan = ignore_plan,
    stays: bool = False,
) -> tuple[RunResult, Questions]:
    """Run a pipeline, with controllers that stop calls: without a barrier where expected calls are given."""
    planner, questions = make_planner(graph, recruited, num_workers=num_workers), Questions(batch, graph)
    layers = (
        Layers(questions, planner, plans, on_plan)
        if expected is None
        else PlannedAhead(questions=questions, planner=planner, expected=expected, on_plan=on_plan, stays=stays)
    )
    backend = make_backend(outcome, experts=planner.experts, cluster=make_cluster(num_workers))
    return drive(backend, [layers, *stops(questions)], num_workers=num_workers), questions

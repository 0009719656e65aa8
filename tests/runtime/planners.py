"""Planners by affine prices that are the same for all."""

from typing import Any

from mosaic.pipelines.call_graph import CallGraph
from mosaic.planning.baselines import LeastLoaded
from mosaic.planning.costs import AffineCosts
from mosaic.runtime.planner import Planner
from tests.factories import make_cluster, make_expert, make_profile


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

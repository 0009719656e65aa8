"""One session alone on the simulator: what an expert makes of its calls when nothing else runs."""

from collections.abc import Sequence
from dataclasses import replace

from mosaic.core.cluster import uniform_cluster
from mosaic.core.results import Inputs, RunResult
from mosaic.core.workload import Call, Expert
from mosaic.runtime.static_plan import execute
from mosaic.runtime.unpriced import even_plan
from sim.site import SimSite
from sim.world.world import World


def serve_alone(
    site: SimSite, expert: Expert, calls: Sequence[Call], world: World, earlier: Inputs | None = None
) -> RunResult:
    """Serve calls in one session of an expert, which has the workers that it spans to itself.

    Parameters
    ----------
    site
        Whose hardware and engine options count.
    expert
        Spans as many workers as its degree of tensor parallelism.
    calls
        In the order of the session.
    world
        Says how long responses are.
    earlier
        Responses that the calls read.
    """
    cluster = uniform_cluster(name="one session", num_workers=expert.tp_degree, gpu=site.hardware.gpu)
    alone = replace(site, cluster=cluster)
    plan = even_plan(calls, [expert], alone.places, cluster.num_workers)
    return execute(plan, calls, alone.backend_in(world, earlier or {}))

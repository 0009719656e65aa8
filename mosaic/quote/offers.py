"""What a batch takes on a number of GPUs of a kind: plans, simulated in every possible world."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from mosaic.core.addition import add_in_order
from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan, prediction_from_sample
from mosaic.core.workload import Expert
from mosaic.planning.profiles import Profile, ProfileEntry, SweepPoint, fit_session
from mosaic.planning.session_model import Request
from mosaic.quote.draws import Batch, Draw
from mosaic.quote.forecast import Simulator
from mosaic.quote.interval import spread_of
from mosaic.quote.sample import PilotSample

SHARES = (8, 2, 1)
"""Experts are priced by simulated sessions of an eighth, a half and all of the calls that are left to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTime:
    """A plan's time, before it is calibrated."""

    central_s: float
    """Median over worlds of the pilot's own lengths."""
    spread: float
    """Standard deviation of its logarithm over resampled pilots."""
    merge_s: float
    """Of it, behind the experts."""
    load_frac: float
    """Share of the workers' time in which they load an expert."""


def plan_time(
    plan: Plan, batch: Batch, simulator: Simulator, cluster: Cluster, central: Sequence[Draw], others: Sequence[Draw]
) -> PlanTime:
    """Simulate a plan in all worlds."""
    merges = [_merge_s(batch, draw, simulator, cluster) for draw in central]
    times = [
        simulator.plan_s(plan, draw.requests, cluster) + merge for draw, merge in zip(central, merges, strict=True)
    ]
    elsewhere = [total_s(plan, batch, simulator, cluster, draw) for draw in others]
    central_s = median(times)
    loads_s = add_in_order(
        simulator.loads.load_s(simulator.experts[session.expert], len(session.workers)) * len(session.workers)
        for session in plan.sessions
    )
    return PlanTime(
        central_s=central_s,
        spread=spread_of(elsewhere) if len(elsewhere) > 1 else 0.0,
        merge_s=fmean(merges),
        load_frac=loads_s * simulator.factors.load / (central_s * cluster.num_workers),
    )


def total_s(plan: Plan, batch: Batch, simulator: Simulator, cluster: Cluster, draw: Draw) -> float:
    """Simulate a plan, and the aggregator behind it, in a world."""
    return simulator.plan_s(plan, draw.requests, cluster) + _merge_s(batch, draw, simulator, cluster)


def _merge_s(batch: Batch, draw: Draw, simulator: Simulator, cluster: Cluster) -> float:
    if batch.aggregator is None:
        return 0.0
    return simulator.merge_s(batch.aggregator, draw.merged, cluster, batch.aggregator_degrees)


def simulated_profile(
    sample: PilotSample, central: Draw, batch: Batch, simulator: Simulator, cluster: Cluster
) -> Profile:
    """Price experts for the planner, by simulated sessions of the sizes that it will choose between."""
    entries = []
    for name, lengths in sample.by_expert.items():
        requests = [central.requests[call.key] for call in batch.calls if call.expert == name]
        if requests:
            entries.append(_entry(simulator.experts[name], requests, lengths, simulator, cluster))
    return Profile(source="simulated sessions of the pilot's lengths", entries=tuple(entries))


def _entry(
    expert: Expert, requests: Sequence[Request], lengths: Sequence[int], simulator: Simulator, cluster: Cluster
) -> ProfileEntry:
    sizes = dict.fromkeys(max(1, len(requests) // share) for share in SHARES)
    degree = expert.tp_degree
    points = tuple(
        SweepPoint(
            num_calls=size,
            session_s=simulator.serve_s(expert, requests[:size], cluster, degree),
            output_tokens=sum(request.output_tokens for request in requests[:size]),
        )
        for size in (sizes if len(sizes) > 1 else (1, 2))
    )
    sample = tuple(sorted(lengths))
    return ProfileEntry(
        expert=expert.name,
        gpu=cluster.workers[0].gpu.name,
        tp_degree=degree,
        load_s=simulator.loads.load_s(expert, degree) * simulator.factors.load,
        fit=fit_session(points),
        lengths=prediction_from_sample(sample),
        points=points,
        output_tokens=sample,
        kv_budget_tokens=expert.kv_budget_tokens,
    )

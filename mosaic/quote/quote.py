"""From a pilot to a quote: plans for each number of GPUs of each kind, in all worlds that the pilot leaves possible."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mosaic.core.addition import add_in_order
from mosaic.core.cluster import Cluster, Gpu, uniform_cluster
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan
from mosaic.planning.ilp.ilp import Ilp
from mosaic.planning.profiles import Profile
from mosaic.quote.asking import Asked
from mosaic.quote.best import Tried, try_plans
from mosaic.quote.draws import Batch, Draw, draw_worlds
from mosaic.quote.forecast import Simulator
from mosaic.quote.interval import CALIBRATION, Calibration, p90_of
from mosaic.quote.offers import plan_time, simulated_profile
from mosaic.quote.prices import Price
from mosaic.quote.quotation import Offer, Quotation
from mosaic.runtime.job import Job
from mosaic.runtime.planner import Planner

PLAN_LIMIT_S = 0.5
"""For each plan behind a quote: to prove optima for eight numbers of GPUs takes longer than to simulate them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of GPU that a quote is asked for."""

    gpu: Gpu
    simulator: Simulator
    hardware_error: float
    """Standard deviation of the logarithm of real over simulated seconds."""
    hardware_source: str
    """Where that was measured, or that it was not."""


def quote(
    job: Job,
    asked: Asked,
    kinds: Sequence[Kind],
    sizes: Sequence[int],
    *,
    prices: Mapping[str, Price] | None = None,
    deadline_s: float | None = None,
    calibration: Calibration = CALIBRATION,
    seed: int = 0,
) -> Quotation:
    """Quote what is left of a batch after its pilot.

    Parameters
    ----------
    job
        The batch, with the scheduler and the costs that plan it.
    asked
        Its pilot.
    kinds, sizes
        GPUs, and how many.
    prices
        By kind; dollars for an hour of one GPU.
    deadline_s
        Seconds from now.
    calibration
        Of the bootstrap.
    seed
        Of the worlds that are drawn.

    Raises
    ------
    InfeasibleError
        If no number of GPUs holds a plan.
    """
    offers: list[Offer] = []
    notes: list[str] = []
    for kind in kinds:
        made = [*_offers(job, asked, kind, sizes, prices or {}, calibration, seed, notes)]
        offers += made
        notes.append(f"hardware {kind.gpu.name}: {kind.hardware_source}")
    if not offers:
        raise InfeasibleError(f"quote: no plan exists for any number of GPUs: {'; '.join(notes)}")
    busy = _busy_frac(asked, kinds[0], seed)
    notes.append(f"calibrated: {calibration.source}")
    return Quotation(
        workload=job.workload.name,
        num_calls=len(job.graph.first_calls(job.workload)),
        num_pilot_calls=len(job.graph.first_calls(job.workload)) - len(asked.batch.calls),
        num_expected_merges=asked.batch.num_open_questions * asked.sample.needed_frac,
        offers=tuple(offers),
        deadline_s=deadline_s,
        notes=tuple(notes),
        busy_frac=busy,
        prices={kind.gpu.name: prices[kind.gpu.name] for kind in kinds if prices and kind.gpu.name in prices},
    )


def _offers(
    job: Job,
    asked: Asked,
    kind: Kind,
    sizes: Sequence[int],
    prices: Mapping[str, Price],
    calibration: Calibration,
    seed: int,
    notes: list[str],
) -> Sequence[Offer]:
    batch, simulator, name = asked.batch, kind.simulator, kind.gpu.name
    central, others = draw_worlds(batch, asked.sample, simulator.experts, seed=seed)
    of_size = partial(uniform_cluster, name="quote", gpu=kind.gpu)
    largest = of_size(num_workers=max(max(sizes), max(expert.tp_degree for expert in job.experts)))
    profile = simulated_profile(asked.sample, central[0], batch, simulator, largest)
    offers = []
    for size in sizes:
        cluster = of_size(num_workers=size)
        try:
            tried = plans_for(job, batch, profile, simulator, cluster, central)
        except InfeasibleError as error:
            notes.append(f"{size} x {name}: {error}")
            continue
        best = plan_time(tried[0].planned.plan, batch, simulator, cluster, central, others)
        price = prices.get(name)
        offers.append(
            Offer(
                kind=name,
                num_gpus=size,
                plan=tried[0].name,
                p50_s=best.central_s,
                p90_s=p90_of(best.central_s, best.spread, calibration, kind.hardware_error),
                p50_s_by_plan={one.name: one.seconds for one in tried},
                aggregator_s=best.merge_s,
                load_frac=best.load_frac,
                pilot_spread=best.spread,
                hardware_error=kind.hardware_error,
                dollars_per_hour=None if price is None else price.dollars_per_hour,
            )
        )
    return offers


def plans_for(
    job: Job, batch: Batch, profile: Profile, simulator: Simulator, cluster: Cluster, central: Sequence[Draw]
) -> tuple[Tried, ...]:
    """Plan what is left of a batch on a cluster in every way that there is, the best first.

    Raises
    ------
    InfeasibleError
        If no plan exists.
    """

    def seconds_of(plan: Plan) -> float:
        return plan_time(plan, batch, simulator, cluster, central, ()).central_s

    return try_plans(planner_for(job, profile, cluster), batch.calls, profile, seconds_of)


def planner_for(job: Job, profile: Profile, cluster: Cluster) -> Planner:
    """Plan with a quote's profile on a cluster; the ILP gets half a second."""
    scheduler = job.scheduler
    if isinstance(scheduler, Ilp):
        scheduler = replace(scheduler, time_limit_s=min(scheduler.time_limit_s, PLAN_LIMIT_S))
    return Planner(
        experts=job.experts,
        cluster=cluster,
        scheduler=scheduler,
        costs=job.costs,
        profiles=dict.fromkeys(job.graph.first_nodes, profile),
        session_model=job.session_model,
    )


def _busy_frac(asked: Asked, kind: Kind, seed: int) -> dict[str, float]:
    """Say which share of the serving seconds each expert takes, with one copy of each."""
    simulator, batch = kind.simulator, asked.batch
    world: Draw = draw_worlds(batch, asked.sample, simulator.experts, seed=seed)[0][0]
    busy_s: defaultdict[str, float] = defaultdict(float)
    for name in dict.fromkeys(call.expert for call in batch.calls):
        expert = simulator.experts[name]
        cluster = uniform_cluster(name="quote", num_workers=expert.tp_degree, gpu=kind.gpu)
        requests = [world.requests[call.key] for call in batch.calls if call.expert == name]
        busy_s[name] += simulator.serve_s(expert, requests, cluster, expert.tp_degree) * expert.tp_degree
    if batch.aggregator is not None and world.merged:
        cluster = uniform_cluster(name="quote", num_workers=1, gpu=kind.gpu)
        busy_s[f"{batch.aggregator.name} (aggregator)"] += simulator.serve_s(batch.aggregator, world.merged, cluster, 1)
    total_s = add_in_order(busy_s.values())
    return {name: seconds / total_s for name, seconds in busy_s.items()}

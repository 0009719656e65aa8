"""Computes a quote: time and cost of a batch on each number of GPUs of each kind, and the cheapest in time.

P50 is the median of the possible worlds after the pilot; P90 is calibrated on pilots with known outcomes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import exp, sqrt
from statistics import fmean
from typing import Any

from mosaic.core.addition import add_in_order
from mosaic.core.checks import NotNegative, checked
from mosaic.core.cluster import Cluster, Gpu, uniform_cluster
from mosaic.core.errors import InfeasibleError
from mosaic.planning.profiles import Profile
from mosaic.planning.program.schedulers import Ilp
from mosaic.quote.forecast import Simulator, load_frac, merge_s, simulated_profile, spread_of, total_s, try_plans
from mosaic.quote.prices import HOUR_S, Price, duration
from mosaic.quote.worlds import Batch, World, draw_worlds
from mosaic.runtime.job import Job
from mosaic.runtime.planner import Planner

UNSEEN = 0.2
"""Spread of the logarithm that is added, in squares, to every bootstrap's."""
NORMAL_P90 = 1.2816
"""Of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
@checked("calibration: ")
class Calibration:
    """How far above P50 nine of ten pilots with known outcome ended."""

    p90_score: NotNegative
    """In units of the widened spread."""
    source: str


CALIBRATION = Calibration(0.905, "260 simulated pilots of five workloads, results/quote/quotes.md")
"""By `experiments/study.py quotes`; UNSEEN was chosen on its seeds 0 to 15."""


def widened(spread: float) -> float:
    """Add the uncertainty that a bootstrap lacks: a pilot that happens to have no long call would seem certain."""
    return sqrt(spread**2 + UNSEEN**2)


def p90_of(p50_s: float, spread: float, calibration: Calibration, hardware_error: float = 0.0) -> float:
    """Return the time by which nine of ten batches have ended, in seconds.

    Parameters
    ----------
    p50_s
        From the pilot's own lengths.
    spread
        Of the logarithm of the time, by bootstrap.
    calibration
        Of the bootstrap.
    hardware_error
        Standard deviation of the logarithm of real over simulated seconds, if measured. It adds to the spread in
        squares.
    """
    above = calibration.p90_score * widened(spread)
    return p50_s * exp(sqrt(above**2 + (NORMAL_P90 * hardware_error) ** 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A number of GPUs of a kind."""

    kind: str
    num_gpus: int
    plan: str
    """The best of the simulated plans."""
    p50_s: float
    p90_s: float
    """The batch ends by then with a probability of 90%, calibrated on pilots with known outcome."""
    p50_s_by_plan: Mapping[str, float]
    """Of all plans, the best first; a plan without a place for an expert is missing."""
    aggregator_s: float
    load_frac: float
    pilot_spread: float
    """Standard deviation of the logarithm of the time, due to the pilot's size."""
    hardware_error: float
    """The same of real over simulated seconds."""
    dollars_per_hour: float | None = None
    """Of one GPU; None: not known."""

    @property
    def p50_gpu_hours(self) -> float:
        """Half of such batches take less."""
        return self.num_gpus * self.p50_s / HOUR_S

    @property
    def p90_gpu_hours(self) -> float:
        """Nine of ten such batches take less."""
        return self.num_gpus * self.p90_s / HOUR_S

    @property
    def p50_dollars(self) -> float | None:
        """None: no price is known."""
        return None if self.dollars_per_hour is None else self.p50_gpu_hours * self.dollars_per_hour

    @property
    def p90_dollars(self) -> float | None:
        """None: no price is known."""
        return None if self.dollars_per_hour is None else self.p90_gpu_hours * self.dollars_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotation:
    """All offers for a batch."""

    workload: str
    num_calls: int
    """Of the first layer."""
    num_pilot_calls: int
    """Of these, the calls already sent, whose answers are kept."""
    num_expected_merges: float
    """Calls of the aggregator that are still expected."""
    offers: tuple[Offer, ...]
    deadline_s: float | None = None
    notes: tuple[str, ...] = ()
    busy_frac: Mapping[str, float] | None = None
    """Share of the serving seconds of each expert and the aggregator, with one copy of each."""
    prices: Mapping[str, Price] | None = None

    @property
    def cheapest(self) -> Offer | None:
        """The cheapest offer whose P90 meets the deadline, by price, or by GPU-hours if a price is missing.

        None: no offer meets it.
        """
        in_time = [offer for offer in self.offers if self.deadline_s is None or offer.p90_s <= self.deadline_s]
        if not in_time:
            return None
        if any(offer.p50_dollars is None for offer in self.offers):
            return min(in_time, key=lambda offer: (offer.p50_gpu_hours, offer.p90_s))
        return min(in_time, key=lambda offer: (offer.p50_dollars or 0.0, offer.p90_s))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        derived = ("p50_gpu_hours", "p90_gpu_hours", "p50_dollars", "p90_dollars")
        offers = [asdict(offer) | {name: getattr(offer, name) for name in derived} for offer in self.offers]
        best = self.cheapest
        dates = {kind: price.as_of.isoformat() if price.as_of else None for kind, price in (self.prices or {}).items()}
        return asdict(self) | {
            "offers": offers,
            "cheapest": None if best is None else {"kind": best.kind, "num_gpus": best.num_gpus},
            "prices": {
                kind: {"dollars_per_hour": price.dollars_per_hour, "as_of": dates[kind]}
                for kind, price in (self.prices or {}).items()
            },
        }


def describe(quotation: Quotation, *, explain: bool = False) -> str:
    """Write a quote as text: one line per offer."""
    left = quotation.num_calls - quotation.num_pilot_calls
    merges = (
        f" and some {quotation.num_expected_merges:,.0f} of the aggregator" if quotation.num_expected_merges else ""
    )
    lines = [
        f"quote for {quotation.workload}: {left:,} calls{merges} are left, {quotation.num_pilot_calls:,} are done",
        "",
        f"{'GPUs':<18}{'P50':>10}{'P90':>10}{'GPU-hours':>11}{'price':>10}{'round robin':>13}{'data parallel':>15}"
        "  plan",
    ]
    best = quotation.cheapest
    for offer in quotation.offers:
        price = "-" if offer.p50_dollars is None else f"${offer.p50_dollars:,.2f}"
        lines.append(
            f"{f'{offer.num_gpus} x {offer.kind}':<18}{duration(offer.p50_s):>10}{duration(offer.p90_s):>10}"
            f"{offer.p50_gpu_hours:>11.2f}{price:>10}{_p50(offer, 'round_robin'):>13}"
            f"{_p50(offer, 'data_parallel'):>15}  {offer.plan}{'  <' if offer == best else ''}"
        )
    lines += ["", _verdict(quotation, best)]
    if explain:
        lines += ["", *_explanation(quotation)]
    lines += [*quotation.notes] if explain else []
    return "\n".join(lines) + "\n"


def _p50(offer: Offer, plan: str) -> str:
    return duration(offer.p50_s_by_plan[plan]) if plan in offer.p50_s_by_plan else "-"


def _verdict(quotation: Quotation, best: Offer | None) -> str:
    if best is None:
        fastest = min(quotation.offers, key=lambda offer: offer.p90_s)
        return (
            f"nothing meets the deadline of {duration(quotation.deadline_s or 0.0)}: the fastest, {fastest.num_gpus} x "
            f"{fastest.kind}, has P90 {duration(fastest.p90_s)}"
        )
    what = "cheapest" if quotation.deadline_s is None else f"cheapest with P90 within {duration(quotation.deadline_s)}"
    by = "price" if best.p50_dollars is not None else "GPU-hours, as no price is given for every kind"
    return f"< {what}, by {by}: {best.num_gpus} x {best.kind}"


def _explanation(quotation: Quotation) -> Sequence[str]:
    busy = sorted((quotation.busy_frac or {}).items(), key=lambda item: -item[1])
    lines = ["who dominates: " + ", ".join(f"{name} {share:.0%}" for name, share in busy) + " of the serving seconds"]
    for kind in dict.fromkeys(offer.kind for offer in quotation.offers):
        own = [offer for offer in quotation.offers if offer.kind == kind]
        earned = [f"{later.num_gpus}: {_gain(before.p50_s - later.p50_s)}" for before, later in pairwise(own)]
        if earned:
            lines.append(f"what a further {kind} earns: {', '.join(earned)}")
    first = quotation.offers[0]
    lines.append(
        f"what is unknown: from {quotation.num_pilot_calls:,} calls of the pilot "
        f"{min(o.pilot_spread for o in quotation.offers):.0%} to {max(o.pilot_spread for o in quotation.offers):.0%} "
        f"(one standard deviation), of the hardware {first.hardware_error:.0%}"
    )
    for kind, price in (quotation.prices or {}).items():
        dated = "as given" if price.as_of is None else f"of {price.as_of.isoformat()}"
        lines.append(f"price of {kind}: ${price.dollars_per_hour:g} an hour, {dated}")
    return lines


def _gain(seconds: float) -> str:
    return f"{'-' if seconds < 0 else ''}{duration(abs(seconds))}"


PLAN_LIMIT_S = 2.0
"""Time limit of each plan of a quote: proving optima for eight numbers of GPUs takes longer than simulating them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of GPU that a quote is for."""

    gpu: Gpu
    simulator: Simulator
    hardware_error: float
    """Standard deviation of the logarithm of real over simulated seconds."""
    hardware_source: str
    """Where it was measured, or a note that it was not."""


def quote(
    job: Job,
    batch: Batch,
    kinds: Sequence[Kind],
    sizes: Sequence[int],
    *,
    prices: Mapping[str, Price] | None = None,
    deadline_s: float | None = None,
) -> Quotation:
    """Quote the rest of a batch after its pilot.

    Parameters
    ----------
    job
        With the scheduler and the costs for its plan.
    batch
        The results of its pilot, and the remaining calls.
    kinds, sizes
        Kinds and numbers of GPUs.
    prices
        By kind; dollars for an hour of one GPU.
    deadline_s
        Seconds from now.

    Raises
    ------
    InfeasibleError
        If no number of GPUs holds a plan.
    """
    offers: list[Offer] = []
    notes: list[str] = []
    busy: list[Mapping[str, float]] = []
    for kind in kinds:
        central, others = draw_worlds(batch, kind.simulator.experts)
        offers += _offers(job, batch, kind, sizes, prices or {}, central, others, notes)
        notes.append(f"hardware {kind.gpu.name}: {kind.hardware_source}")
        busy.append(_busy_frac(batch, kind.simulator, central[0]))
    if not offers:
        raise InfeasibleError(f"quote: no plan exists for any number of GPUs: {'; '.join(notes)}")
    notes.append(f"calibrated: {CALIBRATION.source}")
    return Quotation(
        workload=job.workload.name,
        num_calls=len(job.graph.first_calls(job.workload)),
        num_pilot_calls=len(job.graph.first_calls(job.workload)) - len(batch.calls),
        num_expected_merges=batch.num_open_questions * batch.needed_frac,
        offers=tuple(offers),
        deadline_s=deadline_s,
        notes=tuple(notes),
        busy_frac=busy[0],
        prices={kind.gpu.name: prices[kind.gpu.name] for kind in kinds if prices and kind.gpu.name in prices},
    )


def _offers(
    job: Job,
    batch: Batch,
    kind: Kind,
    sizes: Sequence[int],
    prices: Mapping[str, Price],
    central: Sequence[World],
    others: Sequence[World],
    notes: list[str],
) -> Sequence[Offer]:
    simulator, name = kind.simulator, kind.gpu.name
    profile = simulated_profile(batch, central[0], simulator)
    offers = []
    for size in sizes:
        cluster = uniform_cluster(name="quote", num_workers=size, gpu=kind.gpu)
        try:
            tried = try_plans(planner_for(job, profile, cluster), batch, profile, simulator, central)
        except InfeasibleError as error:
            notes.append(f"{size} x {name}: {error}")
            continue
        plan, p50_s = tried[0].planned.plan, tried[0].seconds
        spread = spread_of([total_s(plan, batch, simulator, world) for world in others])
        price = prices.get(name)
        offers.append(
            Offer(
                kind=name,
                num_gpus=size,
                plan=tried[0].name,
                p50_s=p50_s,
                p90_s=p90_of(p50_s, spread, CALIBRATION, kind.hardware_error),
                p50_s_by_plan={one.name: one.seconds for one in tried},
                aggregator_s=fmean(merge_s(batch, world, simulator, size) for world in central),
                load_frac=load_frac(plan, simulator, p50_s),
                pilot_spread=spread,
                hardware_error=kind.hardware_error,
                dollars_per_hour=None if price is None else price.dollars_per_hour,
            )
        )
    return offers


def planner_for(job: Job, profile: Profile, cluster: Cluster) -> Planner:
    """Make a planner with a quote's profile on a cluster; the ILP has two seconds, and mostly needs a tenth of one."""
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


def _busy_frac(batch: Batch, simulator: Simulator, world: World) -> dict[str, float]:
    """Compute the share of the serving seconds of each expert, with one copy of each."""
    busy_s: dict[str, float] = {}
    for name in dict.fromkeys(call.expert for call in batch.calls):
        expert = simulator.experts[name]
        requests = [world.requests[call.key] for call in batch.calls if call.expert == name]
        busy_s[name] = simulator.serve_s(expert, requests, expert.tp_degree) * expert.tp_degree
    if batch.aggregator is not None and world.merged:
        busy_s[f"{batch.aggregator.name} (aggregator)"] = simulator.serve_s(batch.aggregator, world.merged, 1)
    total_s = add_in_order(busy_s.values())
    return {name: seconds / total_s for name, seconds in busy_s.items()}

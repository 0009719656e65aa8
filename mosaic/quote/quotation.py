"""A quote: what a batch takes and costs on each number of GPUs, and which is the cheapest that is in time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from mosaic.quote.prices import Price

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A number of GPUs of a kind."""

    kind: str
    num_gpus: int
    plan: str
    """The best of the plans that were simulated."""
    p50_s: float
    p90_s: float
    """The batch ends no later with a probability of 90%, by pilots whose truth is known."""
    p50_s_by_plan: Mapping[str, float]
    """Of all of them, the best first; one that has no place for an expert is missing."""
    aggregator_s: float
    load_frac: float
    pilot_spread: float
    """Standard deviation of the logarithm of the time, from the pilot's size."""
    hardware_error: float
    """The same of real over simulated seconds."""
    dollars_per_hour: float | None = None
    """Of one GPU; None: no price is known."""

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
    """Of them asked already, and kept."""
    num_expected_merges: float
    """Calls of the aggregator that are expected yet."""
    offers: tuple[Offer, ...]
    deadline_s: float | None = None
    notes: tuple[str, ...] = ()
    busy_frac: Mapping[str, float] | None = None
    """Share of all serving seconds that each expert takes, one copy of each, and the aggregator."""
    prices: Mapping[str, Price] | None = None

    @property
    def cheapest(self) -> Offer | None:
        """The cheapest offer whose P90 meets the deadline, by price, or by GPU-hours where a price is missing.

        None: nothing meets it.
        """
        in_time = [offer for offer in self.offers if self.deadline_s is None or offer.p90_s <= self.deadline_s]
        if not in_time:
            return None
        if any(offer.p50_dollars is None for offer in self.offers):
            return min(in_time, key=lambda offer: (offer.p50_gpu_hours, offer.p90_s))
        return min(in_time, key=lambda offer: (offer.p50_dollars or 0.0, offer.p90_s))

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
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
    """Write a quote as text: a line an offer."""
    left = quotation.num_calls - quotation.num_pilot_calls
    merges = (
        f" and some {quotation.num_expected_merges:,.0f} of the aggregator" if quotation.num_expected_merges else ""
    )
    lines = [
        f"quote for {quotation.workload}: {left:,} calls{merges} are left, {quotation.num_pilot_calls:,} were asked",
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


def duration(seconds: float) -> str:
    """Write a duration in the largest two units.

    Examples
    --------
    >>> duration(42.3), duration(600), duration(7260), duration(90000)
    ('42.3 s', '10:00 min', '2:01 h', '1 d 1 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < HOUR_S:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
    minutes = int(seconds // 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}:{minutes % 60:02} h"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"

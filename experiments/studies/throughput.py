"""Throughput against shard size: one session on its own worker, on the simulator, and the reason for the curve.

Reasons are measured: one limit of the engine at a time is relaxed, and the same calls run again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

from mosaic.comparison.estimate import Estimate, estimate
from mosaic.config.job import simulated
from mosaic.core.checks import require, require_count
from mosaic.core.cluster import uniform_cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError
from mosaic.core.kv_memory import kv_capacity_tokens
from mosaic.core.lengths import Empirical
from mosaic.core.plan import Session, unpriced_plan
from mosaic.core.results import CallRecord, CallStatus, SessionRecord
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, ExpertName
from mosaic.runtime.static_plan import execute
from sim.site import SimSite

SHARD_SIZES = tuple(2**power for power in range(3, 12))
"""Calls of a session, 8 to 2048."""
NUM_REPEATS = 4
"""Sessions per size with calls of their own."""
MIN_CALLS = 2048
"""Of all sessions of a size: small shards are repeated more often, as their throughput varies most."""
SMALL_SHARD = 128
"""Calls of the shard at which the limits are relaxed as well."""
TAIL_FRAC = 0.1
"""The tail of a session starts when fewer than this share of its calls is left."""


class Relaxed(StrEnum):
    """The limit that is lifted to see what it costs."""

    NOTHING = "nothing"
    SEQUENCES = "twice the sequences"
    KV_CACHE = "twice the KV cache"
    BOTH = "twice the sequences and the KV cache"
    LENGTHS = "calls of equal length"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputPoint:
    """One session, its load left out."""

    expert: ExpertName
    shard_size: int
    """Calls."""
    repeat: int
    relaxed: Relaxed
    session_s: float
    output_tok_per_s: float
    mean_in_flight: float
    """Calls admitted and unfinished, over the session; those that were preempted and wait again are among them."""
    mean_held_tokens: float
    """KV tokens that a call in flight holds, on average over the session."""
    tail_frac: float
    """Share of the session in which fewer than a tenth of the calls is left."""
    num_preemptions: int
    kv_capacity_tokens: int
    """KV cache of the session."""
    max_num_seqs: int
    """Most calls that may run at a time."""

    def __post_init__(self) -> None:
        require_count(self.shard_size, "throughput: shard_size", at_least=1)
        require(self.session_s > 0, "throughput: session_s", "above 0", self.session_s)


def throughput_points(
    overrides: Sequence[str],
    expert: ExpertName,
    *,
    shard_sizes: Sequence[int] = SHARD_SIZES,
    num_repeats: int = NUM_REPEATS,
    min_calls: int = MIN_CALLS,
) -> tuple[ThroughputPoint, ...]:
    """Measure sessions of one expert on calibration calls; those of two sizes, the largest among them, also relaxed.

    Parameters
    ----------
    overrides
        Of the configuration: workload, pool and what else differs from the defaults.
    expert
        Of the pool.
    shard_sizes, num_repeats, min_calls
        Sizes in calls; every size is repeated ``num_repeats`` times and until it has ``min_calls`` calls.

    Raises
    ------
    ValueError
        If the pool does not have the expert, or a size or number is out of range.
    """
    for size in shard_sizes:
        require_count(size, "throughput: shard_sizes", at_least=1)
    require(len(shard_sizes) > 0, "throughput: shard_sizes", "at least one size", shard_sizes)
    require_count(num_repeats, "throughput: num_repeats", at_least=1)
    bench = _bench(overrides, expert)
    points: list[ThroughputPoint] = []
    first = 0
    for size in sorted(set(shard_sizes)):
        is_largest = size == max(shard_sizes)
        relaxed = tuple(Relaxed) if is_largest or size == SMALL_SHARD else (Relaxed.NOTHING,)
        for repeat in range(num_repeats if is_largest else max(num_repeats, -(-min_calls // size))):
            calls = bench.calls(first, size)
            first += size
            points += [bench.serve(calls, repeat, limit) for limit in relaxed]
    return tuple(points)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """An expert with the workers of one session to itself."""

    site: SimSite
    expert: Expert
    prompts: tuple[int, ...]
    """Prompt tokens of the batch's calls, repeated where more are needed."""

    def calls(self, first: int, number: int) -> tuple[Call, ...]:
        """Number calls from ``first``; no two sessions share one, so they share no luck."""
        name = self.expert.name
        return tuple(
            Call(CallKey(f"throughput-{name}-{i}", PROPOSE, 0), name, self.prompts[i % len(self.prompts)])
            for i in range(first, first + number)
        )

    def serve(self, calls: Sequence[Call], repeat: int, relaxed: Relaxed) -> ThroughputPoint:
        """Run one session with a limit relaxed."""
        site = self._relax(relaxed)
        workers = tuple(range(self.expert.tp_degree))
        shard = tuple(call.key for call in calls)
        session = Session(id=0, expert=self.expert.name, node=PROPOSE, workers=workers, shard=shard)
        plan = unpriced_plan([session], num_workers=len(workers))
        result = execute(plan, calls, site.backend_in(site.calibration_world))
        return throughput_point(
            result.sessions[0],
            result.calls,
            repeat=repeat,
            relaxed=relaxed,
            kv_capacity_tokens=self._kv_tokens(site.settings),
            max_num_seqs=site.settings.max_num_seqs,
        )

    def _kv_tokens(self, settings: EngineOptions) -> int:
        return kv_capacity_tokens(self.expert, self.site.cluster.workers, settings)

    def _relax(self, relaxed: Relaxed) -> SimSite:
        settings, world = self.site.settings, self.site.calibration_world
        if relaxed in (Relaxed.SEQUENCES, Relaxed.BOTH):
            settings = replace(settings, max_num_seqs=2 * settings.max_num_seqs)
        if relaxed in (Relaxed.KV_CACHE, Relaxed.BOTH):
            settings = replace(settings, kv_cache_tokens=2 * self._kv_tokens(settings))
        if relaxed is Relaxed.LENGTHS:
            name = self.expert.name
            equal = Empirical(sample=(round(world.lengths[name].mean),))
            world = replace(world, lengths={**world.lengths, name: equal})
        return replace(self.site, settings=settings, calibration_world=world)


def _bench(overrides: Sequence[str], name: ExpertName) -> _Bench:
    kept = [override for override in overrides if not override.startswith("aggregator=")]
    job, site = simulated([*kept, "aggregator=none"])
    known = {expert.name: expert for expert in job.experts}
    require(name in known, "throughput: expert", f"one of {sorted(known)}", name)
    expert = known[name]
    alone = uniform_cluster(name="one session", num_workers=expert.tp_degree, gpu=site.hardware.gpu)
    prompts = tuple(call.prompt_tokens for call in job.workload.calls)
    return _Bench(site=replace(site, cluster=alone), expert=expert, prompts=prompts)


def throughput_point(
    session: SessionRecord,
    calls: Sequence[CallRecord],
    *,
    repeat: int,
    relaxed: Relaxed,
    kv_capacity_tokens: int,
    max_num_seqs: int,
) -> ThroughputPoint:
    """Measure a session by its records.

    Raises
    ------
    BackendError
        If a call did not finish.
    """
    spans: list[tuple[CallRecord, float]] = []
    for call in calls:
        if call.status is not CallStatus.FINISHED or call.admitted_ts is None or call.finished_ts is None:
            raise BackendError(f"throughput: every call must finish, {call.key} did not ({call.status.value})")
        spans.append((call, call.finished_ts - call.admitted_ts))
    session_s = session.end_ts - session.start_ts
    in_flight_s = sum(seconds for _, seconds in spans)
    # NOTE: a call grows by one token per step from its prompt, so on average it holds half of its output.
    held = sum((call.prompt_tokens + call.output_tokens / 2) * seconds for call, seconds in spans)
    return ThroughputPoint(
        expert=session.expert,
        shard_size=len(calls),
        repeat=repeat,
        relaxed=relaxed,
        session_s=session_s,
        output_tok_per_s=session.output_tokens / session_s,
        mean_in_flight=in_flight_s / session_s,
        mean_held_tokens=held / in_flight_s,
        tail_frac=(session.end_ts - _tail_start_ts(calls)) / session_s,
        num_preemptions=sum(call.num_preemptions for call in calls),
        kv_capacity_tokens=kv_capacity_tokens,
        max_num_seqs=max_num_seqs,
    )


def _tail_start_ts(calls: Sequence[CallRecord]) -> float:
    """When fewer than ``TAIL_FRAC`` of the calls are left."""
    ends_ts = sorted(call.finished_ts for call in calls if call.finished_ts is not None)
    num_left = next(left for left in range(len(ends_ts), -1, -1) if left < TAIL_FRAC * len(ends_ts))
    return ends_ts[len(ends_ts) - num_left - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeMean:
    """Sessions of one size, with nothing relaxed."""

    shard_size: int
    rate: Estimate
    """Output tokens per second, over sessions."""
    mean_in_flight: float
    tail_frac: float


def size_means(points: Sequence[ThroughputPoint]) -> tuple[SizeMean, ...]:
    """Average an expert's sessions by size, smallest first."""
    plain = [point for point in points if point.relaxed is Relaxed.NOTHING]
    means = []
    for size in sorted({point.shard_size for point in plain}):
        group = [point for point in plain if point.shard_size == size]
        means.append(
            SizeMean(
                shard_size=size,
                rate=estimate([point.output_tok_per_s for point in group]),
                mean_in_flight=fmean(point.mean_in_flight for point in group),
                tail_frac=fmean(point.tail_frac for point in group),
            )
        )
    return tuple(means)


def throughput_rows(curves: Mapping[str, Mapping[str, Sequence[ThroughputPoint]]]) -> list[tuple[object, ...]]:
    """Every session measured, those with a limit relaxed among them, with a head."""
    names = tuple(ThroughputPoint.__dataclass_fields__)
    rows = [
        (pool, *(getattr(point, name) for name in names))
        for pool, experts in curves.items()
        for points in experts.values()
        for point in points
    ]
    return [("pool", *names), *rows]

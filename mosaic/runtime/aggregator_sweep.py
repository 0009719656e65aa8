"""Measures what the aggregator costs, on the calls that calibration questions leave to it.

NOTE: Its replicas serve in waves, all at once, and a wave lasts as long as the replica with the longest answers. With
a heavy tail that is far above the mean of one session, so a wave is what is measured, and what a replica's price stands
for.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

from mosaic.core.checks import require
from mosaic.core.cluster import Cluster
from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Session, prediction_from_sample, unpriced_plan
from mosaic.core.results import RunResult, SessionRecord
from mosaic.core.workload import Call, Expert, NodeName
from mosaic.planning.profiles import ProfileEntry, SweepPoint, fit_session
from mosaic.planning.schedulers.shards import replica_sessions, split_evenly
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller
from mosaic.runtime.speed_fit import fit_speed
from mosaic.runtime.static_plan import execute
from mosaic.runtime.whole_sweep import WholeSweep

SHARES = (1, 2, 4)
"""Waves serve all calls, a half and a quarter of them."""
NUM_SWEPT_CALLS, MAX_REPEATS = 512, 8
"""The sweep is repeated until it has served so many calls: a few waves of a few calls say little."""


def sweep_aggregator(
    expert: Expert,
    calls: Sequence[Call],
    cluster: Cluster,
    backend: Backend,
    places: Sequence[tuple[int, ...]] | None = None,
    controllers: Sequence[Controller] = (),
    *,
    max_calls: int | None = None,
    tell: Callable[[int], object] = lambda num_calls: None,
) -> ProfileEntry:
    """Measure the aggregator at its tensor-parallel degree, with as many replicas as its cap and the cluster allow.

    ``places`` are the gangs of workers where it may run; None: all that the cluster makes up. ``controllers`` hear the
    events too. No more than ``max_calls`` are served, but for one wave of each size with four calls a place; ``tell``
    hears how many.

    Raises
    ------
    BackendError
        If a session cannot be run, or a call does not finish: a price is never fitted to part of a sweep.
    DisturbedSweepError
        If sessions that were interrupted leave too few others.
    ValueError
        If there are no calls, or no place for the aggregator.
    """
    require(len(calls) > 0, "aggregator sweep: calls", "at least one call", 0)
    places = aggregator_places(expert, cluster.num_workers) if places is None else places
    shards = list(_shards(calls, len(places), max_calls))
    waves, served = waves_of(shards, places), [call for shard in shards for call in shard]
    sessions = [session for wave in waves for session in wave]
    tell(len(served))
    everybody = (*controllers, WholeSweep("aggregator sweep", len(served)))
    result = execute(unpriced_plan(sessions, num_workers=cluster.num_workers), served, backend, everybody)
    assert len(result.calls) == len(served), "all finished"
    return entry_of_waves(expert, cluster, waves, result)


def waves_of(shards: Sequence[Sequence[Call]], places: Sequence[tuple[int, ...]]) -> list[tuple[Session, ...]]:
    """Spread each shard evenly over all places; a wave starts when the one before it has ended."""
    waves: list[tuple[Session, ...]] = []
    barrier: tuple[int, ...] = ()
    for shard in shards:
        parts = split_evenly(len(shard), len(places))
        wave = replica_sessions(shard, places, parts, first_id=sum(map(len, waves)), after=barrier)
        barrier = tuple(session.id for session in wave)
        waves.append(wave)
    return waves


def entry_of_waves(
    expert: Expert, cluster: Cluster, waves: Sequence[Sequence[Session]], result: RunResult
) -> ProfileEntry:
    """Fit a replica's costs to waves.

    Raises
    ------
    DisturbedSweepError
        If sessions that were interrupted or lost leave waves of fewer than two sizes.
    """
    # NOTE: a session that was interrupted and begun again took longer than its calls need; one whose worker was lost
    # has no record.
    records = {record.session: record for record in result.sessions if not record.num_interruptions}
    whole = [wave for wave in waves if all(session.id in records for session in wave)]
    points = tuple(_point([records[session.id] for session in wave]) for wave in whole)
    if len(whole) < len(waves) and len({point.num_calls for point in points}) < 2:
        raise DisturbedSweepError("aggregator sweep: waves of two sizes must run undisturbed")
    sample = tuple(sorted(record.output_tokens for record in result.calls))
    return ProfileEntry(
        expert=expert.name,
        gpu=cluster.workers[0].gpu.name,
        tp_degree=expert.tp_degree,
        load_s=max(record.load_s for record in records.values()),
        fit=fit_session(points),
        lengths=prediction_from_sample(sample),
        points=points,
        output_tokens=sample,
        speed=fit_speed([record for record in result.calls if record.session in records]),
        kv_budget_tokens=expert.kv_budget_tokens,
    )


def aggregator_places(expert: Expert, num_workers: int) -> list[tuple[int, ...]]:
    """List the gangs of its replicas: all that the workers make up, or as many as its cap allows.

    Raises
    ------
    ValueError
        If there is none.
    """
    size = expert.tp_degree
    places = [tuple(range(start, start + size)) for start in range(0, num_workers - size + 1, size)]
    require(len(places) > 0, f"aggregator {expert.name}: tp_degree", f"at most num_workers={num_workers}", size)
    return places[: expert.max_replicas]


def _shards(calls: Sequence[Call], num_places: int, max_calls: int | None) -> Iterator[list[Call]]:
    """Cut waves out of the calls; what is served again has a key, and so luck, of its own."""
    least = num_places * max(SHARES)
    if max_calls is not None:
        calls = calls[: max(least, max_calls // len(SHARES))]
    num_copies = -(-least // len(calls))
    num_repeats = min(MAX_REPEATS, -(-NUM_SWEPT_CALLS // (num_copies * len(calls))))
    if max_calls is not None:
        num_repeats = min(num_repeats, max(1, max_calls // (len(SHARES) * num_copies * len(calls))))
    copies_made = count()
    ranked = list(_ranked(calls))
    width = 1 + max(rank for rank, _ in ranked)
    for share in SHARES * num_repeats:
        chosen = list(islice(copies_made, num_copies))
        copies = [
            replace(call, key=call.key._replace(slot=copy * width + rank)) for copy in chosen for rank, call in ranked
        ]
        if max_calls is not None:
            copies = copies[: max(least, max_calls // len(SHARES))]
        for part in range(share):
            yield copies[part::share]


def _ranked(calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """Number the calls of each question: an expert may have several slots of a node."""
    seen: Counter[tuple[str, NodeName]] = Counter()
    for call in calls:
        place = call.key.question, call.key.node
        yield seen[place], call
        seen[place] += 1


def _point(wave: Sequence[SessionRecord]) -> SweepPoint:
    return SweepPoint(
        num_calls=max(record.num_calls for record in wave),
        session_s=max(record.end_ts - record.start_ts for record in wave),
        output_tokens=sum(record.output_tokens for record in wave),
    )

"""Shards: how the calls of one expert are divided over its replicas, and the sessions made of them."""

from collections.abc import Sequence

from mosaic.core.plan import Session
from mosaic.core.workload import Call, CallKey
from mosaic.planning.schedulers.instance import Place


def split_calls(calls: Sequence[Call], num_calls: Sequence[int]) -> tuple[tuple[CallKey, ...], ...]:
    """Divide calls into shards of given sizes, evenly interleaved in arrival order.

    The j-th call of a shard of n stands at (j + 1/2) / n of the stream, so every shard is a like sample of
    early and late calls, whatever order the questions have. Calls keep their order inside a shard.

    Raises
    ------
    ValueError
        If the sizes do not add up to the number of calls.

    Examples
    --------
    >>> from mosaic.core.workload import Call, CallKey, PROPOSE
    >>> calls = [Call(CallKey(f"q{i}", PROPOSE, 0), "A", 10) for i in range(6)]
    >>> [[key.question for key in shard] for shard in split_calls(calls, (4, 2))]
    [['q0', 'q2', 'q3', 'q5'], ['q1', 'q4']]
    """
    if sum(num_calls) != len(calls) or min(num_calls, default=0) < 0:
        raise ValueError(f"shard sizes must add up to {len(calls)} calls, got {list(num_calls)}")
    if sum(size > 0 for size in num_calls) == 1:
        return tuple(tuple(call.key for call in calls) if size else () for size in num_calls)
    positions = [((j + 0.5) / size, shard) for shard, size in enumerate(num_calls) for j in range(size)]
    positions.sort()
    shards: list[list[CallKey]] = [[] for _ in num_calls]
    for (_, shard), call in zip(positions, calls, strict=True):
        shards[shard].append(call.key)
    return tuple(tuple(keys) for keys in shards)


def split_evenly(num_calls: int, num_shards: int) -> tuple[int, ...]:
    """Split a number into parts that differ by one at most, the larger first."""
    small, extra = divmod(num_calls, num_shards)
    return tuple(small + (shard < extra) for shard in range(num_shards))


def replica_sessions(
    calls: Sequence[Call],
    places: Sequence[Place],
    num_calls: Sequence[int],
    *,
    first_id: int,
    after: tuple[int, ...] = (),
) -> tuple[Session, ...]:
    """Make one session of one expert per place that gets calls; ids count up from ``first_id``."""
    shards = split_calls(calls, num_calls)
    filled = [(place, shard) for place, shard in zip(places, shards, strict=True) if shard]
    return tuple(
        Session(
            id=first_id + number,
            expert=calls[0].expert,
            node=calls[0].key.node,
            workers=place,
            shard=shard,
            after=after,
        )
        for number, (place, shard) in enumerate(filled)
    )

"""Makes sessions without prices: for calls before there are prices, and for measuring prices."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TypeAlias

from mosaic.core.checks import require
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.workload import Call, Expert, ExpertName
from mosaic.planning.scheduler import replica_sessions, split_evenly

SHARES = 1 + 2 + 4
"""Three sessions serve a seventh, two and four sevenths of an expert's calls: the points for a line."""


PlacesOf: TypeAlias = Callable[[Expert], Sequence[tuple[int, ...]]]
"""Lists the gangs of workers on which an expert may run."""


def first_workers(places: PlacesOf, num_workers: int) -> PlacesOf:
    """Keep only gangs of the first so many workers; all gangs if there is none."""

    def left(expert: Expert) -> Sequence[tuple[int, ...]]:
        every = places(expert)
        return [place for place in every if max(place) < num_workers] or every  # its own workers may be lost

    return left


def gangs_of(expert: Expert, num_workers: int) -> list[tuple[int, ...]]:
    """List the gangs of an expert's replicas: all that the workers form, or as many as its cap allows.

    Raises
    ------
    ValueError
        If there is none.
    """
    size = expert.tp_degree
    gangs = [tuple(range(start, start + size)) for start in range(0, num_workers - size + 1, size)]
    require(len(gangs) > 0, f"aggregator {expert.name}: tp_degree", f"at most num_workers={num_workers}", size)
    return gangs[: expert.max_replicas]


def even_plan(calls: Sequence[Call], experts: Sequence[Expert], places: PlacesOf, num_workers: int) -> Plan:
    """Spread calls evenly over as many replicas as each expert may have; an expert may occur twice."""
    sessions: list[Session] = []
    for expert in {expert.name: expert for expert in experts}.values():
        mine = [call for call in calls if call.expert == expert.name]
        if mine:
            own = places(expert)
            parts = split_evenly(len(mine), len(own))
            sessions += replica_sessions(mine, own, parts, first_id=len(sessions))
    return unpriced_plan(sessions, num_workers=num_workers)


def in_thirds(num_calls: int) -> tuple[int, int, int]:
    """Divide a number of calls into three parts, each twice as large as the one before.

    Examples
    --------
    >>> in_thirds(8), in_thirds(70)
    ((1, 2, 5), (10, 20, 40))
    """
    small, middle = num_calls // SHARES, 2 * num_calls // SHARES
    return small, middle, num_calls - small - middle


def thirds(calls: Sequence[Call]) -> list[Sequence[Call]]:
    """Divide calls into three parts, each twice as large as the one before."""
    bounds = accumulate(in_thirds(len(calls)), initial=0)
    return [calls[low:high] for low, high in pairwise(bounds)]


def sessions_in_thirds(calls: Sequence[Call], experts: Iterable[Expert], places: PlacesOf) -> tuple[Session, ...]:
    """Divide each expert's calls into three sessions; workers take turns."""
    by_expert: dict[ExpertName, list[Call]] = {}
    for call in calls:
        by_expert.setdefault(call.expert, []).append(call)
    return sessions_by_size({name: thirds(own) for name, own in by_expert.items()}, experts, places)


def sessions_by_size(
    shards: Mapping[ExpertName, Sequence[Sequence[Call]]], experts: Iterable[Expert], places: PlacesOf
) -> tuple[Session, ...]:
    """Give each shard of an expert's calls a session; workers take turns.

    The outer loop is over sizes, the inner one over experts. So an expert is loaded for each of its sessions, as in a
    batch. Its load is measured again, unless it is alone in the pool. Workers that are all busy may slow each other
    down, as they will in a run. Each round starts one gang further, so that no expert is still loaded.
    """
    used = [expert for expert in experts if expert.name in shards]
    sessions: list[Session] = []
    for index in range(max(map(len, shards.values()))):
        for expert in used:
            if index < len(shards[expert.name]) and (part := shards[expert.name][index]):
                number = len(sessions)
                sessions.append(_session(number, expert, part, places, number + number // len(used)))
    return tuple(sessions)


def sessions_in_waves(shards: Iterable[Sequence[Call]], places: Sequence[tuple[int, ...]]) -> tuple[Session, ...]:
    """Spread each shard evenly over all gangs; a wave starts when the one before it has ended."""
    sessions: list[Session] = []
    barrier: tuple[int, ...] = ()
    for shard in shards:
        parts = split_evenly(len(shard), len(places))
        wave = replica_sessions(shard, places, parts, first_id=len(sessions), after=barrier)
        barrier = tuple(session.id for session in wave)
        sessions += wave
    return tuple(sessions)


def waves_in_thirds(calls: Sequence[Call], places: Sequence[tuple[int, ...]]) -> tuple[Session, ...]:
    """Divide calls into waves of three sizes, on as many gangs as they can price; empty: there are too few calls."""
    places = places[: len(calls) // SHARES]
    return sessions_in_waves(thirds(calls), places) if places else ()


def _session(number: int, expert: Expert, calls: Sequence[Call], places: PlacesOf, turn: int) -> Session:
    gangs = places(replace(expert, max_replicas=None))
    keys = tuple(call.key for call in calls)
    workers = gangs[turn % len(gangs)]
    return Session(id=number, expert=expert.name, node=calls[0].key.node, workers=workers, shard=keys)

"""Finds a good placement fast, as a start for the solver: packs for several targets, then levels the shards."""

from collections.abc import Sequence
from heapq import heapify, heapreplace
from math import floor, inf
from time import monotonic

from mosaic.core.addition import add_in_order
from mosaic.planning.program.instance import Counts, Instance

NUM_TARGETS = 24
MAX_SWEEPS = 30
NEGLIGIBLE_S = 1e-9
"""Calls cheaper than this count as free: a division by their price would overflow."""
LOOSEST_TARGET_FRAC = 0.5
"""Targets reach this far above the lower bound, most of them close to it; looser ones only leave workers idle."""


def best_packing(instance: Instance, bound_s: float, *, until_ts: float = inf) -> Counts | None:
    """Return the shortest of the placements packed for several targets; None if no target can be packed.

    The targets start at a lower bound on all placements. After an instant of the monotonic clock it returns the best so
    far, and continues only if there is none.
    """
    best: Counts | None = None
    best_s = inf
    for step in range(NUM_TARGETS):
        if best is not None and monotonic() > until_ts:
            break
        packed = pack(instance, bound_s * (1 + LOOSEST_TARGET_FRAC * (step / NUM_TARGETS) ** 3))
        if packed is None:
            continue
        levelled = level(instance, packed)
        makespan_s = instance.makespan_s(levelled)
        if makespan_s < best_s:
            best, best_s = levelled, makespan_s
    return best


def pack(instance: Instance, target_s: float) -> Counts | None:
    """Place every expert within the replica caps and K, for a target makespan; None if no slot is left.

    NOTE: best fit decreasing with splits. The widest and then longest experts go first. An expert that fits whole goes
    to the place where it leaves the least room. Otherwise it fills the place that takes most of its calls, and the rest
    is placed later. When its cap is reached, the rest goes where the overflow is smallest.
    """

    def longest_first(expert: int) -> tuple[int, float]:
        return -len(instance.places[expert][0]), -instance.shortest_s(expert)

    free_s = [target_s] * instance.num_workers
    slots = [instance.max_experts_per_worker] * instance.num_workers
    counts = [[0] * len(options) for options in instance.places]
    for expert in sorted(range(instance.num_experts), key=longest_first):
        left = instance.num_calls[expert]
        for replica in range(instance.max_replicas[expert]):
            last = replica == instance.max_replicas[expert] - 1
            chosen = _choose(instance, expert, left, free_s, slots, counts[expert], last=last)
            if chosen is None:
                return None
            place, number = chosen
            counts[expert][place] = number
            left -= number
            for worker in instance.places[expert][place]:
                free_s[worker] -= instance.session_s(expert, place, number)
                slots[worker] -= 1
            if not left:
                break
    return tuple(tuple(row) for row in counts)


def _choose(
    instance: Instance,
    expert: int,
    left: int,
    free_s: Sequence[float],
    slots: Sequence[int],
    row: Sequence[int],
    *,
    last: bool,
) -> tuple[int, int] | None:
    """Choose a place and how many of the remaining calls go there; None if no place is free."""
    part: tuple[float, float, int] | None = None
    whole: tuple[float, int] | None = None
    overflow: tuple[float, int] | None = None
    for place, workers in enumerate(instance.places[expert]):
        if row[place] or min(slots[worker] for worker in workers) == 0:
            continue
        room_s = min(free_s[worker] for worker in workers)
        number = instance.calls_within(expert, place, room_s) if room_s > 0 else 0
        spare_s = room_s - (instance.setup_s[expert][place] + instance.per_call_s[expert][place] * left)
        if number >= left:
            whole = min(whole, (spare_s, place)) if whole else (spare_s, place)
        elif number:
            candidate = (-number, -room_s, place)
            part = min(part, candidate) if part else candidate
        overflow = min(overflow, (-spare_s, place)) if overflow else (-spare_s, place)
    if whole:
        return whole[1], left
    if part and not last:
        return part[2], int(-part[0])
    return (overflow[1], left) if overflow else None


def level(instance: Instance, counts: Counts) -> Counts:
    """Level the shards of replicated experts over their places, until the makespan no longer falls.

    NOTE: one expert at a time gives its calls one by one, in effect, to its place that is predicted to be free first.
    Repeating this over the experts levels workers that share no expert but are linked through a third worker.
    """
    rows = [list(row) for row in counts]
    busy_s = instance.worker_s(counts)
    # Kept from the start: a shard that shrinks to nothing may be needed again in a later sweep.
    used = [[place for place, number in enumerate(row) if number] for row in counts]
    split = [m for m, places in enumerate(used) if len(places) > 1]
    best, best_s = counts, max(busy_s, default=0.0)
    for _ in range(MAX_SWEEPS if split else 0):
        before_s = add_in_order(seconds * seconds for seconds in busy_s)
        for m in split:
            _level_expert(instance, m, used[m], rows[m], busy_s)
        if max(busy_s) < best_s:
            best, best_s = tuple(tuple(row) for row in rows), max(busy_s)
        if add_in_order(seconds * seconds for seconds in busy_s) > before_s * (1 - 1e-9):
            break
    return best


def _level_expert(instance: Instance, expert: int, used: Sequence[int], row: list[int], busy_s: list[float]) -> None:
    """Distribute one expert's calls anew over its places, with the others' work fixed."""
    for place in used:
        for worker in instance.places[expert][place]:
            busy_s[worker] -= instance.session_s(expert, place, row[place])
    base_s = {
        place: max(busy_s[worker] for worker in instance.places[expert][place]) + instance.setup_s[expert][place]
        for place in used
    }
    shares = _share(instance.num_calls[expert], base_s, {p: instance.per_call_s[expert][p] for p in used})
    for place in used:
        row[place] = shares[place]
        for worker in instance.places[expert][place]:
            busy_s[worker] += instance.session_s(expert, place, shares[place])


def _share(num_calls: int, base_s: dict[int, float], per_call_s: dict[int, float]) -> dict[int, int]:
    """Distribute calls so that the latest place ends as early as possible: whole waves first, then call by call."""
    free = [place for place in base_s if per_call_s[place] < NEGLIGIBLE_S]
    if free:
        first = min(free, key=lambda place: base_s[place])
        return {place: num_calls if place == first else 0 for place in base_s}
    # Water filling: raise the level over the places in order of their base until all calls fit below it.
    order = sorted(base_s, key=lambda place: base_s[place])
    rate = weighted = 0.0
    surface_s = 0.0
    for position, place in enumerate(order):
        rate += 1 / per_call_s[place]
        weighted += base_s[place] / per_call_s[place]
        surface_s = (num_calls + weighted) / rate
        if position + 1 == len(order) or surface_s <= base_s[order[position + 1]]:
            break
    shares = {place: min(num_calls, max(0, floor((surface_s - base_s[place]) / per_call_s[place]))) for place in base_s}
    ends = [(base_s[place] + (shares[place] + 1) * per_call_s[place], place) for place in order]
    heapify(ends)
    for _ in range(num_calls - sum(shares.values())):
        end_s, place = ends[0]
        shares[place] += 1
        heapreplace(ends, (end_s + per_call_s[place], place))
    return shares


def drop_needless_replicas(instance: Instance, counts: Counts) -> Counts:
    """Close replicas whose calls the expert's other replicas can take without a longer makespan.

    The program minimises only the busiest worker, so elsewhere it may load an expert twice without benefit.
    """
    limit_s = instance.makespan_s(counts) * (1 + 1e-12)
    rows = [list(row) for row in counts]
    busy_s = instance.worker_s(counts)
    for m, row in enumerate(rows):
        for place in sorted((p for p, number in enumerate(row) if number), key=lambda p: row[p]):
            if sum(number > 0 for number in row) > 1:
                _close(instance, m, place, row, busy_s, limit_s)
    return tuple(tuple(row) for row in rows)


def _close(instance: Instance, expert: int, place: int, row: list[int], busy_s: list[float], limit_s: float) -> None:
    """Move a replica's calls to the expert's other replicas if they have room for all of them."""
    workers = instance.places[expert]
    grown = {place: 0}
    left = row[place]
    for other, number in enumerate(row):
        if not number or other == place:
            continue
        others_s = max(busy_s[w] for w in workers[other]) - instance.session_s(expert, other, number)
        more = min(left, max(0, instance.calls_within(expert, other, limit_s - others_s) - number))
        grown[other] = number + more
        left -= more
    if left:
        return
    for target, number in grown.items():
        for worker in workers[target]:
            busy_s[worker] += instance.session_s(expert, target, number) - instance.session_s(
                expert, target, row[target]
            )
        row[target] = number

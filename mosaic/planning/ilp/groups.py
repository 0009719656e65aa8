"""Groups of experts and workers, and the shards that put a group to work.

NOTE: draw an edge between an expert and every worker that loads it. A plan falls into connected parts, and a
part of e experts on n workers has at least n + e - 1 edges: e loads, and one more for each worker after the first. So
what matters of a plan is which experts share a group and how many workers the group has; the group's time follows:

    (its experts served + one load each + n - 1 further loads) / n

when its largest expert is split over the workers and levels them, which it can unless the others are too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.planning.ilp.alike import AlikeWorkers
from mosaic.planning.schedulers.instance import Counts

Group: TypeAlias = tuple[tuple[int, ...], int]
"""Experts by number, and how many workers they have to themselves."""

Shards: TypeAlias = dict[tuple[int, int], int]
"""Calls by expert and worker, both by number."""

NUM_BISECTIONS = 16
LOOSEST_FRAC = 0.5
"""A group is poured at makespans up to this far above its ideal one."""
NUM_ORDERS = 6


def place_groups(workers: AlikeWorkers, groups: Sequence[Group]) -> Counts | None:
    """Give every group its workers and its shards; None if K or the caps defeat one of them."""
    rows = [[0] * workers.num_workers for _ in workers.num_calls]
    first = 0
    for experts, num_workers in groups:
        shards = pour_group(workers, experts, num_workers)
        if shards is None:
            return None
        for (expert, worker), number in shards.items():
            rows[expert][first + worker] = number
        first += num_workers
    return tuple(tuple(row) for row in rows)


def pour_group(workers: AlikeWorkers, experts: Sequence[int], num_workers: int) -> Shards | None:
    """Split a group's calls over its workers so that they end early."""
    if num_workers == 1 or not experts:
        fits = len(experts) <= workers.max_experts_per_worker and (num_workers or not experts)
        return {(m, 0): workers.num_calls[m] for m in experts} if fits else None
    ideal_s = ideal_finish_s(workers, experts, num_workers)
    random = Random(num_workers)
    best: Shards | None = None
    longest_s = ideal_s * (1 + LOOSEST_FRAC)
    for attempt in range(NUM_ORDERS):
        low_s, high_s = ideal_s, longest_s
        for bisection in range(NUM_BISECTIONS):
            # The most generous makespan first: where that fails, no other is tried.
            middle_s = (low_s + high_s) / 2 if bisection else high_s
            shards = _Pouring(workers, num_workers, middle_s).pour(experts, random if attempt else None)
            if shards is not None:
                best, high_s = shards, middle_s
            elif not bisection:
                break
            else:
                low_s = middle_s
        longest_s = high_s
    return best


def ideal_finish_s(workers: AlikeWorkers, experts: Sequence[int], num_workers: int) -> float:
    """Compute when a group's workers end if they end together, the largest expert being the one that is split."""
    if not experts:
        return 0.0
    largest = max(experts, key=workers.serving_s.__getitem__)
    total_s = add_in_order(workers.whole_s[m] for m in experts) + (num_workers - 1) * workers.setup_s[largest]
    return total_s / num_workers


@dataclass(slots=True)
class _Pouring:
    """Fills a group's workers up to a makespan: short experts whole, then long ones over worker after worker."""

    workers: AlikeWorkers
    num_workers: int
    makespan_s: float

    def pour(self, experts: Sequence[int], random: Random | None) -> Shards | None:
        """Pour; None if something is left over. Without a random order, workers are filled from the emptiest on."""
        ranked = sorted(experts, key=lambda m: -self.workers.whole_s[m])
        long = [m for m in ranked if self.workers.whole_s[m] > self.makespan_s] or ranked[:1]
        shards: Shards = {}
        room_s = [self.makespan_s] * self.num_workers
        slots = [self.workers.max_experts_per_worker] * self.num_workers
        for m in ranked:
            if m in long:
                continue
            # One slot of each worker stays free for an expert that is split.
            open_workers = [n for n in range(self.num_workers) if slots[n] > 1]
            if not open_workers:
                return None
            n = max(open_workers, key=room_s.__getitem__)
            if room_s[n] < self.workers.whole_s[m]:
                return None
            shards[m, n] = self.workers.num_calls[m]
            room_s[n] -= self.workers.whole_s[m]
            slots[n] -= 1
        order = sorted(range(self.num_workers), key=lambda n: -room_s[n])
        if random:
            random.shuffle(order)
            random.shuffle(long)
        return shards if self._split(long, order, room_s, slots, shards) else None

    def _split(
        self, long: Sequence[int], order: Sequence[int], room_s: list[float], slots: list[int], shards: Shards
    ) -> bool:
        """Split the long experts over the workers in turn; True if all their calls are placed within the caps."""
        position = 0
        for m in long:
            left, replicas = self.workers.num_calls[m], 0
            while left and position < len(order):
                n = order[position]
                number = min(left, self.workers.calls_within(m, room_s[n])) if slots[n] else 0
                if number:
                    shards[m, n] = number
                    replicas += 1
                    left -= number
                    slots[n] -= 1
                    room_s[n] -= self.workers.setup_s[m] + number * self.workers.per_call_s[m]
                if left:
                    position += 1
            if left or replicas > self.workers.max_replicas[m]:
                return False
        return True

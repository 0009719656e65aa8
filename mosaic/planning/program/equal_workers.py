"""Solves instances with identical workers without a variable per worker: by a search over groups, and by bounds.

NOTE: draw an edge between an expert and every worker that loads it. A plan falls into connected parts. A part of e
experts on n workers has at least n + e - 1 edges. These are e loads, and one more for each worker after the first. So
only two properties of a plan matter: which experts share a group, and how many workers the group has. The group's time
is

    (its experts served + one load each + n - 1 further loads) / n

if its largest expert is split over the workers and levels them, which is possible unless the others are too long.
Simulated annealing searches for a partition of experts and workers into groups that end early. Water filling computes
the shards of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf
from random import Random
from time import monotonic
from typing import NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.planning.program.bounds import pattern_bound_s, subset_bound_s
from mosaic.planning.program.instance import Counts, Instance
from mosaic.planning.program.packing import best_packing, level

Group: TypeAlias = tuple[tuple[int, ...], int]
"""Experts by number, and the number of workers reserved for them."""

Shards: TypeAlias = dict[tuple[int, int], int]
"""Calls by expert and worker, both by number."""

FIRST_MOVES_PER_EXPERT = 4000
AIM_FRAC = 0.5
"""Share of the gap that the next search aims to close."""
BOUND_TIME_FRAC = 0.5
"""Share of the time after the first search for bounds."""
NUM_FILL_BISECTIONS = 16
LOOSEST_FRAC = 0.5
"""A group is filled for makespans up to this far above its ideal one."""
NUM_FILL_ORDERS = 6
MOVES_BETWEEN_CHECKS = 256
LATE_FIRST_FRAC = 0.4
"""Share of moves that start from a group that ends after the target."""
SWAP_FRAC, MOVE_FRAC, CARRY_FRAC = 0.62, 0.2, 0.1
"""Shares of moves that swap two experts, move one, or move one and a worker; the rest divides two groups anew."""
FIRST_STEP_FRAC, LAST_STEP_FRAC = 0.02, 0.0003
"""Temperatures: the lateness of a worker that is easily accepted, relative to the target."""
FORBIDDEN_FRAC = 1e4
"""End of a group that K or a cap forbids, relative to all work: finite, so that a search may start there."""


def solve_identical(
    workers: Instance, counts: Counts | None, bound_s: float, *, until_ts: float
) -> tuple[Counts | None, float]:
    """Improve a placement, if one exists, and its bound; end early if no packing exists.

    Each search is twice as long as the one before, with its own seed. The last one lasts until an instant of the
    monotonic clock. Bounds are computed after the first search.
    """
    finish_s = inf if counts is None else workers.makespan_s(counts)
    num_moves, seed = FIRST_MOVES_PER_EXPERT * workers.num_experts, 0
    moves_per_s = inf
    while finish_s > bound_s and (begin_ts := monotonic()) < until_ts:
        num_moves = int(min(num_moves, moves_per_s * (until_ts - begin_ts)))
        # A little below the best placement: a search works best when few groups are late.
        target_s = bound_s if counts is None else finish_s - AIM_FRAC * (finish_s - bound_s)
        found = GroupSearch(workers, target_s=target_s, seed=seed).run(num_moves, until_ts=until_ts)
        moves_per_s = max(found.num_moves, 1) / max(monotonic() - begin_ts, 1e-9)
        placed = place_groups(workers, found.groups)
        if placed is not None:
            placed = level(workers, placed)
        elif counts is None:
            placed = best_packing(workers, bound_s, until_ts=until_ts)
            if placed is None:
                break
        if placed is not None and workers.makespan_s(placed) < finish_s:
            counts, finish_s = placed, workers.makespan_s(placed)
        if not seed and finish_s > bound_s:
            bounds_ts = monotonic() + BOUND_TIME_FRAC * (until_ts - monotonic())
            for raise_s in (subset_bound_s, pattern_bound_s):
                bound_s = raise_s(workers, low_s=bound_s, high_s=finish_s, until_ts=bounds_ts)
        num_moves, seed = 2 * num_moves, seed + 1
    return counts, bound_s


def place_groups(workers: Instance, groups: Sequence[Group]) -> Counts | None:
    """Assign every group its workers and its shards; None if K or the caps forbid one of them."""
    rows = [[0] * workers.num_workers for _ in workers.num_calls]
    first = 0
    for experts, num_workers in groups:
        shards = fill_group(workers, experts, num_workers)
        if shards is None:
            return None
        for (expert, worker), number in shards.items():
            rows[expert][first + worker] = number
        first += num_workers
    return tuple(tuple(row) for row in rows)


def fill_group(workers: Instance, experts: Sequence[int], num_workers: int) -> Shards | None:
    """Split a group's calls over its workers so that they end early."""
    if num_workers == 1 or not experts:
        fits = len(experts) <= workers.max_experts_per_worker and (num_workers or not experts)
        return {(m, 0): workers.num_calls[m] for m in experts} if fits else None
    ideal_s = ideal_finish_s(workers, experts, num_workers)
    random = Random(num_workers)
    best: Shards | None = None
    longest_s = ideal_s * (1 + LOOSEST_FRAC)
    for attempt in range(NUM_FILL_ORDERS):
        low_s, high_s = ideal_s, longest_s
        for bisection in range(NUM_FILL_BISECTIONS):
            # The largest makespan first: if it fails, no other is tried.
            middle_s = (low_s + high_s) / 2 if bisection else high_s
            shards = _fill(workers, experts, num_workers, middle_s, random if attempt else None)
            if shards is not None:
                best, high_s = shards, middle_s
            elif not bisection:
                break
            else:
                low_s = middle_s
        longest_s = high_s
    return best


def ideal_finish_s(workers: Instance, experts: Sequence[int], num_workers: int) -> float:
    """Compute when a group's workers end if they end together and the largest expert is the one that is split."""
    if not experts:
        return 0.0
    largest = max(experts, key=workers.serving_s.__getitem__)
    total_s = add_in_order(workers.whole_s[m] for m in experts) + (num_workers - 1) * workers.setup_s[largest][0]
    return total_s / num_workers


def _fill(
    workers: Instance, experts: Sequence[int], num_workers: int, makespan_s: float, random: Random | None
) -> Shards | None:
    """Fill a group's workers up to a makespan: short experts whole, then long ones over worker after worker.

    None if some calls do not fit. Without a random order, workers are filled from the emptiest on.
    """
    ranked = sorted(experts, key=lambda m: -workers.whole_s[m])
    long = [m for m in ranked if workers.whole_s[m] > makespan_s] or ranked[:1]
    shards: Shards = {}
    room_s = [makespan_s] * num_workers
    slots = [workers.max_experts_per_worker] * num_workers
    for m in ranked:
        if m in long:
            continue
        # One slot of each worker stays free for the expert that is split.
        open_workers = [n for n in range(num_workers) if slots[n] > 1]
        if not open_workers:
            return None
        n = max(open_workers, key=room_s.__getitem__)
        if room_s[n] < workers.whole_s[m]:
            return None
        shards[m, n] = workers.num_calls[m]
        room_s[n] -= workers.whole_s[m]
        slots[n] -= 1
    order = sorted(range(num_workers), key=lambda n: -room_s[n])
    if random:
        random.shuffle(order)
        random.shuffle(long)
    position = 0
    for m in long:
        left, replicas = workers.num_calls[m], 0
        while left and position < len(order):
            n = order[position]
            number = min(left, workers.calls_within(m, 0, room_s[n])) if slots[n] else 0
            if number:
                shards[m, n] = number
                replicas += 1
                left -= number
                slots[n] -= 1
                room_s[n] -= workers.setup_s[m][0] + number * workers.per_call_s[m][0]
            if left:
                position += 1
        if left or replicas > workers.max_replicas[m]:
            return None
    return shards


@dataclass(frozen=True, slots=True)
class Found:
    """The best partition of a search."""

    groups: tuple[Group, ...]
    finish_s: float
    """Ideal end of its last group."""
    num_moves: int


Sums: TypeAlias = tuple[int, float, int, int]
"""Everything that a group's end depends on: workers, seconds of its experts whole, experts, and the largest expert."""


class _Move(NamedTuple):
    """The result of a move for two groups, given by number."""

    a: int
    sums_a: Sums
    b: int
    sums_b: Sums
    moved: Sequence[int]
    """Experts that change groups."""


class GroupSearch:
    """Moves experts and workers between groups at random, and accepts moves that make groups less late.

    The energy of a partition is the sum over its groups of n (T - target)^2. Here n is the number of workers, and T the
    ideal end of a group that ends after the target. Experts are numbered by size here, the largest first. So a group's
    largest expert has its lowest number; ``num_experts`` means none.
    """

    def __init__(self, workers: Instance, *, target_s: float, seed: int) -> None:
        self._ranked = sorted(range(workers.num_experts), key=lambda m: -workers.serving_s[m])
        self._whole_s = [workers.whole_s[m] for m in self._ranked]
        # Whole calls leave half a call's time unused on each worker, on average.
        self._further_s = [*(workers.setup_s[m][0] + workers.per_call_s[m][0] / 2 for m in self._ranked), 0.0]
        self._caps = [*(workers.max_replicas[m] for m in self._ranked), workers.num_workers]
        self._num_experts, self._num_workers = workers.num_experts, workers.num_workers
        self._most = workers.max_experts_per_worker
        self._target_s = target_s
        self._forbidden_s = FORBIDDEN_FRAC * max(target_s, add_in_order(workers.whole_s))
        self._random = Random(seed)
        self._experts: list[list[int]] = [[] for _ in range(self._num_workers)]
        self._sums: list[Sums] = [(0, 0.0, 0, self._num_experts)] * self._num_workers
        self._home = [0] * self._num_experts
        self._fill([workers.serving_s[m] for m in self._ranked])

    def run(self, num_moves: int, *, until_ts: float) -> Found:
        """Make the given number of moves while cooling down, but end at an instant of the monotonic clock."""
        random, finish, target_s = self._random.random, self._finish_s, self._target_s
        finish_s = [finish(*sums) for sums in self._sums]
        energy = [
            (sums[0] or 1) * max(end_s - target_s, 0.0) ** 2 for sums, end_s in zip(self._sums, finish_s, strict=True)
        ]
        best, best_s, move = self._groups(), max(finish_s), 0
        heat = 0.0
        late: list[int] = []
        for move in range(num_moves):
            if move % MOVES_BETWEEN_CHECKS == 0:
                late = [number for number, lateness in enumerate(energy) if lateness > 0]
                if not late or monotonic() > until_ts:
                    break
                cooling = (LAST_STEP_FRAC / FIRST_STEP_FRAC) ** (2 * move / num_moves)
                heat = (FIRST_STEP_FRAC * target_s) ** 2 * cooling + 1e-300
            proposed = self._propose(late)
            if proposed is None:
                continue
            a, sums_a, b, sums_b, _ = proposed
            end_a_s, end_b_s = finish(*sums_a), finish(*sums_b)
            energy_a = (sums_a[0] or 1) * (end_a_s - target_s) ** 2 if end_a_s > target_s else 0.0
            energy_b = (sums_b[0] or 1) * (end_b_s - target_s) ** 2 if end_b_s > target_s else 0.0
            worse = energy_a + energy_b - energy[a] - energy[b]
            if worse > 0 and random() >= exp(-worse / heat):
                continue
            self._take(proposed)
            energy[a], energy[b] = energy_a, energy_b
            finish_s[a], finish_s[b] = end_a_s, end_b_s
            if end_a_s < best_s > end_b_s and max(finish_s) < best_s:
                best, best_s = self._groups(), max(finish_s)
        return Found(tuple(group for group in best if group[0] or group[1]), best_s, move)

    def _propose(self, late: Sequence[int]) -> _Move | None:
        """Draw a move, most often from a late group; None if it would change nothing."""
        random = self._random.random
        m = int(random() * self._num_experts)
        if random() < LATE_FIRST_FRAC and (experts := self._experts[late[int(random() * len(late))]]):
            m = experts[int(random() * len(experts))]
        kind = random()
        if kind < SWAP_FRAC:
            return self._swap(m, int(random() * self._num_experts))
        a, b = self._home[m], int(random() * self._num_workers)
        if a == b:
            return None
        kind -= SWAP_FRAC
        if kind < MOVE_FRAC:
            return self._move(m, a, b, 0)
        if kind < MOVE_FRAC + CARRY_FRAC:
            return self._move(m, a, b, 1 if kind < MOVE_FRAC + CARRY_FRAC / 2 else -1)
        return self._divide(a, b)

    def _swap(self, m: int, other: int) -> _Move | None:
        a, b = self._home[m], self._home[other]
        if a == b:
            return None
        (num_a, total_a, size_a, _), (num_b, total_b, size_b, _) = self._sums[a], self._sums[b]
        more_s = self._whole_s[other] - self._whole_s[m]
        sums_a = (num_a, total_a + more_s, size_a, min(other, self._largest_but(a, m)))
        return _Move(a, sums_a, b, (num_b, total_b - more_s, size_b, min(m, self._largest_but(b, other))), (m, other))

    def _move(self, m: int, a: int, b: int, num_workers: int) -> _Move | None:
        """Move an expert from its group to another, and workers in the same or the opposite direction."""
        (num_a, total_a, size_a, _), (num_b, total_b, size_b, largest_b) = self._sums[a], self._sums[b]
        if num_a < num_workers or num_b < -num_workers:
            return None
        whole_s = self._whole_s[m]
        sums_a = (num_a - num_workers, total_a - whole_s, size_a - 1, self._largest_but(a, m))
        return _Move(a, sums_a, b, (num_b + num_workers, total_b + whole_s, size_b + 1, min(largest_b, m)), (m,))

    def _divide(self, a: int, b: int) -> _Move:
        """Pool two groups, one of which may be empty, and divide their workers and experts at random."""
        random = self._random.random
        num = self._sums[a][0] + self._sums[b][0]
        num_a = int(random() * (num + 1))
        pool = self._experts[a] + self._experts[b]
        here: list[int] = []
        there: list[int] = []
        moved: list[int] = []
        for m in pool:
            stays = random() * num < num_a
            (here if stays else there).append(m)
            if stays is not (self._home[m] == a):
                moved.append(m)
        return _Move(a, self._sum(num_a, here), b, self._sum(num - num_a, there), moved)

    def _take(self, move: _Move) -> None:
        self._sums[move.a], self._sums[move.b] = move.sums_a, move.sums_b
        for m in move.moved:
            home = self._home[m]
            self._experts[home].remove(m)
            self._home[m] = move.b if home == move.a else move.a
            self._experts[self._home[m]].append(m)

    def _largest_but(self, group: int, m: int) -> int:
        largest = self._sums[group][3]
        if largest != m:
            return largest
        return min([x for x in self._experts[group] if x != m], default=self._num_experts)

    def _sum(self, num_workers: int, experts: Sequence[int]) -> Sums:
        total_s = add_in_order([self._whole_s[m] for m in experts])
        return num_workers, total_s, len(experts), min(experts, default=self._num_experts)

    def _finish_s(self, num_workers: int, total_s: float, size: int, largest: int) -> float:
        """Compute when a group ideally ends (see the note above); late if K or a cap forbids it."""
        if num_workers == 1:
            return total_s if size <= self._most else self._forbidden_s
        if not size:
            return 0.0
        if size > (self._most - 1) * num_workers + 1 or self._caps[largest] < num_workers or not num_workers:
            return self._forbidden_s
        return (total_s + (num_workers - 1) * self._further_s[largest]) / num_workers

    def _fill(self, serving_s: Sequence[float]) -> None:
        """Start with long experts on about as many workers as they need; put each other expert where it ends first."""
        long = [m for m in range(self._num_experts) if self._whole_s[m] > self._target_s and self._caps[m] > 1]
        long, sizes = long[: self._num_workers], []
        for m in long:
            wanted = serving_s[m] / max(self._target_s - self._further_s[m], 1e-9) + self._random.random()
            sizes.append(max(1, min(self._caps[m], self._num_workers, int(wanted))))
        while sum(sizes) > self._num_workers:
            spare_s = [(size > 1, size * self._target_s - serving_s[m]) for m, size in zip(long, sizes, strict=True)]
            sizes[spare_s.index(max(spare_s))] -= 1
        groups = [(size, [m]) for m, size in zip(long, sizes, strict=True)]
        groups += [(1, []) for _ in range(self._num_workers - sum(sizes))]
        sums = [self._sum(size, experts) for size, experts in groups]
        for m in sorted(set(range(self._num_experts)) - set(long)):
            more_s = self._whole_s[m]
            grown = [(num, total_s + more_s, size + 1, min(top, m)) for num, total_s, size, top in sums]
            ends_s = [self._finish_s(*one) for one in grown]
            chosen = ends_s.index(min(ends_s))
            sums[chosen] = grown[chosen]
            groups[chosen][1].append(m)
        for number, (_, experts) in enumerate(groups):
            self._experts[number], self._sums[number] = experts, sums[number]
            for m in experts:
                self._home[m] = number

    def _groups(self) -> tuple[Group, ...]:
        return tuple(
            (tuple(self._ranked[m] for m in experts), sums[0])
            for experts, sums in zip(self._experts, self._sums, strict=True)
        )

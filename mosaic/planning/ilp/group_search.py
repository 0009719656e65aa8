"""A partition of experts and workers into groups that end early: local search by simulated annealing."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from random import Random
from time import monotonic

from mosaic.planning.ilp.alike import AlikeWorkers
from mosaic.planning.ilp.groups import Group

MOVES_BETWEEN_CHECKS = 256
LATE_FIRST_FRAC = 0.4
"""Share of moves that start from a group which ends after the target."""
SWAP_FRAC, MOVE_FRAC, CARRY_FRAC, GROW_FRAC = 0.62, 0.2, 0.1, 0.05
"""Shares of the kinds of moves; the rest divides two groups anew."""
FIRST_STEP_FRAC, LAST_STEP_FRAC = 0.02, 0.0003
"""Temperatures: by how much a worker may become late, relative to the target, and be accepted easily."""
FORBIDDEN_FRAC = 1e4
"""End of a group that K or a cap forbids, relative to all work: finite, so that a search may begin there."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best partition of a search."""

    groups: tuple[Group, ...]
    finish_s: float
    """When its last group ideally ends."""
    num_moves: int


class GroupSearch:
    """Moves experts and workers between groups, at random, and accepts what makes groups less late.

    The energy of a partition is the sum over its groups of n (T - target)^2, where n is the number of workers and T
    the ideal end of a group that ends after the target.
    """

    def __init__(self, workers: AlikeWorkers, *, target_s: float, seed: int) -> None:
        self._whole_s, self._serving_s = workers.whole_s, workers.serving_s
        self._setup_s, self._max_replicas = workers.setup_s, workers.max_replicas
        self._most = workers.max_experts_per_worker
        self._num_experts = workers.num_experts
        self._target_s = target_s
        self._forbidden_s = FORBIDDEN_FRAC * max(target_s, sum(workers.whole_s))
        self._random = Random(seed)
        self._groups = self._greedy(workers.num_workers)
        self._home = [0] * workers.num_experts
        for number, (experts, _) in enumerate(self._groups):
            for m in experts:
                self._home[m] = number

    def run(self, num_moves: int, *, until_ts: float) -> Found:
        """Make so many moves while it cools down, but end at an instant of the monotonic clock."""
        groups, random = self._groups, self._random.random
        finish_s = [self._finish_s(*group) for group in groups]
        energy = [self._energy(group, end_s) for group, end_s in zip(groups, finish_s, strict=True)]
        best, best_s, move = tuple(groups), max(finish_s), 0
        heat = cooling = 0.0
        late: list[int] = []
        for move in range(num_moves):
            if move % MOVES_BETWEEN_CHECKS == 0:
                late = [number for number, lateness in enumerate(energy) if lateness > 0]
                if not late or monotonic() > until_ts:
                    break
                cooling = (LAST_STEP_FRAC / FIRST_STEP_FRAC) ** (2 * move / num_moves)
                heat = (FIRST_STEP_FRAC * self._target_s) ** 2 * cooling + 1e-300
            proposed = self._propose(late)
            if proposed is None:
                continue
            a, group_a, b, group_b = proposed
            end_a_s, end_b_s = self._finish_s(*group_a), self._finish_s(*group_b)
            energy_a, energy_b = self._energy(group_a, end_a_s), self._energy(group_b, end_b_s)
            worse = energy_a + energy_b - energy[a] - energy[b]
            if worse > 0 and random() >= exp(-worse / heat):
                continue
            groups[a], groups[b] = group_a, group_b
            energy[a], energy[b] = energy_a, energy_b
            finish_s[a], finish_s[b] = end_a_s, end_b_s
            for m in group_a[0]:
                self._home[m] = a
            for m in group_b[0]:
                self._home[m] = b
            if end_a_s < best_s > end_b_s and max(finish_s) < best_s:
                best, best_s = tuple(groups), max(finish_s)
        return Found(tuple(group for group in best if group[0] or group[1]), best_s, move)

    def _propose(self, late: Sequence[int]) -> tuple[int, Group, int, Group] | None:
        """Draw a move: two groups by number, and what would become of them."""
        random, groups = self._random.random, self._groups
        m = -1
        if random() < LATE_FIRST_FRAC:
            a = late[int(random() * len(late))]
            if groups[a][0]:
                m = groups[a][0][int(random() * len(groups[a][0]))]
        if m < 0:
            m = int(random() * self._num_experts)
        a = self._home[m]
        kind = random()
        if kind < SWAP_FRAC:
            other = int(random() * self._num_experts)
            b = self._home[other]
            if a == b:
                return None
            (experts_a, num_a), (experts_b, num_b) = groups[a], groups[b]
            return (
                a,
                (tuple([other if x == m else x for x in experts_a]), num_a),
                b,
                (tuple([m if x == other else x for x in experts_b]), num_b),
            )
        b = int(random() * len(groups))
        if a == b:
            return None
        (experts_a, num_a), (experts_b, num_b) = groups[a], groups[b]
        kind -= SWAP_FRAC
        if kind < MOVE_FRAC + CARRY_FRAC:
            step = 0 if kind < MOVE_FRAC else 1 if kind < MOVE_FRAC + CARRY_FRAC / 2 else -1
            if num_a < step or num_b < -step:
                return None
            return a, (tuple([x for x in experts_a if x != m]), num_a - step), b, ((*experts_b, m), num_b + step)
        if kind < MOVE_FRAC + CARRY_FRAC + GROW_FRAC:
            return (a, (experts_a, num_a + 1), b, (experts_b, num_b - 1)) if num_b else None
        return self._divide(a, b)

    def _divide(self, a: int, b: int) -> tuple[int, Group, int, Group]:
        """Pool two groups, of which one may be empty, and divide their workers and experts at random."""
        random = self._random.random
        pool, num = self._groups[a][0] + self._groups[b][0], self._groups[a][1] + self._groups[b][1]
        num_a = int(random() * (num + 1))
        sides: tuple[list[int], list[int]] = ([], [])
        for m in pool:
            sides[random() * num >= num_a].append(m)
        return a, (tuple(sides[0]), num_a), b, (tuple(sides[1]), num - num_a)

    def _finish_s(self, experts: tuple[int, ...], num_workers: int) -> float:
        """Compute when a group ideally ends (see ``groups``); late where K or a cap forbids it."""
        if not experts:
            return 0.0
        whole_s = self._whole_s
        if num_workers == 1:
            return sum([whole_s[m] for m in experts]) if len(experts) <= self._most else self._forbidden_s
        if not num_workers or len(experts) > (self._most - 1) * num_workers + 1:
            return self._forbidden_s
        largest = max(experts, key=self._serving_s.__getitem__)
        if self._max_replicas[largest] < num_workers:
            return self._forbidden_s
        return (sum([whole_s[m] for m in experts]) + (num_workers - 1) * self._setup_s[largest]) / num_workers

    def _energy(self, group: Group, finish_s: float) -> float:
        late_s = finish_s - self._target_s
        return (group[1] or 1) * late_s * late_s if late_s > 0 else 0.0

    def _greedy(self, num_workers: int) -> list[Group]:
        """Start with long experts on about as many workers as they need, and each other where it ends first."""
        ranked = sorted(range(self._num_experts), key=lambda m: -self._whole_s[m])
        long = [m for m in ranked if self._whole_s[m] > self._target_s and self._max_replicas[m] > 1][:num_workers]
        sizes = []
        for m in long:
            wanted = self._serving_s[m] / max(self._target_s - self._setup_s[m], 1e-9) + self._random.random()
            sizes.append(max(1, min(self._max_replicas[m], num_workers, int(wanted))))
        while sum(sizes) > num_workers:
            shrunk = max(
                range(len(long)), key=lambda j: (sizes[j] > 1, sizes[j] * self._target_s - self._serving_s[long[j]])
            )
            sizes[shrunk] -= 1
        groups: list[Group] = [((m,), size) for m, size in zip(long, sizes, strict=True)]
        groups += [((), 1)] * (num_workers - sum(sizes))
        for m in ranked:
            if m in long:
                continue
            best = min(range(len(groups)), key=lambda j: self._finish_s((*groups[j][0], m), groups[j][1]))
            groups[best] = ((*groups[best][0], m), groups[best][1])
        return groups + [((), 0)] * (num_workers - len(groups))

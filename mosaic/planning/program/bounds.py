"""Computes lower bounds on the makespan of identical workers: from subsets of few experts, and patterns of many.

NOTE: every bound tests whether a plan can end by a makespan C, and finds the least C that it cannot refute. The search
starts at the closed form (``Instance.lower_bound_s``).

Subsets, for few experts: a plan falls into connected parts (see ``equal_workers``). A part of e experts on n workers
has at least n + e - 1 sessions. Each expert has at least as many as its calls need. The loads of these sessions and all
calls must fit into n C seconds, and the sessions into n K slots. So at C each set of experts needs at least a certain
number of workers. A dynamic program over subsets finds the partition that needs the fewest.

Patterns, for many workers: a plan gives every worker a pattern. A pattern is at most K experts with a share of calls
each; its loads and shares take at most C. A linear program computes how many patterns are needed to serve all calls. If
that is more than there are workers, no plan ends by C (Gilmore and Gomory's bound for cutting stock). Modes tighten it.
An expert on exactly r workers gives each of them at least what r - 1 full workers leave over. So few replicas mean
large shares and idle time beside them. Every mode has patterns of its own, and the program mixes modes of an expert
only as whole modes. Duals that are not quite feasible become feasible when they are divided by the worth of the best
pattern. The bound is computed from such duals and prices alone, so it does not rely on the solver's tolerances.

References
----------
P. C. Gilmore, R. E. Gomory, A linear programming approach to the cutting-stock problem, 1961.
A. A. Farley, A note on bounding a class of linear programming problems, including cutting stock problems, 1990.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.planning.program.instance import Instance

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

MAX_SUBSET_EXPERTS = 13
"""A set of M experts has 3^M partitions of its subsets into two."""
SUBSET_PRECISION_FRAC = 5e-5
SUBSET_MARGIN_FRAC = 1e-9

MAX_PATTERN_EXPERTS = 3
"""Patterns are listed by the set of their experts: sets of more than three would be too many."""
MAX_PATTERNS = 1_500_000
NUM_MODES = 3
"""An expert's modes: its least number of replicas, one more, and two or more above it."""
NUM_COLUMNS = 40
"""Patterns added in one round, of each number of experts."""
PATTERN_PRECISION_FRAC = 1e-4
STEP_FRAC = 0.9
"""Step towards the makespan at which the patterns would suffice, as a share of the distance."""
CONVERGED_FRAC = 1e-5
"""Gap between the patterns of a program and their bound at which the search for patterns ends."""
PATTERN_MARGIN_FRAC = 1e-7
"""By how much the patterns must exceed the workers to refute a makespan: more than rounding errors."""
UNSERVED_COST = 50.0
"""Cost of a mode that is not served, in workers: it makes the program feasible from its first round on."""


def subset_bound_s(workers: Instance, *, low_s: float, high_s: float, until_ts: float) -> float:
    """Raise a lower bound on the makespan by bisection; see ``pattern_bound_s`` for the parameters."""
    if workers.num_experts > MAX_SUBSET_EXPERTS:
        return low_s
    while high_s - low_s > SUBSET_PRECISION_FRAC * high_s and monotonic() < until_ts:
        middle_s = (low_s + high_s) / 2
        needed = _least_workers(workers, middle_s)
        if needed is None or _fewest_in_all(needed, workers.num_experts) > workers.num_workers:
            low_s = middle_s
        else:
            high_s = middle_s
    return low_s


def _least_workers(workers: Instance, makespan_s: float) -> Ints | None:
    """Count the workers that each set of experts needs as one part, shape ``(2^num_experts,)``; None: it never fits."""
    serving_s, loads_s, cheapest_s = np.zeros(1), np.zeros(1), np.full(1, np.inf)
    sizes, sessions, caps = (np.zeros(1, dtype=np.int64) for _ in range(3))
    for m in range(workers.num_experts):
        least = workers.least_replicas(m, makespan_s)
        if least > workers.max_replicas[m]:
            return None
        load_s, cap = workers.setup_s[m][0], workers.max_replicas[m]
        serving_s = np.concatenate([serving_s, serving_s + workers.serving_s[m]])
        loads_s = np.concatenate([loads_s, loads_s + least * load_s])
        cheapest_s = np.concatenate([cheapest_s, np.minimum(cheapest_s, load_s if cap > least else np.inf)])
        sizes = np.concatenate([sizes, sizes + 1])
        sessions = np.concatenate([sessions, sessions + int(least)])
        caps = np.concatenate([caps, caps + cap])
    needed = np.full(len(sizes), workers.num_workers + 1)
    for n in range(workers.num_workers, 0, -1):
        num_sessions = np.maximum(sessions, n + sizes - 1)
        further = num_sessions - sessions
        work_s = serving_s + loads_s + further * np.where(further > 0, np.minimum(cheapest_s, 1e300), 0.0)
        fits = work_s <= n * makespan_s * (1 + SUBSET_MARGIN_FRAC)
        fits &= (num_sessions <= n * workers.max_experts_per_worker) & (num_sessions <= caps)
        needed[fits] = n
    needed[0] = 0
    return needed


def _fewest_in_all(needed: Ints, num_experts: int) -> int:
    """Find the fewest workers over all partitions into parts: the part of a set's first expert, then the rest."""
    fewest = np.zeros_like(needed)
    for whole in range(1, len(needed)):
        first = whole & -whole
        others = whole ^ first
        chosen = np.zeros(1, dtype=np.int64)
        for m in range(num_experts):
            if others >> m & 1:
                chosen = np.concatenate([chosen, chosen | (1 << m)])
        fewest[whole] = (needed[chosen | first] + fewest[others ^ chosen]).min()
    return int(fewest[-1])


def pattern_bound_s(workers: Instance, *, low_s: float, high_s: float, until_ts: float) -> float:
    """Raise a lower bound on the makespan while patterns refute makespans.

    Parameters
    ----------
    workers
        The instance.
    low_s, high_s
        A lower bound and a known makespan, seconds.
    until_ts
        When to end, on the monotonic clock.

    Returns
    -------
    The bound, seconds; ``low_s`` if there are too many patterns to list.
    """
    if workers.max_experts_per_worker > MAX_PATTERN_EXPERTS:
        return low_s
    tried_s = low_s
    while high_s - tried_s > PATTERN_PRECISION_FRAC * high_s and monotonic() < until_ts:
        needed = _least_patterns(workers, tried_s, until_ts)
        if needed is None:
            break
        excess_frac = needed / workers.num_workers - 1
        if excess_frac > PATTERN_MARGIN_FRAC:
            low_s = tried_s
            # The work hardly changes with the makespan, so the number of patterns is about inversely proportional to
            # it.
            near_s = low_s * (1 + max(STEP_FRAC * excess_frac, PATTERN_PRECISION_FRAC))
            tried_s = (low_s + high_s) / 2
            tried_s = min(tried_s, near_s) if near_s > low_s else tried_s
        else:
            high_s = tried_s
            tried_s = (low_s + high_s) / 2
    return low_s


def _least_patterns(workers: Instance, makespan_s: float, until_ts: float) -> float | None:
    """Bound the number of patterns that a makespan needs; None if they are too many to list or no time is left."""
    modes = _list_modes(workers, makespan_s)
    if modes is None:
        return 2.0 * workers.num_workers
    patterns = _list_patterns(modes, makespan_s, workers.max_experts_per_worker)
    if patterns is None:
        return None
    master = _Master(modes)
    proved = 0.0
    while monotonic() < until_ts:
        num_patterns, worth_of_share, worth_of_replica = master.solve()
        best, columns = _price(modes, patterns, worth_of_share, worth_of_replica)
        proved = max(proved, _bound(modes, worth_of_share, worth_of_replica, best))
        if num_patterns <= workers.num_workers or num_patterns - proved <= CONVERGED_FRAC * num_patterns or not columns:
            return proved
        for column in columns:
            master.add(column)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Modes:
    """Experts by the number of their replicas; arrays have one entry per mode, times in seconds."""

    expert: Ints
    replicas: Ints
    is_open: NDArray[np.bool_]
    """True if more replicas belong to the same mode."""
    setup_s: Floats
    per_call_s: Floats
    serving_s: Floats
    """All calls of the expert."""
    least_s: Floats
    """The least share."""
    spare_s: Floats
    """Between the least and the largest share."""


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Sets of modes that fit on one worker, all of the same size."""

    modes: Ints
    """Shape ``(num_patterns, num_experts of a pattern)``."""
    room_s: Floats
    """The part of the makespan that least shares and loads leave free."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One pattern with its shares, in seconds of serving by mode."""

    modes: Ints
    shares_s: Floats


def _list_modes(workers: Instance, makespan_s: float) -> _Modes | None:
    """List the modes of all experts; None if one expert cannot meet the makespan at all."""
    rows: list[tuple[int, int, int, int, int]] = []
    for m, num_calls in enumerate(workers.num_calls):
        most = workers.calls_within(m, 0, makespan_s)
        cap = min(workers.max_replicas[m], num_calls)
        first = -(-num_calls // most) if most else cap + 1
        if first > cap:
            return None
        for replicas in range(first, min(cap, first + NUM_MODES - 1) + 1):
            is_open = replicas == first + NUM_MODES - 1 and replicas < cap
            least = 1 if is_open else max(1, num_calls - (replicas - 1) * most)
            rows.append((m, replicas, is_open, least, min(most, num_calls - replicas + 1)))
    expert, replicas_of, open_modes, least_calls, most_calls = np.array(rows, dtype=np.int64).T
    per_call_s = np.array(workers.per_call_s)[expert, 0]
    return _Modes(
        expert=expert,
        replicas=replicas_of,
        is_open=open_modes.astype(bool),
        setup_s=np.array(workers.setup_s)[expert, 0],
        per_call_s=per_call_s,
        serving_s=np.array(workers.serving_s)[expert],
        least_s=least_calls * per_call_s,
        spare_s=np.maximum(most_calls - least_calls, 0) * per_call_s,
    )


def _list_patterns(modes: _Modes, makespan_s: float, most_experts: int) -> list[_Patterns] | None:
    """List the sets of modes whose loads and least shares fit; None if there are too many."""
    taken_s = modes.setup_s + modes.least_s
    ceiling_s = makespan_s * (1 + 1e-9)
    listed: list[_Patterns] = []
    sets = np.arange(len(taken_s))[:, None]
    for size in range(1, most_experts + 1):
        if size > 1:
            sets = _extend(sets, modes, taken_s, ceiling_s)
        if sum(len(patterns.modes) for patterns in listed) + len(sets) > MAX_PATTERNS:
            return None
        if len(sets):
            room_s = np.maximum(makespan_s - taken_s[sets].sum(axis=1), 0.0)
            listed.append(_Patterns(sets, room_s))
    return listed


def _extend(sets: Ints, modes: _Modes, taken_s: Floats, ceiling_s: float) -> Ints:
    """Add a mode of another expert to every set, after all modes that it has, where it fits."""
    larger = [sets[:0, [0] * (sets.shape[1] + 1)]]
    total_s = taken_s[sets].sum(axis=1)
    for mode in range(1, len(taken_s)):
        here = sets[(sets[:, -1] < mode) & (total_s + taken_s[mode] <= ceiling_s)]
        here = here[(modes.expert[here] != modes.expert[mode]).all(axis=1)]
        larger.append(np.column_stack([here, np.full(len(here), mode)]))
        if sum(map(len, larger)) > MAX_PATTERNS:
            break
    return np.concatenate(larger)


def _price(
    modes: _Modes, listed: Sequence[_Patterns], worth_of_share: Floats, worth_of_replica: Floats
) -> tuple[float, list[_Column]]:
    """Find the worth of the best pattern, and good patterns of each size with their best shares.

    A set's best shares fill the room in order of worth per second. If only one share can vary, it is in whole calls.
    """
    base = worth_of_replica + worth_of_share * modes.least_s
    by_worth = np.argsort(-worth_of_share)
    rank = np.argsort(by_worth)
    best, columns = -np.inf, []
    for patterns in listed:
        sets = by_worth[np.sort(rank[patterns.modes], axis=1)]
        room_s = patterns.room_s
        is_single = (modes.spare_s[sets] > 0).sum(axis=1) == 1
        worth = base[sets].sum(axis=1)
        shares_s = modes.least_s[sets]
        for position in range(sets.shape[1]):
            mode = sets[:, position]
            more_s = np.where(worth_of_share[mode] > 0, np.minimum(room_s, modes.spare_s[mode]), 0.0)
            per_call_s = np.maximum(modes.per_call_s[mode], 1e-300)
            whole_s = np.minimum(np.floor(more_s / per_call_s * (1 + 1e-12) + 1e-9) * per_call_s, modes.spare_s[mode])
            more_s = np.where(is_single, whole_s, more_s)
            worth += worth_of_share[mode] * more_s
            shares_s[:, position] += more_s
            room_s = room_s - more_s
        best = max(best, float(worth.max()))
        most = min(NUM_COLUMNS, len(worth))
        chosen = np.argpartition(-worth, most - 1)[:most]
        columns += [_Column(sets[i], shares_s[i]) for i in chosen if worth[i] > 1]
    return best, columns


def _bound(modes: _Modes, worth_of_share: Floats, worth_of_replica: Floats, best: float) -> float:
    """Bound the number of patterns from below by duals, scaled until no pattern is worth more than one worker."""
    if best <= 0:
        return 0.0
    worth = worth_of_share * modes.serving_s + worth_of_replica * modes.replicas
    least = np.full(int(modes.expert.max()) + 1, np.inf)
    np.minimum.at(least, modes.expert, worth)
    return float(least.sum()) / best


class _Master:
    """The linear program over the patterns so far, in HiGHS.

    Rows: a mode's shares serve its expert's calls in proportion to its weight, and so do its replicas. An expert's
    weights of modes add up to one. The objective is the number of patterns, minimised.
    """

    def __init__(self, modes: _Modes) -> None:
        import highspy  # here, since the other schedulers need none of it

        self._modes = modes
        self._num_modes = len(modes.expert)
        self._highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        self._highs.setOptionValue("output_flag", False)
        self._highs.setOptionValue("threads", 1)
        infinity = self._infinity = float(highspy.kHighsInf)
        for _ in range(self._num_modes):
            self._highs.addRow(0.0, infinity, 0, [], [])
        for is_open in modes.is_open:
            self._highs.addRow(0.0, infinity if is_open else 0.0, 0, [], [])
        for _ in range(int(modes.expert.max()) + 1):
            self._highs.addRow(1.0, 1.0, 0, [], [])
        for mode in range(self._num_modes):
            chosen = [-modes.serving_s[mode], -float(modes.replicas[mode]), 1.0]
            self._column(0.0, [mode, self._num_modes + mode, 2 * self._num_modes + modes.expert[mode]], chosen)
            self._column(UNSERVED_COST, [mode], [max(modes.serving_s[mode], 1.0)])
            self._column(UNSERVED_COST, [self._num_modes + mode], [1.0])
            self._column(UNSERVED_COST, [self._num_modes + mode], [-1.0])

    def add(self, column: _Column) -> None:
        """Add one more pattern."""
        rows = np.concatenate([column.modes, column.modes + self._num_modes])
        self._column(1.0, rows, np.concatenate([column.shares_s, np.ones(len(column.modes))]))

    def solve(self) -> tuple[float, Floats, Floats]:
        """Solve; return the number of patterns, and the worth of a second of share and of a replica of each mode."""
        self._highs.run()
        duals = np.array(self._highs.getSolution().row_dual)
        worth_of_share = np.maximum(duals[: self._num_modes], 0.0)
        worth_of_replica = duals[self._num_modes : 2 * self._num_modes]
        worth_of_replica = np.where(self._modes.is_open, np.maximum(worth_of_replica, 0.0), worth_of_replica)
        return float(self._highs.getInfo().objective_function_value), worth_of_share, worth_of_replica

    def _column(self, cost: float, rows: Sequence[int] | Ints, values: Sequence[float] | Floats) -> None:
        self._highs.addCol(
            cost, 0.0, self._infinity, len(rows), np.array(rows, dtype=np.int32), np.array(values, dtype=np.float64)
        )

"""A lower bound for few experts on equal workers: every way to divide the experts into groups is tried.

NOTE: a plan falls into connected parts (see ``groups``). A part of e experts on n workers has at least n + e - 1
sessions, and each expert at least as many as its calls need; the loads of those and all calls must fit into n C
seconds, the sessions into n K slots. So each set of experts needs at least so many workers at C, and a dynamic
program over subsets finds the partition that needs the fewest. More than there are: no plan ends by C.
"""

from time import monotonic
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.planning.ilp.alike import AlikeWorkers

Ints: TypeAlias = NDArray[np.int64]

MAX_EXPERTS = 13
"""The partitions of a set of M into two number 3^M."""
PRECISION_FRAC = 5e-5
MARGIN_FRAC = 1e-9


def subset_bound_s(workers: AlikeWorkers, *, low_s: float, high_s: float, until_ts: float) -> float:
    """Raise a lower bound on the makespan by bisection; see ``pattern_bound_s`` for the parameters."""
    if workers.num_experts > MAX_EXPERTS:
        return low_s
    while high_s - low_s > PRECISION_FRAC * high_s and monotonic() < until_ts:
        middle_s = (low_s + high_s) / 2
        needed = _least_workers(workers, middle_s)
        if needed is None or _fewest_in_all(needed, workers.num_experts) > workers.num_workers:
            low_s = middle_s
        else:
            high_s = middle_s
    return low_s


def _least_workers(workers: AlikeWorkers, makespan_s: float) -> Ints | None:
    """Count the workers that each set of experts needs as one part, shape ``(2^num_experts,)``; None: they never do."""
    serving_s, loads_s, cheapest_s = np.zeros(1), np.zeros(1), np.full(1, np.inf)
    sizes, sessions, caps = (np.zeros(1, dtype=np.int64) for _ in range(3))
    for m in range(workers.num_experts):
        least = workers.least_replicas(m, makespan_s)
        if least > workers.max_replicas[m]:
            return None
        load_s, cap = workers.setup_s[m], workers.max_replicas[m]
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
        fits = work_s <= n * makespan_s * (1 + MARGIN_FRAC)
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

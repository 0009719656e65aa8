"""Equal workers, solved without a variable for each: a search over groups from above, bounds from below."""

from dataclasses import dataclass
from math import inf
from time import monotonic

from mosaic.planning.ilp.alike import AlikeWorkers
from mosaic.planning.ilp.group_search import GroupSearch
from mosaic.planning.ilp.groups import place_groups
from mosaic.planning.ilp.packing import best_packing, level
from mosaic.planning.ilp.pattern_bound import pattern_bound_s
from mosaic.planning.ilp.subset_bound import subset_bound_s
from mosaic.planning.schedulers.instance import Counts, Instance

FIRST_MOVES_PER_EXPERT = 4000
AIM_FRAC = 0.5
"""How much of the gap the next search is to close."""
BOUND_TIME_FRAC = 0.5
"""Share of the time after the first search that bounds may take."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """A placement, if there is one yet, and a bound below all of them."""

    counts: Counts | None
    finish_s: float
    """Of the placement; infinite without one."""
    bound_s: float


def solve_alike(instance: Instance, workers: AlikeWorkers, bracket: Bracket, *, until_ts: float) -> Bracket:
    """Narrow a bracket until an instant of the monotonic clock; it ends early if packing finds nothing either.

    Searches double in length from one to the next, each with its own seed, and the last is as long as the time that
    is left; bounds come after the first.
    """
    num_moves, seed = FIRST_MOVES_PER_EXPERT * workers.num_experts, 0
    moves_per_s = inf
    while bracket.finish_s > bracket.bound_s and (begin_ts := monotonic()) < until_ts:
        num_moves = int(min(num_moves, moves_per_s * (until_ts - begin_ts)))
        found = GroupSearch(workers, target_s=_target_s(bracket), seed=seed).run(num_moves, until_ts=until_ts)
        moves_per_s = max(found.num_moves, 1) / max(monotonic() - begin_ts, 1e-9)
        counts = place_groups(workers, found.groups)
        if counts is not None:
            bracket = _better(instance, bracket, level(instance, counts))
        elif bracket.counts is None:
            counts = best_packing(instance, until_ts=until_ts)
            if counts is None:
                break
            bracket = _better(instance, bracket, counts)
        if not seed and bracket.finish_s > bracket.bound_s:
            bracket = _raise_bound(workers, bracket, until_ts=monotonic() + BOUND_TIME_FRAC * (until_ts - monotonic()))
        num_moves, seed = 2 * num_moves, seed + 1
    return bracket


def _target_s(bracket: Bracket) -> float:
    """Aim a little below the best placement: a search is at its best where few groups are late."""
    if bracket.counts is None:
        return bracket.bound_s
    return bracket.finish_s - AIM_FRAC * (bracket.finish_s - bracket.bound_s)


def _better(instance: Instance, bracket: Bracket, counts: Counts) -> Bracket:
    finish_s = instance.makespan_s(counts)
    return Bracket(counts, finish_s, bracket.bound_s) if finish_s < bracket.finish_s else bracket


def _raise_bound(workers: AlikeWorkers, bracket: Bracket, *, until_ts: float) -> Bracket:
    """Try both bounds; without a placement there is no makespan to refute."""
    bound_s = bracket.bound_s
    if bracket.finish_s < inf:
        for raise_s in (subset_bound_s, pattern_bound_s):
            bound_s = raise_s(workers, low_s=bound_s, high_s=bracket.finish_s, until_ts=until_ts)
    return Bracket(bracket.counts, bracket.finish_s, bound_s)

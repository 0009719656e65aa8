"""Workers that are all the same: an expert then has one price, and a plan is a list of groups of workers."""

from dataclasses import dataclass
from functools import cached_property
from math import inf

from mosaic.planning.schedulers.instance import Instance


@dataclass(frozen=True, kw_only=True)
class AlikeWorkers:
    """An instance whose workers are interchangeable, without a place more than it needs: numbers by expert."""

    num_calls: tuple[int, ...]
    """N_m of the paper."""
    setup_s: tuple[float, ...]
    """Load and fixed part, paid per session."""
    per_call_s: tuple[float, ...]
    max_replicas: tuple[int, ...]
    """The caps, or fewer: no replica is without a call."""
    num_workers: int
    """Workers where the experts fit; others take no part."""
    max_experts_per_worker: int
    """K of the paper."""

    @property
    def num_experts(self) -> int:
        return len(self.num_calls)

    @cached_property
    def serving_s(self) -> tuple[float, ...]:
        """Seconds to serve all calls of each expert, loads left out."""
        return tuple(n * per_call_s for n, per_call_s in zip(self.num_calls, self.per_call_s, strict=True))

    @cached_property
    def whole_s(self) -> tuple[float, ...]:
        """Seconds of each expert in one session."""
        return tuple(a + b for a, b in zip(self.setup_s, self.serving_s, strict=True))

    def calls_within(self, expert: int, room_s: float) -> int:
        """Count the calls that one session can serve in a time, its load included; see ``Instance.calls_within``."""
        rest_s = room_s - self.setup_s[expert]
        if rest_s < 0:
            return 0
        if self.serving_s[expert] <= rest_s:
            return self.num_calls[expert]
        return min(self.num_calls[expert], int(rest_s / self.per_call_s[expert] * (1 + 1e-12) + 1e-9))

    def least_replicas(self, expert: int, makespan_s: float) -> float:
        """Count the replicas that an expert needs at least under a makespan; infinite if its cap is below that."""
        most = self.calls_within(expert, makespan_s)
        needed = -(-self.num_calls[expert] // most) if most else inf
        return needed if needed <= self.max_replicas[expert] else inf


def alike_workers(instance: Instance) -> AlikeWorkers | None:
    """Look at an instance as one of equal workers; None if prices or places differ, or sessions span several."""
    places = instance.places[0] if instance.places else ()
    if any(len(workers) != 1 for workers in places) or any(other != places for other in instance.places):
        return None
    if any(len(set(prices)) != 1 for prices in (*instance.setup_s, *instance.per_call_s)):
        return None
    return AlikeWorkers(
        num_calls=instance.num_calls,
        setup_s=tuple(prices[0] for prices in instance.setup_s),
        per_call_s=tuple(prices[0] for prices in instance.per_call_s),
        max_replicas=tuple(map(min, instance.max_replicas, instance.num_calls)),
        num_workers=len(places),
        max_experts_per_worker=instance.max_experts_per_worker,
    )

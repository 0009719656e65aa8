"""Lower bounds on the makespan, in closed form: no plan under the same prices and caps is shorter."""

from dataclasses import replace
from math import inf

from mosaic.core.addition import add_in_order
from mosaic.planning.schedulers.instance import Instance

RELATIVE_PRECISION = 1e-9
MAX_BISECTIONS = 100
"""More than the precision ever needs, unless times are so small that halving them does nothing."""


def without_caps(instance: Instance) -> Instance:
    """Lift the replica caps and K, for policies that know neither."""
    return replace(
        instance,
        max_replicas=tuple(len(places) for places in instance.places),
        max_experts_per_worker=instance.num_experts,
    )


def least_replicas(instance: Instance, expert: int, makespan_s: float) -> float:
    """Count the replicas an expert needs at least so that none outlasts a makespan; infinite if no number does."""
    most = max(instance.calls_within(expert, place, makespan_s) for place in range(len(instance.places[expert])))
    if most == 0:
        return inf
    needed = -(-instance.num_calls[expert] // most)
    return needed if needed <= instance.max_replicas[expert] else inf


def may_be_feasible(instance: Instance, makespan_s: float, *, k_applies: bool = True) -> bool:
    """Check conditions that every plan of at most this makespan meets.

    NOTE: a makespan C bounds the calls of one session, hence the replicas of each expert from below, and each
    replica pays its load again. So the work to be done grows as C falls while the room N C shrinks: the
    conditions are monotone in C and bisection finds where they start to hold.
    """
    work_s = 0.0
    slots = 0.0
    for expert, places in enumerate(instance.places):
        replicas = least_replicas(instance, expert, makespan_s)
        if replicas == inf:
            return False
        degree = len(places[0])
        setup_s, per_call_s = min(instance.setup_s[expert]), min(instance.per_call_s[expert])
        work_s += degree * (replicas * setup_s + per_call_s * instance.num_calls[expert])
        slots += degree * replicas
    if k_applies and slots > instance.num_workers * instance.max_experts_per_worker:
        return False
    return work_s <= instance.num_workers * makespan_s * (1 + 1e-12)


def lower_bound_s(instance: Instance, *, k_applies: bool = False) -> float:
    """Bound the makespan of every plan from below, in seconds.

    It is the largest of: the work of all experts, loads of the needed replicas included, spread evenly over the
    workers; and the longest session of each expert when its calls are spread over as many places as its cap allows.

    Parameters
    ----------
    instance
        Experts, places, prices and limits.
    k_applies
        Count K as a limit as well; False where the policy does not know K.
    """
    if not instance.num_experts:
        return 0.0
    low_s = 0.0
    high_s = add_in_order(
        min(setup) + min(per_call) * number
        for setup, per_call, number in zip(instance.setup_s, instance.per_call_s, instance.num_calls, strict=True)
    ) * max(len(places[0]) for places in instance.places)
    if not may_be_feasible(instance, high_s, k_applies=k_applies):
        return high_s
    for _ in range(MAX_BISECTIONS):
        if high_s - low_s <= RELATIVE_PRECISION * high_s:
            break
        middle_s = (low_s + high_s) / 2
        if may_be_feasible(instance, middle_s, k_applies=k_applies):
            high_s = middle_s
        else:
            low_s = middle_s
    return low_s

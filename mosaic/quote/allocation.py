"""Which calls of a batch a pilot asks: whole questions first, and then those that say most about its time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import pstdev

from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.runtime.pilot import choose

WHOLE_SHARE = 0.4
"""Of a pilot's calls: questions that are asked whole, which show what the gate leaves and how far lengths spread."""
MAX_SHARE = 0.5
"""Of the batch: what is more, a quote would have nothing left to say about."""
MIN_CALLS = 8
"""Of each expert, or all that it has."""


def num_pilot_calls(first_calls: Sequence[Call], per_expert: int) -> int:
    """Say how many calls a pilot has: so many an expert on average, and at most half of the batch."""
    num_experts = len({call.expert for call in first_calls})
    return min(per_expert * num_experts, int(MAX_SHARE * len(first_calls)))


def first_share(first_calls: Sequence[Call], num_calls: int, *, seed: int = 0) -> tuple[Call, ...]:
    """Choose the calls of a pilot's first stage."""
    counts = Counter(call.expert for call in first_calls)
    num_questions = len({call.key.question for call in first_calls})
    least = {expert: min(count, MIN_CALLS) for expert, count in counts.items()}
    return choose(first_calls, least, int(WHOLE_SHARE * num_calls * num_questions / len(first_calls)), seed=seed)


def second_share(
    first_calls: Sequence[Call],
    asked: Mapping[CallKey, int],
    num_calls: int,
    *,
    seed: int = 0,
) -> tuple[Call, ...]:
    """Choose the rest: each expert in proportion to its calls and to how far their lengths spread.

    Parameters
    ----------
    first_calls
        Of the batch.
    asked
        What the calls of the first stage wrote, in tokens.
    num_calls
        Of the whole pilot.
    seed
        Of the order of questions.

    References
    ----------
    Neyman, On the two different aspects of the representative method, 1934: the allocation with the least variance of
    a sum over strata.
    """
    counts = Counter(call.expert for call in first_calls)
    lengths: dict[ExpertName, list[int]] = {}
    for call in first_calls:
        if call.key in asked:
            lengths.setdefault(call.expert, []).append(asked[call.key])
    weights = {expert: counts[expert] * pstdev(own) for expert, own in lengths.items()}
    wanted: Counter[ExpertName] = Counter()
    for _ in range(num_calls - len(asked)):
        open_ = [e for e in weights if len(lengths[e]) + wanted[e] < min(counts[e], 0.6 * counts[e] + 1)]
        if not open_:
            break
        wanted[max(open_, key=lambda expert: weights[expert] / (len(lengths[expert]) + wanted[expert]))] += 1
    return choose(first_calls, wanted, 0, asked, seed=seed) if wanted else ()

"""The sessions of a sweep: what a machine is asked to do, so that every coefficient of its price shows."""

from dataclasses import dataclass
from itertools import cycle
from typing import TypeAlias

from mosaic.core.checks import require, require_count
from mosaic.core.engine_options import EngineOptions

Batch: TypeAlias = tuple[tuple[int, int], ...]
"""The requests of a session: prompt and output tokens of each."""

LONGEST_PROMPT = 1024
"""Of batches as large as they get; experts with a shorter context have half of it."""
WARM_UP: Batch = ((24, 6),) * 48
"""Served first by a fresh engine: what it takes longer than later on belongs to the load."""
NUM_LONG = (1, 4, 16)
"""Long sequences in a batch of unequal ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSize:
    """How much a sweep measures."""

    num_rounds: int = 3
    """Every session is run so often on each worker, each round with engines loaded anew."""
    decode_steps: int = 48
    """Output tokens of a request in a batch of equal ones."""
    longest_prompt: int | None = None
    """Of the batches that show context and unequal lengths; None: there are none."""
    most_tokens: int = 131_072
    """Prompt tokens of a batch, where one request does not have more: with long prompts batches are smaller."""

    def __post_init__(self) -> None:
        require_count(self.num_rounds, "engine sweep: num_rounds", at_least=1)
        require_count(self.decode_steps, "engine sweep: decode_steps", at_least=2)
        require_count(self.most_tokens, "engine sweep: most_tokens", at_least=1)
        if self.longest_prompt is not None:
            require_count(self.longest_prompt, "engine sweep: longest_prompt", at_least=64)


def batches_of(context_tokens: int, settings: EngineOptions, size: SweepSize) -> list[Batch]:
    """List the sessions of a round, each once.

    They are equal requests by batch size and prompt, prompts alone, queues that churn, and where a longest prompt is
    given equal requests of long contexts, and unequal ones.
    """
    require(context_tokens >= 64, "engine sweep: context_tokens", "at least 64", context_tokens)
    span, largest = min(context_tokens, LONGEST_PROMPT * 2), settings.max_num_seqs
    steps = min(size.decode_steps, span // 4)
    short, middle, long = (max(8, span // part) for part in (32, 10, 2))
    sizes = sorted({1, min(4, largest), max(1, largest // 4), max(1, largest // 2), largest})

    def held(prompt: int, number: int) -> int:
        return _held(prompt, steps, number, settings, size)

    equal = [((prompt, steps),) * held(prompt, number) for prompt in (short, long) for number in sizes]
    alone = [((prompt, 1),) * held(prompt, number) for prompt in (short, middle, long) for number in (1, largest)]
    # In a long queue of unequal lengths nearly every iteration takes somebody in.
    spread = [1 + round(steps * (0.618034 * i % 1)) for i in range(3 * largest)]
    churn = [
        tuple((prompt, max(1, length * share // 4)) for prompt, length in zip(cycle(prompts), spread))
        for prompts, share in (((middle, short, 2 * middle), 1), ((middle,), 4), ((middle, 2 * middle), 8))
    ]
    # A quarter of the batch ends at once, so that prompts are read a quarter of a batch at a time.
    waves = [tuple((middle, part * (1 + i % 4)) for i in range(4 * largest)) for part in (3, max(1, steps // 4))]
    lengths: list[Batch] = []
    if size.longest_prompt is not None:
        lengths = _by_length(min(size.longest_prompt, context_tokens - steps), steps, settings, size)
    return list(dict.fromkeys([*equal, *alone, *churn, *waves, *lengths]))


def _by_length(longest: int, steps: int, settings: EngineOptions, size: SweepSize) -> list[Batch]:
    """Batches of long contexts; and of one size with unequal lengths, with their mean and with their maximum."""
    contexts = [
        ((prompt, steps),) * _held(prompt, steps, number, settings, size)
        for prompt in (longest // 4, longest // 2, longest)
        for number in (1, 4, settings.max_num_seqs)
    ]
    number, short = settings.max_num_seqs // 4, max(8, longest // 64)
    unequal: list[Batch] = []
    for total in (number, 2 * number, 4 * number):
        for num_long in NUM_LONG:
            mean = (num_long * longest + (total - num_long) * short) // total
            if num_long < total and _held(mean, steps, total, settings, size) == total:
                # The long prompts come first, so that all decode together soon after the others are read.
                mixed = ((longest, steps),) * num_long + ((short, steps),) * (total - num_long)
                unequal += [mixed, ((mean, steps),) * total]
    return [*contexts, *unequal]


def _held(prompt: int, steps: int, number: int, settings: EngineOptions, size: SweepSize) -> int:
    """Cut a batch down to what the KV cache holds at once, and to what is read in good time."""
    kv_tokens = settings.kv_cache_tokens
    in_memory = number if kv_tokens is None else kv_tokens // (prompt + steps + settings.block_size)
    return max(1, min(number, in_memory, size.most_tokens // prompt))

"""Worlds that a pilot leaves possible: what every call that is left would write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.planning.session_model import Request
from mosaic.quote.sample import PilotSample, draw_lengths, draw_merged

NUM_CENTRAL, NUM_BOOTSTRAP = 2, 8
"""Worlds of the pilot's own lengths, which say where the middle is, and of resampled pilots, which say how far off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is left of a batch after its pilot."""

    calls: tuple[Call, ...]
    """Of the first layer."""
    num_open_questions: int
    """That the pilot did not ask whole: some of them will need the aggregator."""
    aggregator: Expert | None = None
    aggregator_degrees: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class Draw:
    """A possible world."""

    requests: Mapping[CallKey, Request]
    merged: tuple[Request, ...]
    """Of the aggregator."""


def draw_world(
    batch: Batch, sample: PilotSample, experts: Mapping[ExpertName, Expert], draw: Random, *, balanced: bool
) -> Draw:
    """Draw what every call that is left would write; see `draw_lengths`."""
    lengths = draw_lengths(sample, batch.calls, experts, draw, balanced=balanced)
    requests = {
        call.key: Request(
            call.prompt_tokens, min(lengths[call.key], experts[call.expert].output_limit(call.prompt_tokens))
        )
        for call in batch.calls
    }
    merged: tuple[Request, ...] = ()
    if batch.aggregator is not None:
        limit = batch.aggregator.max_output_tokens
        pairs = draw_merged(sample, batch.num_open_questions, limit, draw, balanced=balanced)
        merged = tuple(Request(prompt, min(tokens, batch.aggregator.output_limit(prompt))) for prompt, tokens in pairs)
    return Draw(requests, merged)


def draw_worlds(
    batch: Batch,
    sample: PilotSample,
    experts: Mapping[ExpertName, Expert],
    *,
    seed: int = 0,
    num_central: int = NUM_CENTRAL,
    num_bootstrap: int = NUM_BOOTSTRAP,
) -> tuple[Sequence[Draw], Sequence[Draw]]:
    """Draw worlds of the pilot's own lengths, and of resampled pilots: all sizes and policies meet the same."""
    draw = Random(seed)
    central = [draw_world(batch, sample, experts, draw, balanced=True) for _ in range(num_central)]
    resampled = (sample.resampled(draw) for _ in range(num_bootstrap))
    return central, [draw_world(batch, other, experts, draw, balanced=False) for other in resampled]

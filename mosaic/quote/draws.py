"""Worlds that a pilot leaves possible: what every call that is left would write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.planning.session_model import Request
from mosaic.quote.sample import MERGED, Behind, PilotSample, draw_lengths, draw_merged, lengths_behind

NUM_CENTRAL, NUM_BOOTSTRAP = 8, 8
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
    batch: Batch,
    sample: PilotSample,
    behind: Behind,
    experts: Mapping[ExpertName, Expert],
    draw: Random,
    offsets: Mapping[str, float] | None = None,
) -> Draw:
    """Draw what every call that is left would write; see `draw_lengths`."""
    lengths = draw_lengths(behind.by_expert, batch.calls, draw, offsets)
    requests = {
        call.key: Request(
            call.prompt_tokens, min(lengths[call.key], experts[call.expert].output_limit(call.prompt_tokens))
        )
        for call in batch.calls
    }
    merged: tuple[Request, ...] = ()
    if batch.aggregator is not None:
        offset = None if offsets is None else offsets[MERGED]
        pairs = draw_merged(sample, behind.merged, batch.num_open_questions, draw, offset)
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
    """Draw worlds of the pilot's own lengths, and of resampled pilots: all sizes and policies meet the same.

    References
    ----------
    McKay, Beckman, Conover, A comparison of three methods for selecting values of input variables, 1979: in the central
    worlds each expert's luck is taken once from each of so many equal steps.
    """
    draw = Random(seed)
    behind = lengths_behind(sample, experts, batch.aggregator)
    lucks = {name: _one_of_each(num_central, draw) for name in (*behind.by_expert, MERGED)}
    central = [
        draw_world(batch, sample, behind, experts, draw, {name: luck[number] for name, luck in lucks.items()})
        for number in range(num_central)
    ]
    resampled = (sample.resampled(draw) for _ in range(num_bootstrap))
    return central, [
        draw_world(batch, other, lengths_behind(other, experts, batch.aggregator), experts, draw) for other in resampled
    ]


def _one_of_each(num: int, draw: Random) -> list[float]:
    return [(step + draw.random()) / num for step in draw.sample(range(num), num)]

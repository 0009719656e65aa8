"""Possible worlds: what every call that is left would write, by what a pilot showed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from mosaic.core.checks import require
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.planning.problem import Request
from mosaic.quote.lengths import Lengths, fit_lengths

MERGED = "(merged)"
"""Stands for the aggregator beside the experts' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotQuestion:
    """A question of a pilot."""

    output_tokens: Mapping[ExpertName, tuple[int, ...]]
    """Of its calls that were sent, by expert."""
    is_whole: bool = True
    """All of its calls were sent, so that the gate could decide."""
    merged: tuple[tuple[int, int], ...] = ()
    """Prompt and output tokens of the aggregator's calls that it needed."""


@dataclass(frozen=True, kw_only=True)
class PilotSample:
    """The questions of a pilot, in any order."""

    questions: tuple[PilotQuestion, ...]

    def __post_init__(self) -> None:
        require(len(self.questions) > 0, "pilot sample: questions", "at least one", 0)

    @cached_property
    def by_expert(self) -> Mapping[ExpertName, tuple[int, ...]]:
        """All output tokens, by expert."""
        found: defaultdict[ExpertName, list[int]] = defaultdict(list)
        for question in self.questions:
            for expert, lengths in question.output_tokens.items():
                found[expert] += lengths
        return {expert: tuple(lengths) for expert, lengths in found.items()}

    @property
    def needed_frac(self) -> float:
        """Share of the whole questions that needed the aggregator; 0 without whole questions."""
        whole = [question for question in self.questions if question.is_whole]
        return sum(bool(question.merged) for question in whole) / len(whole) if whole else 0.0

    @property
    def merged(self) -> tuple[tuple[int, int], ...]:
        """Prompt and output tokens of all calls of the aggregator."""
        return tuple(pair for question in self.questions for pair in question.merged)

    def resampled(self, draw: Random) -> "PilotSample":
        """Draw as many questions with replacement: another pilot that might as well have been.

        Whole questions are drawn, so that experts which write long on the same questions do so together. An expert
        that no drawn question calls keeps its lengths.
        """
        drawn = [draw.choice(self.questions) for _ in self.questions]
        seen = {expert for question in drawn for expert in question.output_tokens}
        kept = {expert: lengths for expert, lengths in self.by_expert.items() if expert not in seen}
        if kept:
            drawn.append(PilotQuestion(output_tokens=kept, is_whole=False))
        return PilotSample(questions=tuple(drawn))


def fit_sample(
    sample: PilotSample, experts: Mapping[ExpertName, Expert], aggregator: Expert | None = None
) -> dict[ExpertName, Lengths]:
    """Fit the lengths behind a sample: those of its experts, and what the aggregator writes under ``MERGED``."""
    samples = {name: (lengths, experts[name].max_output_tokens) for name, lengths in sample.by_expert.items()}
    kin = {name: experts[name].family for name in samples}
    merged = tuple(output_tokens for _, output_tokens in sample.merged)
    if aggregator is not None and merged:
        samples[MERGED], kin[MERGED] = (merged, aggregator.max_output_tokens), aggregator.family
    return fit_lengths(samples, kin)


def draw_lengths(
    lengths: Mapping[ExpertName, Lengths],
    calls: Sequence[Call],
    draw: Random,
    offsets: Mapping[str, float] | None = None,
) -> dict[CallKey, int]:
    """Give calls lengths.

    Parameters
    ----------
    lengths, calls
        Of experts, and what gets them.
    draw
        Of the order, and of the lengths themselves.
    offsets
        By expert, in 0..1: its calls get quantiles from equal steps, so far into each step, and chance is
        in its longest calls alone. None: each call draws for itself.

    Raises
    ------
    ValueError
        If the lengths of an expert are not known.
    """
    keys: defaultdict[ExpertName, list[CallKey]] = defaultdict(list)
    for call in calls:
        keys[call.expert].append(call.key)
    drawn: dict[CallKey, int] = {}
    for name, own in keys.items():
        if name not in lengths:
            raise ValueError(f"pilot sample must have calls of every expert that is left, got none of {name!r}")
        places = _places(len(own), draw, None if offsets is None else offsets[name])
        drawn |= zip(own, map(lengths[name].at, places), strict=True)
    return drawn


def _places(num: int, draw: Random, offset: float | None) -> list[float]:
    if offset is None:
        return [draw.random() for _ in range(num)]
    places = [(place + offset) / num for place in range(num)]
    draw.shuffle(places)
    return places


def draw_merged(
    sample: PilotSample, lengths: Lengths | None, num_questions: int, draw: Random, offset: float | None = None
) -> list[tuple[int, int]]:
    """Give questions that were not sent whole the calls of the aggregator that they will need; see `draw_lengths`."""
    known, frac = sample.merged, sample.needed_frac
    if lengths is None or not frac:
        return []
    each = len(known) / max(1, sum(bool(question.merged) for question in sample.questions))
    num_needed = num_questions * frac if offset is not None else sum(draw.random() < frac for _ in range(num_questions))
    num_calls = round(num_needed * each)
    prompts = draw.choices([prompt_tokens for prompt_tokens, _ in known], k=num_calls)
    return list(zip(prompts, map(lengths.at, _places(num_calls, draw, offset)), strict=True))


NUM_CENTRAL, NUM_BOOTSTRAP = 8, 8
"""Worlds of the pilot's own lengths, which say where the middle is, and of resampled pilots, which say how far off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is left of a batch after its pilot."""

    calls: tuple[Call, ...]
    """Of the first layer."""
    num_open_questions: int
    """That the pilot did not send whole: some of them will need the aggregator."""
    aggregator: Expert | None = None
    aggregator_degrees: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class World:
    """A possible world."""

    requests: Mapping[CallKey, Request]
    merged: tuple[Request, ...]
    """Of the aggregator."""


def draw_world(
    batch: Batch,
    sample: PilotSample,
    fitted: Mapping[ExpertName, Lengths],
    experts: Mapping[ExpertName, Expert],
    draw: Random,
    offsets: Mapping[str, float] | None = None,
) -> World:
    """Draw what every call that is left would write; see `draw_lengths`."""
    lengths = draw_lengths(fitted, batch.calls, draw, offsets)
    requests = {
        call.key: Request(
            call.prompt_tokens, min(lengths[call.key], experts[call.expert].output_limit(call.prompt_tokens))
        )
        for call in batch.calls
    }
    merged: tuple[Request, ...] = ()
    if batch.aggregator is not None:
        offset = None if offsets is None else offsets[MERGED]
        pairs = draw_merged(sample, fitted.get(MERGED), batch.num_open_questions, draw, offset)
        merged = tuple(Request(prompt, min(tokens, batch.aggregator.output_limit(prompt))) for prompt, tokens in pairs)
    return World(requests, merged)


def draw_worlds(
    batch: Batch,
    sample: PilotSample,
    experts: Mapping[ExpertName, Expert],
    *,
    seed: int = 0,
    num_central: int = NUM_CENTRAL,
    num_bootstrap: int = NUM_BOOTSTRAP,
) -> tuple[Sequence[World], Sequence[World]]:
    """Draw worlds of the pilot's own lengths, and of resampled pilots: all sizes and policies meet the same.

    References
    ----------
    McKay, Beckman, Conover, A comparison of three methods for selecting values of input variables, 1979: in the central
    worlds each expert's offset is taken once from each of so many equal steps.
    """
    draw = Random(seed)
    fitted = fit_sample(sample, experts, batch.aggregator)
    offsets = {name: _one_of_each(num_central, draw) for name in dict.fromkeys((*fitted, MERGED))}
    central = [
        draw_world(batch, sample, fitted, experts, draw, {name: own[number] for name, own in offsets.items()})
        for number in range(num_central)
    ]
    resampled = (sample.resampled(draw) for _ in range(num_bootstrap))
    return central, [
        draw_world(batch, other, fit_sample(other, experts, batch.aggregator), experts, draw) for other in resampled
    ]


def _one_of_each(num: int, draw: Random) -> list[float]:
    return [(step + draw.random()) / num for step in draw.sample(range(num), num)]

"""Describes a batch after its pilot, and draws possible worlds: lengths of all remaining calls, from the pilot's."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.planning.problem import Request
from mosaic.quote.lengths import Lengths, fit_lengths

MERGED = "(merged)"
"""Name of the aggregator among the experts' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotQuestion:
    """A question of a pilot."""

    output_tokens: Mapping[ExpertName, tuple[int, ...]]
    """Of its sent calls, by expert."""
    is_whole: bool = True
    """All of its calls were sent, so that the gate could decide."""
    merged: tuple[tuple[int, int], ...] = ()
    """Prompt and output tokens of its aggregator calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The results of a batch's pilot, and the rest of the batch."""

    questions: tuple[PilotQuestion, ...]
    """Of the pilot, in any order."""
    calls: tuple[Call, ...]
    """Remaining calls of the first layer."""
    num_open_questions: int
    """Questions that the pilot did not send whole: some of them will need the aggregator."""
    aggregator: Expert | None = None
    aggregator_degrees: tuple[int, ...] = (1,)

    @property
    def by_expert(self) -> Mapping[ExpertName, tuple[int, ...]]:
        """All output tokens of the pilot, by expert."""
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
        """Prompt and output tokens of all calls of the aggregator in the pilot."""
        return tuple(pair for question in self.questions for pair in question.merged)

    def resampled(self, draw: Random) -> "Batch":
        """Draw as many questions with replacement: another pilot that could have occurred.

        Whole questions are drawn, so that lengths of experts on the same question stay correlated. An expert without a
        call in the drawn questions keeps its lengths.
        """
        drawn = [draw.choice(self.questions) for _ in self.questions]
        seen = {expert for question in drawn for expert in question.output_tokens}
        kept = {expert: lengths for expert, lengths in self.by_expert.items() if expert not in seen}
        if kept:
            drawn.append(PilotQuestion(output_tokens=kept, is_whole=False))
        return replace(self, questions=tuple(drawn))

    def fitted(self, experts: Mapping[ExpertName, Expert]) -> dict[ExpertName, Lengths]:
        """Fit distributions to the pilot's lengths: those of its experts, and the aggregator's under ``MERGED``."""
        samples = {name: (lengths, experts[name].max_output_tokens) for name, lengths in self.by_expert.items()}
        kin = {name: experts[name].family for name in samples}
        merged = tuple(output_tokens for _, output_tokens in self.merged)
        if self.aggregator is not None and merged:
            samples[MERGED], kin[MERGED] = (merged, self.aggregator.max_output_tokens), self.aggregator.family
        return fit_lengths(samples, kin)


@dataclass(frozen=True, slots=True)
class World:
    """A possible world."""

    requests: Mapping[CallKey, Request]
    merged: tuple[Request, ...]
    """Requests of the aggregator."""


def draw_world(
    batch: Batch,
    fitted: Mapping[ExpertName, Lengths],
    experts: Mapping[ExpertName, Expert],
    draw: Random,
    offsets: Mapping[str, float] | None = None,
) -> World:
    """Draw the lengths of all remaining calls.

    Parameters
    ----------
    batch, fitted, experts
        The rest of the batch, and the lengths of its experts.
    draw
        Of the order, and of the lengths themselves.
    offsets
        By expert, in 0..1: its calls get quantiles at equal steps, at this position within each step. So only its
        longest calls are random. None: each call draws for itself.

    Raises
    ------
    ValueError
        If the lengths of an expert are not known.
    """

    def drawn(name: ExpertName, expert: Expert, prompts: Sequence[int]) -> list[Request]:
        places = _places(len(prompts), draw, None if offsets is None else offsets[name])
        tokens = map(fitted[name].at, places)
        return [
            Request(prompt, min(own, expert.output_limit(prompt))) for prompt, own in zip(prompts, tokens, strict=True)
        ]

    calls: defaultdict[ExpertName, list[Call]] = defaultdict(list)
    for call in batch.calls:
        calls[call.expert].append(call)
    requests: dict[CallKey, Request] = {}
    for name, own in calls.items():
        if name not in fitted:
            raise ValueError(f"pilot sample must have calls of every expert that is left, got none of {name!r}")
        own_requests = drawn(name, experts[name], [call.prompt_tokens for call in own])
        requests |= zip((call.key for call in own), own_requests, strict=True)
    if batch.aggregator is None or MERGED not in fitted or not batch.needed_frac:
        return World(requests, ())
    prompts = _prompts_to_merge(batch, draw, is_random=offsets is None)
    return World(requests, tuple(drawn(MERGED, batch.aggregator, prompts)))


def _places(num: int, draw: Random, offset: float | None) -> list[float]:
    if offset is None:
        return [draw.random() for _ in range(num)]
    places = [(place + offset) / num for place in range(num)]
    draw.shuffle(places)
    return places


def _prompts_to_merge(batch: Batch, draw: Random, *, is_random: bool) -> list[int]:
    """Draw prompt tokens of the aggregator's calls for questions that were not sent whole."""
    known, frac, num_open = batch.merged, batch.needed_frac, batch.num_open_questions
    each = len(known) / max(1, sum(bool(question.merged) for question in batch.questions))
    num_needed = sum(draw.random() < frac for _ in range(num_open)) if is_random else num_open * frac
    return draw.choices([prompt_tokens for prompt_tokens, _ in known], k=round(num_needed * each))


NUM_CENTRAL, NUM_BOOTSTRAP = 8, 8
"""Worlds of the pilot's own lengths, for the median, and of resampled pilots, for the spread."""


def draw_worlds(
    batch: Batch,
    experts: Mapping[ExpertName, Expert],
    *,
    seed: int = 0,
    num_central: int = NUM_CENTRAL,
    num_bootstrap: int = NUM_BOOTSTRAP,
) -> tuple[Sequence[World], Sequence[World]]:
    """Draw worlds of the pilot's own lengths, and of resampled pilots: all sizes and policies use the same worlds.

    References
    ----------
    McKay, Beckman, Conover, A comparison of three methods for selecting values of input variables, 1979: in the central
    worlds each expert's offset is taken once from each of so many equal steps.
    """
    draw = Random(seed)
    fitted = batch.fitted(experts)
    offsets = {name: _one_of_each(num_central, draw) for name in dict.fromkeys((*fitted, MERGED))}
    central = [
        draw_world(batch, fitted, experts, draw, {name: own[number] for name, own in offsets.items()})
        for number in range(num_central)
    ]
    resampled = (batch.resampled(draw) for _ in range(num_bootstrap))
    return central, [draw_world(other, other.fitted(experts), experts, draw) for other in resampled]


def _one_of_each(num: int, draw: Random) -> list[float]:
    return [(step + draw.random()) / num for step in draw.sample(range(num), num)]

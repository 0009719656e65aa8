"""What a pilot showed: the lengths of its calls, and which of its questions needed an aggregator."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from mosaic.core.checks import require
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.quote.tail import Lengths, fit_lengths

MERGED = "(merged)"
"""Stands for the aggregator beside the experts' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotQuestion:
    """A question of a pilot."""

    output_tokens: Mapping[ExpertName, tuple[int, ...]]
    """Of its calls that were asked, by expert."""
    is_whole: bool = True
    """All of its calls were asked, so that the gate could decide."""
    merged: tuple[tuple[int, int], ...] = ()
    """Prompt and output tokens of the aggregator's calls that it needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotSample:
    """The questions of a pilot, in any order."""

    questions: tuple[PilotQuestion, ...]
    _by_expert: dict[ExpertName, tuple[int, ...]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(len(self.questions) > 0, "pilot sample: questions", "at least one", 0)
        found: defaultdict[ExpertName, list[int]] = defaultdict(list)
        for question in self.questions:
            for expert, lengths in question.output_tokens.items():
                found[expert] += lengths
        self._by_expert.update({expert: tuple(lengths) for expert, lengths in found.items()})

    @property
    def by_expert(self) -> Mapping[ExpertName, tuple[int, ...]]:
        """All output tokens, by expert."""
        return self._by_expert

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
        that no drawn question asked keeps its lengths.
        """
        drawn = [draw.choice(self.questions) for _ in self.questions]
        seen = {expert for question in drawn for expert in question.output_tokens}
        kept = {expert: lengths for expert, lengths in self.by_expert.items() if expert not in seen}
        if kept:
            drawn.append(PilotQuestion(output_tokens=kept, is_whole=False))
        return PilotSample(questions=tuple(drawn))


@dataclass(frozen=True, slots=True)
class Behind:
    """The lengths behind a sample."""

    by_expert: Mapping[ExpertName, Lengths]
    merged: Lengths | None
    """Of the aggregator; None: it was not asked."""


def lengths_behind(
    sample: PilotSample, experts: Mapping[ExpertName, Expert], aggregator: Expert | None = None
) -> Behind:
    """Fit the lengths behind a sample: those of its experts, and what the aggregator writes."""
    samples = {name: (lengths, experts[name].max_output_tokens) for name, lengths in sample.by_expert.items()}
    kin = {name: experts[name].family for name in samples}
    merged = tuple(output_tokens for _, output_tokens in sample.merged)
    if aggregator is None or not merged:
        return Behind(fit_lengths(samples, kin), None)
    samples[MERGED], kin[MERGED] = (merged, aggregator.max_output_tokens), aggregator.family
    fitted = fit_lengths(samples, kin)
    return Behind(fitted, fitted.pop(MERGED))


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
        By expert, in 0..1: its calls get quantiles from equal steps, so far into each step, and the luck of a world is
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
    """Give questions that were not asked whole the calls of the aggregator that they will need; see `draw_lengths`."""
    known, frac = sample.merged, sample.needed_frac
    if lengths is None or not frac:
        return []
    each = len(known) / max(1, sum(bool(question.merged) for question in sample.questions))
    num_needed = num_questions * frac if offset is not None else sum(draw.random() < frac for _ in range(num_questions))
    num_calls = round(num_needed * each)
    prompts = draw.choices([prompt_tokens for prompt_tokens, _ in known], k=num_calls)
    return list(zip(prompts, map(lengths.at, _places(num_calls, draw, offset)), strict=True))

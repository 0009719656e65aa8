"""What a pilot showed: the lengths of its calls, and which of its questions needed an aggregator."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from mosaic.core.checks import require
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.quote.tail import lengths_of


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


def draw_lengths(
    sample: PilotSample, calls: Sequence[Call], experts: Mapping[ExpertName, Expert], draw: Random, *, balanced: bool
) -> dict[CallKey, int]:
    """Give calls lengths, by those of a sample.

    Parameters
    ----------
    sample, calls, experts
        Whose lengths, and what gets them.
    draw
        Of the order, and of the lengths themselves.
    balanced
        An expert's calls get quantiles at equal steps: what the sample says, without further luck. Otherwise each call
        draws for itself.

    Raises
    ------
    ValueError
        If the sample has no call of an expert.
    """
    keys: defaultdict[ExpertName, list[CallKey]] = defaultdict(list)
    for call in calls:
        keys[call.expert].append(call.key)
    lengths: dict[CallKey, int] = {}
    for name, own in keys.items():
        known = sample.by_expert.get(name)
        if not known:
            raise ValueError(f"pilot sample must have calls of every expert that is left, got none of {name!r}")
        behind = lengths_of(known, experts[name].max_output_tokens)
        lengths |= zip(own, map(behind.at, _places(len(own), draw, balanced)), strict=True)
    return lengths


def _places(num: int, draw: Random, balanced: bool) -> list[float]:
    if not balanced:
        return [draw.random() for _ in range(num)]
    places = [(place + 0.5) / num for place in range(num)]
    draw.shuffle(places)
    return places


def draw_merged(
    sample: PilotSample, num_questions: int, limit: int, draw: Random, *, balanced: bool
) -> list[tuple[int, int]]:
    """Give questions that were not asked whole the calls of the aggregator that they will need; see `draw_lengths`."""
    known, frac = sample.merged, sample.needed_frac
    if not known or not frac:
        return []
    each = len(known) / max(1, sum(bool(question.merged) for question in sample.questions))
    num_needed = num_questions * frac if balanced else sum(draw.random() < frac for _ in range(num_questions))
    num_calls = round(num_needed * each)
    behind = lengths_of([output_tokens for _, output_tokens in known], limit)
    prompts = draw.choices([prompt_tokens for prompt_tokens, _ in known], k=num_calls)
    return list(zip(prompts, map(behind.at, _places(num_calls, draw, balanced)), strict=True))

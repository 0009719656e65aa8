"""Draws the simulated world: the true length and the answer of each call, for test and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mosaic.core.realization import Outcome, question_uniforms, uniform, uniform_pair
from mosaic.core.results import Inputs
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, Family, Question, Workload
from sim.world.answer_model import AnswerModel, Item, possible_answers, shift_length
from sim.world.lengths import LengthDistribution


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Maps a call to its outcome from hashed uniform numbers, so that every policy has the same draws.

    The calibration world differs from the test world only in its stream: the same distributions, other draws. Without
    an answer model calls have lengths and no answers.
    """

    lengths: Mapping[ExpertName, LengthDistribution]
    root_seed: int
    """Of the run."""
    question_seed: int = 0
    """Seed of the questions: a data set is fixed, for all seeds of runs."""
    stream: str = "test"
    recorded: Mapping[CallKey, int] = field(default_factory=dict)
    """True lengths known from a file or a log; they take precedence over the distributions."""
    answers: AnswerModel | None = None
    questions: Mapping[str, Question] = field(default_factory=dict)
    """By id; a call of any other question has a difficulty and no answer."""
    aggregator_lengths: Mapping[ExpertName, LengthDistribution] = field(default_factory=dict)
    thinking: Mapping[ExpertName, int] = field(default_factory=dict)
    """Most visible tokens of the experts that think before they answer; the whole output of others is visible."""
    tells_confidence: bool = False
    """Calls report the probability of their answer. Assumed: a real confidence is of the tokens, not of the answer."""
    _items: dict[str, Item] = field(init=False, repr=False, compare=False, default_factory=dict)

    def outcome(self, call: Call, inputs: Inputs) -> Outcome:
        """Look up or draw the outcome of a call, given the records of the calls that it reads.

        Raises
        ------
        ValueError
            If the call has no recorded length and its expert no distribution.
        """
        if self.answers is None:
            return Outcome(self._length(call, uniform(self.root_seed, self.stream, call.key)))
        key = call.key
        length_draw, choice = uniform_pair(self.root_seed, self.stream, key)
        item = self._item(key.question, self.answers)
        answer: str | None = None
        seen: list[str | None] | None = None
        is_aggregator = bool(call.after)
        loading = self.answers.aggregator_length_loading if is_aggregator else self.answers.length_loading
        if is_aggregator and item.answers:
            seen = [inputs[needed].answer if needed in inputs else None for needed in call.after]
            answer = self.answers.aggregate(item, call.expert, seen, choice)
        elif item.answers:
            answer = self.answers.propose(item, call.expert, choice)
        length = self._length(call, shift_length(length_draw, item.difficulty, loading))
        visible = self.thinking.get(call.expert)
        if visible is not None and visible > length:
            visible = length
        confidence, sparse = None, None
        if self.tells_confidence and answer is not None:
            confidence = self.answers.probability(item, call.expert, answer, seen)
        if self.answers.kv_loss_frac and item.answers and not is_aggregator:
            num_tokens = call.prompt_tokens + length
            sparse = self.answers.propose_sparse(item, call.expert, choice, num_tokens) or None
        return Outcome(length, answer, visible, confidence, sparse)

    def _length(self, call: Call, u: float) -> int:
        if self.recorded and (recorded := self.recorded.get(call.key)) is not None:
            return recorded
        is_aggregator = bool(call.after)
        lengths = self.aggregator_lengths if is_aggregator else self.lengths
        distribution = lengths.get(call.expert)
        if distribution is None:
            owner = "aggregator" if is_aggregator else "expert"
            key = "merged_tokens" if is_aggregator else "output_tokens"
            raise ValueError(
                f"output_tokens must have a length distribution for {owner} {call.expert!r}, "
                f"got {sorted(lengths)}: add world.{key}.{call.expert}"
            )
        return distribution.quantile(u)

    def _item(self, question: str, answers: AnswerModel) -> Item:
        item = self._items.get(question)
        if item is None:
            known = self.questions.get(question)
            possible = () if known is None else possible_answers(known)
            item = self._items[question] = answers.item(question, possible, self.question_seed, self.stream)
        return item


MOST_WORLDS = 12
"""Number of worlds that are kept with their questions, so that points of a sweep share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedWorld:
    """Lengths and answers, before any draw."""

    lengths: Mapping[ExpertName, LengthDistribution]
    merged_lengths: Mapping[ExpertName, LengthDistribution]
    """Of experts that aggregate."""
    answers: AnswerModel | None
    """None: calls have lengths only."""
    question_seed: int = 0
    """Seed of the data set."""
    visible_tokens: int = 0
    """Most tokens of a reasoning expert's response after its thinking."""
    _worlds: dict[tuple[object, ...], tuple[Workload, World]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def draw(
        self, workload: Workload, experts: tuple[Expert, ...], stream: str, *, seed: int, length_error: float = 1.0
    ) -> World:
        """Return the world of a run, or one with other draws.

        ``stream`` is test or calibration. Means may have an error; apart from that the distributions are the same.
        """
        reasoning = tuple(expert.name for expert in experts if expert.family is Family.REASONING)
        key = (id(workload), reasoning, stream, seed, length_error)  # the workload is kept, so its id stays valid
        if key not in self._worlds:
            if len(self._worlds) == MOST_WORLDS:
                del self._worlds[next(iter(self._worlds))]
            is_test = stream == "test"
            self._worlds[key] = (
                workload,
                World(
                    lengths=mistaken_lengths(self.lengths, length_error, seed=seed),
                    root_seed=seed,
                    question_seed=self.question_seed,
                    stream=stream,
                    recorded=(workload.output_tokens or {}) if is_test else {},
                    answers=self.answers,
                    questions={question.id: question for question in workload.questions},
                    aggregator_lengths={**self.lengths, **self.merged_lengths},
                    thinking=dict.fromkeys(reasoning, self.visible_tokens),
                ),
            )
        return self._worlds[key][1]


def mistaken_lengths(
    lengths: Mapping[ExpertName, LengthDistribution], error: float, *, seed: int
) -> Mapping[ExpertName, LengthDistribution]:
    """Multiply each expert's mean by a factor between 1/error and error, log-uniform.

    The factor depends only on the seed, the expert and the error, and moves away from 1 as the error grows.

    Raises
    ------
    ValueError
        If a mean is outside its limits.
    """
    if error == 1:
        return lengths
    mistaken = {}
    for name, entry in lengths.items():
        (u,) = question_uniforms(seed, "length error", name, 1)
        try:
            mistaken[name] = entry.scaled(error ** (2 * u - 1))
        except ValueError as out_of_range:
            raise ValueError(f"profile.length_error={error!r}, expert {name}: {out_of_range}") from None
    return mistaken

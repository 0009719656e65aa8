"""Draws the answer of a call: an item-response model with one latent difficulty per question.

NOTE: Bock's nominal response model. Every option has a utility for the model that answers. The model takes an option
with probability in proportion to exp(utility). The right option has ability - discrimination x difficulty, where the
difficulty is standard normal over questions. A wrong option has its own attraction, normal over options and the same
for every model. So models that err tend to give the same answer. An aggregator adds a constant for each response that
names an option. The same difficulty shifts the length of a call: hard questions disagree more, go wrong more often and
run longer.

References
----------
R. D. Bock, Estimating item parameters and latent ability when responses are scored in two or more nominal categories,
Psychometrika 37 (1972).
"""

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from math import exp, sqrt
from statistics import NormalDist
from typing import Annotated, NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.checks import Limit, Share, checked, require_count
from mosaic.core.realization import question_uniforms
from mosaic.core.workload import OPTION_LETTERS, ExpertName, Question
from sim.world.lengths import Source

NUM_UNLISTED_OPTIONS = 10
"""Number of answers to a question without listed options: the right one and nine wrong ones. Assumed."""

MOST_LOGITS = 20
"""Bound of every parameter on the logit scale: far beyond certainty, and no sum of utilities overflows."""
Logits: TypeAlias = Annotated[float, Limit(at_least=-MOST_LOGITS, at_most=MOST_LOGITS)]
PositiveLogits: TypeAlias = Annotated[float, Limit(at_least=0, at_most=MOST_LOGITS)]
Correlation: TypeAlias = Annotated[float, Limit(at_least=-1, at_most=1)]

_STANDARD_NORMAL = NormalDist()
_LARGEST_UNIFORM = 1.0 - 2.0**-53
_SMALLEST_UNIFORM = 1.0 - _LARGEST_UNIFORM


class Item(NamedTuple):
    """A question with its drawn difficulty and attractions."""

    difficulty: float
    """Standard normal over questions."""
    answers: tuple[str, ...]
    """The right one first."""
    attractions: Sequence[float]
    """exp(utility) of the wrong answers, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("answers.")
class AnswerModel:
    """Parameters of a benchmark's questions and of the models that answer them, on the logit scale."""

    mean_ability: Logits
    """Of the experts, against a wrong option of average attraction, on a question of average difficulty."""
    discrimination: PositiveLogits
    """Logits that the right option loses per standard deviation of difficulty."""
    distractor_std: PositiveLogits
    """Standard deviation of the wrong options' attraction."""
    length_loading: Correlation
    """Correlation of a call's (normal) length score with its question's difficulty. The mean length does not change.

    Below 0 hard questions get short answers, so long answers are right more often.
    """
    aggregator_gain: Logits
    """Additional ability of an expert when it aggregates, compared with answering alone."""
    deference: PositiveLogits
    """Utility that a response adds to the option it names, for the aggregator that reads it."""
    aggregator_length_loading: Correlation
    """As ``length_loading``, of the aggregator."""
    ability_by_expert: Mapping[ExpertName, Logits] = field(default_factory=dict)
    """Relative to the mean; an expert without an entry is average."""
    kv_loss_frac: Mapping[int, Share] = field(default_factory=dict)
    """By KV budget in tokens, the share of right answers that are lost if a proposal exceeds the budget."""
    source: Source = "assumed"
    """Source of the shares of agreement that the model gives."""

    def __post_init__(self) -> None:
        for budget in self.kv_loss_frac:
            require_count(budget, "answers.kv_loss_frac: budget in tokens", at_least=1)

    def item(self, question: str, answers: tuple[str, ...], seed: int, stream: str) -> Item:
        """Draw a question's difficulty and its wrong answers' attractions from hashed uniform numbers."""
        uniforms = question_uniforms(seed, stream, question, max(1, len(answers)))
        difficulty, *scores = map(_STANDARD_NORMAL.inv_cdf, uniforms)
        return Item(difficulty, answers, array("d", [exp(self.distractor_std * score) for score in scores]))

    def weights(self, item: Item, expert: ExpertName, seen: Sequence[str | None] | None = None) -> Sequence[float]:
        """Weigh a question's answers for an expert; ``seen``: answers that it reads as an aggregator, None: none."""
        ability = self.ability(expert) + (0.0 if seen is None else self.aggregator_gain)
        weights = (exp(ability - self.discrimination * item.difficulty), *item.attractions)
        if seen is None:
            return weights
        support = (exp(self.deference * seen.count(answer)) for answer in item.answers)
        return [weight * boost for weight, boost in zip(weights, support, strict=True)]

    def propose(self, item: Item, expert: ExpertName, u: float) -> str:
        """Map a uniform number to an expert's answer."""
        return _pick(item.answers, self.weights(item, expert), u)

    def propose_sparse(self, item: Item, expert: ExpertName, u: float, num_tokens: int) -> dict[int, str]:
        """Map the uniform number of a right answer to the wrong ones that replace it, by KV budget in tokens.

        A sequence within the budget is read in full. In longer ones each right answer is lost with the same
        probability, to a wrong one in proportion to its attraction. Wrong answers are not changed.
        """
        right = self.weights(item, expert)[0]
        right_frac = right / (right + add_in_order(item.attractions))
        found = {}
        for budget, lost_frac in self.kv_loss_frac.items():
            kept_frac = right_frac * (1 - lost_frac)
            if num_tokens > budget and len(item.answers) > 1 and kept_frac <= u < right_frac:
                found[budget] = _pick(item.answers[1:], item.attractions, (u - kept_frac) / (right_frac - kept_frac))
        return found

    def aggregate(self, item: Item, aggregator: ExpertName, seen: Sequence[str | None], u: float) -> str:
        """Map a uniform number to the aggregator's answer, given the answers in the responses that it reads."""
        return _pick(item.answers, self.weights(item, aggregator, seen), u)

    def probability(self, item: Item, expert: ExpertName, answer: str, seen: Sequence[str | None] | None) -> float:
        """Return the probability that an expert gives this answer; ``seen``: as in ``weights``."""
        weights = self.weights(item, expert, seen)
        return weights[item.answers.index(answer)] / add_in_order(weights)

    def ability(self, expert: ExpertName) -> float:
        """An expert's ability."""
        return self.mean_ability + self.ability_by_expert.get(expert, 0.0)


def shift_length(u: float, difficulty: float, loading: float) -> float:
    """Correlate a length's uniform number with the difficulty; it stays uniform over questions, so no mean changes.

    A Gaussian copula: the length's normal score is loading x difficulty + sqrt(1 - loading^2) x the call's own score.

    Examples
    --------
    >>> shift_length(0.5, 0.0, 0.6), shift_length(0.5, 1.0, 0.6) > 0.7
    (0.5, True)
    """
    if loading == 0:
        return u
    own = _STANDARD_NORMAL.inv_cdf(u)
    shifted = _STANDARD_NORMAL.cdf(loading * difficulty + sqrt(1 - loading**2) * own)
    if _SMALLEST_UNIFORM <= shifted <= _LARGEST_UNIFORM:
        return shifted
    return _LARGEST_UNIFORM if shifted > 0.5 else _SMALLEST_UNIFORM


def possible_answers(question: Question) -> tuple[str, ...]:
    """List a question's possible answers, the right one first; without gold the first option counts as right."""
    if question.num_options is None:
        # NOTE: no digits, or a comparison of mathematical answers would try to prove them equal, pair by pair.
        letters = OPTION_LETTERS[: NUM_UNLISTED_OPTIONS - 1].lower()
        return (question.answer or "right", *(f"wrong answer {letter}" for letter in letters))
    return _options(question.num_options, question.answer)


@cache
def _options(number: int, right: str | None) -> tuple[str, ...]:
    letters = OPTION_LETTERS[:number]
    right = right or letters[0]
    return (right, *(letter for letter in letters if letter != right))


def _pick(answers: Sequence[str], weights: Sequence[float], u: float) -> str:
    """Pick in proportion to the weights; the smallest uniform numbers select the first answer."""
    bounds = list(accumulate(weights))
    # The product can round up to the last bound, hence the limit.
    return answers[bisect_right(bounds, u * bounds[-1], 0, len(answers) - 1)]

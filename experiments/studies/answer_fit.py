"""What the simulated answers are expected to be, and the fit of their parameters to what may be fitted.

Expectations over the luck of the answers, on the questions of the simulated data set as they were drawn. A question's
three experts are taken as independent draws from the totals, so every expectation follows from the mixture of their
answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import norm, qmc

from experiments.studies.published import BUCKET_TOKENS, FITTED_ANSWERS, UNANIMOUS_RIGHT_FRAC, FittedAnswers
from mosaic.core.lengths import ClippedLognormal
from mosaic.core.workload import ExpertName, Question
from sim.world.answer_model import AnswerModel, possible_answers

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Expectations over a benchmark's questions; three buckets: 3:0, 2:1, 1:1:1."""

    bucket_frac: tuple[float, ...]
    majority_right_frac: tuple[float, ...]
    """In 3:0 and 2:1."""
    aggregator_right_frac: tuple[float, ...]
    difficulty: tuple[float, ...]
    """Mean by bucket."""

    @property
    def always_accuracy_frac(self) -> float:
        return sum(share * right for share, right in zip(self.bucket_frac, self.aggregator_right_frac, strict=True))

    def change_frac(self, num_skipped: int) -> float:
        """Accuracy change when the first buckets are skipped."""
        rows = zip(self.bucket_frac, self.majority_right_frac, self.aggregator_right_frac, strict=False)
        return sum(share * (majority - aggregator) for share, majority, aggregator in list(rows)[:num_skipped])


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What the expectations depend on beside the model."""

    slots: Mapping[ExpertName, int]
    aggregator: ExpertName
    lengths: Mapping[ExpertName, ClippedLognormal]
    difficulty: Array
    """Of each question."""
    scores: Array
    """Of the wrong options' attraction, shape (most options - 1, num_questions); -inf where a question has fewer."""

    def mean(self, values: Array) -> float:
        """Average over the questions."""
        return float(values.mean())


_PLAIN = AnswerModel(
    mean_ability=0, discrimination=1, distractor_std=1, length_loading=0, aggregator_gain=0, deference=0,
    aggregator_length_loading=0,
)  # fmt: skip
"""Its attractions are the exponentials of the scores themselves."""


def draw_items(questions: Sequence[Question], seed: int, stream: str) -> tuple[Array, Array]:
    """Draw the difficulty of each question and the scores of its wrong options, as the simulated world does."""
    items = [_PLAIN.item(question.id, possible_answers(question), seed, stream) for question in questions]
    scores = np.full((max(len(item.attractions) for item in items), len(items)), -np.inf)
    for number, item in enumerate(items):
        scores[: len(item.attractions), number] = np.log(item.attractions)
    return np.array([item.difficulty for item in items]), scores


def even_items(num_options: int, num_questions: int = 4096) -> tuple[Array, Array]:
    """Spread difficulties and scores evenly: a data set so large that the luck of its draw does not count."""
    points = norm.ppf(qmc.Sobol(num_options, seed=0).random(num_questions)).T
    return points[0], points[1:]


def answer_probabilities(model: AnswerModel, benchmark: Benchmark) -> dict[ExpertName, Array]:
    """Probability of each option by expert, shape (most options, num_questions); right option first.

    They sum to less than 1: a response that is cut off at its limit has no answer.
    """
    difficulty, wrong = benchmark.difficulty, np.exp(model.distractor_std * benchmark.scores)
    probabilities = {}
    for name in benchmark.slots:
        right = np.exp(model.ability(name) - model.discrimination * difficulty)
        whole = np.maximum(1e-12, 1 - _cut_frac(benchmark.lengths[name], model.length_loading, difficulty))
        total = (right + wrong.sum(0)) / whole
        probabilities[name] = np.concatenate([(right / total)[None], wrong / total])
    return probabilities


def mixture(probabilities: Mapping[ExpertName, Array], slots: Mapping[ExpertName, int]) -> Array:
    """Answer of a slot whose expert is drawn from the totals."""
    total = sum(slots.values())
    return sum(probabilities[name] * (count / total) for name, count in slots.items())  # type: ignore[return-value]


def expect(model: AnswerModel, benchmark: Benchmark) -> Expected:
    """Integrate over difficulty, attractions and the three answers."""
    q = mixture(answer_probabilities(model, benchmark), benchmark.slots)
    unanimous, distinct = (q**3).sum(0), 1 - 3 * (q**2).sum(0) + 2 * (q**3).sum(0)
    shares = (unanimous, 1 - unanimous - distinct, distinct)
    majority = (q[0] ** 3, 3 * q[0] ** 2 * (1 - q[0]))
    aggregator = _aggregator_right(model, benchmark, q)
    mean = [benchmark.mean(share) for share in shares]

    def within(parts: Sequence[Array]) -> tuple[float, ...]:
        return tuple(benchmark.mean(part) / share for part, share in zip(parts, mean, strict=False))

    return Expected(
        bucket_frac=tuple(mean),
        majority_right_frac=within(majority),
        aggregator_right_frac=within(aggregator),
        difficulty=within([share * benchmark.difficulty for share in shares]),
    )


def _aggregator_right(model: AnswerModel, benchmark: Benchmark, q: Array) -> tuple[Array, Array, Array]:
    """Probability of each bucket together with a right answer of the aggregator, by the votes that it reads."""
    ability = model.ability(benchmark.aggregator) + model.aggregator_gain
    right = np.exp(ability - model.discrimination * benchmark.difficulty)
    weights = np.concatenate([right[None], np.exp(model.distractor_std * benchmark.scores)])
    total, silent, options = weights.sum(0), 1 - q.sum(0), range(len(q))

    def right_given(*votes: int) -> Array:
        boosts = {option: np.exp(model.deference * votes.count(option)) for option in set(votes)}
        raised = sum(weights[option] * (boost - 1) for option, boost in boosts.items())
        return weights[0] * boosts.get(0, 1.0) / (total + raised)  # type: ignore[no-any-return]

    unanimous = sum(q[a] ** 3 * right_given(a, a, a) for a in options)
    two = sum(3 * q[a] ** 2 * q[b] * right_given(a, a, b) for a, b in permutations(options, 2))
    two = two + sum(3 * q[a] ** 2 * silent * right_given(a, a) for a in options)
    distinct = sum(6 * q[a] * q[b] * q[c] * right_given(a, b, c) for a, b, c in combinations(options, 3))
    distinct = distinct + sum(6 * q[a] * q[b] * silent * right_given(a, b) for a, b in combinations(options, 2))
    distinct = distinct + sum(3 * q[a] * silent**2 * right_given(a) for a in options) + silent**3 * right_given()
    return unanimous, two, distinct


def bucket_tokens(model: AnswerModel, benchmark: Benchmark) -> tuple[float, float, float]:
    """Mean output tokens of a question's calls in 3:0, 2:1 and 1:1:1."""
    difficulty = benchmark.difficulty
    own, slots = answer_probabilities(model, benchmark), benchmark.slots
    q = mixture(own, slots)
    squares = (q**2).sum(0)
    total, tokens, shares = sum(slots.values()), np.zeros(3), np.zeros(3)
    for name, count in slots.items():
        lengths, answered = benchmark.lengths[name], own[name].sum(0)
        unanimous = (own[name] * q**2).sum(0)
        # The other two differ from it and from each other; where it has no answer they only differ from each other.
        distinct = (own[name] * ((1 - q) ** 2 - (squares - q**2))).sum(0)
        silent = np.stack([0 * squares, squares, 1 - squares]) * (1 - answered)
        mean = _answered_mean(lengths, model.length_loading, difficulty)
        for bucket, share in enumerate((unanimous, answered - unanimous - distinct, distinct)):
            shares[bucket] += count / total * benchmark.mean(share + silent[bucket])
            written = share * mean + silent[bucket] * lengths.clip_tokens  # it has no answer as it was cut off
            tokens[bucket] += count / total * benchmark.mean(written)
    unanimous, two, distinct = (tokens / shares).tolist()
    return unanimous, two, distinct


def _cut_frac(lengths: ClippedLognormal, loading: float, difficulty: Array) -> Array:
    """Share of responses that run into their limit."""
    score = (np.log(lengths.clip_tokens) - lengths.mu) / lengths.sigma
    return norm.sf((score - loading * difficulty) / np.sqrt(1 - loading**2))  # type: ignore[no-any-return]


def _answered_mean(lengths: ClippedLognormal, loading: float, difficulty: Array) -> Array:
    """Mean of a lognormal below its limit, whose normal score leans on the difficulty."""
    mu = lengths.mu + lengths.sigma * loading * difficulty
    sigma = lengths.sigma * np.sqrt(1 - loading**2)
    edge = (np.log(lengths.clip_tokens) - mu) / sigma
    # In logarithms: far beyond the limit both probabilities vanish and their quotient does not.
    return np.exp(mu + sigma**2 / 2 + norm.logcdf(edge - sigma) - norm.logcdf(edge))  # type: ignore[no-any-return]


def fit_mmlu_pro(start: AnswerModel, benchmark: Benchmark) -> AnswerModel:
    """Five parameters to five published shares, then the length loading to the three buckets' tokens."""
    target = FITTED_ANSWERS["mmlu_pro"]

    def question_errors(x: Array) -> list[float]:
        got = expect(_with_questions(start, x), benchmark)
        return [*_share_errors(got, target), got.majority_right_frac[0] - UNANIMOUS_RIGHT_FRAC["majority"]]

    model = _with_questions(start, least_squares(question_errors, _question_parameters(start)).x)

    def with_aggregator(x: Array) -> AnswerModel:
        return replace(model, aggregator_gain=float(x[0]), deference=float(x[1]))

    def aggregator_errors(x: Array) -> list[float]:
        got = expect(with_aggregator(x), benchmark)
        return [
            got.always_accuracy_frac - target.always_accuracy_frac,
            got.aggregator_right_frac[0] - UNANIMOUS_RIGHT_FRAC["aggregator"],
        ]

    model = with_aggregator(least_squares(aggregator_errors, [model.aggregator_gain, model.deference]).x)

    def length_errors(x: Array) -> list[float]:
        got = bucket_tokens(replace(model, length_loading=float(x[0])), benchmark)
        return [tokens / published - 1 for tokens, published in zip(got, BUCKET_TOKENS, strict=True)]

    return replace(model, length_loading=float(least_squares(length_errors, [0.5], bounds=(0.0, 0.999)).x[0]))


def fit_questions(start: AnswerModel, benchmark: Benchmark, target: FittedAnswers) -> AnswerModel:
    """Three parameters of a benchmark's questions to its two shares and its accuracy; the rest is MMLU-Pro's."""

    def errors(x: Array) -> list[float]:
        got = expect(_with_questions(start, x), benchmark)
        return [*_share_errors(got, target), got.always_accuracy_frac - target.always_accuracy_frac]

    return _with_questions(start, least_squares(errors, _question_parameters(start)).x)


def _with_questions(model: AnswerModel, x: Array) -> AnswerModel:
    ability, discrimination, distractor_std = float(x[0]), float(np.exp(x[1])), float(np.exp(x[2]))
    return replace(model, mean_ability=ability, discrimination=discrimination, distractor_std=distractor_std)


def _question_parameters(model: AnswerModel) -> list[float]:
    return [model.mean_ability, float(np.log(model.discrimination)), float(np.log(model.distractor_std))]


def _share_errors(got: Expected, target: FittedAnswers) -> list[float]:
    return [got.bucket_frac[0] - target.unanimous_frac, got.bucket_frac[2] - target.distinct_frac]

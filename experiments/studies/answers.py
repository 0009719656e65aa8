"""Computes expectations of the simulated answers, and fits them to the published numbers for fitting.

MMLU-Pro's questions and aggregator are fitted to the published agreement, accuracy and tokens by agreement; the other
benchmarks get three numbers of their own questions. Expectations are over the draws of the answers, on the questions of
the simulated data set. A question's three experts are taken as independent draws from the totals, so every expectation
follows from the mixture of their answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import norm

from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import markdown, wide
from experiments.studies.published import BUCKET_TOKENS, FITTED_ANSWERS, UNANIMOUS_RIGHT_FRAC, FittedAnswers
from mosaic.config.job import simulated_job
from mosaic.core.workload import ExpertName, Question
from sim.world.answer_model import AnswerModel, possible_answers
from sim.world.lengths import ClippedLognormal

Array = NDArray[np.float64]

TITLES = {"mmlu_pro": "MMLU-Pro", "medmcqa": "MedMCQA", "gpqa": "GPQA"}
ASSUMED_ABILITY = {"LlamaR1": 0.3, "QwenR1": 0.4, "Gemma": -0.1, "Exaone": -0.1, "GLM": -0.3, "Qwen": 0.1}
"""Logits above the mean: reasoning experts are somewhat abler. Not published."""
PARAMETERS = (
    "mean_ability", "discrimination", "distractor_std", "length_loading", "aggregator_gain", "deference",
    "aggregator_length_loading",
)  # fmt: skip
TOKENS = ("tokens_3_0", "tokens_2_1", "tokens_1_1_1")
SHARES = {
    "unanimous_frac": "all three agree",
    "distinct_frac": "no two agree",
    "always_accuracy_frac": "right when every question is aggregated",
    "majority_right_frac": "majority right where all three agree",
    "aggregator_right_frac": "aggregator right where all three agree",
}
"""What is fitted to a published share of questions, or of right answers."""
FACTORS = (0.0, 0.5, 1.0, 2.0)
"""By which the assumed abilities are multiplied; the configuration holds the fit with 1."""
NUM_ROUNDS = 3
"""The fit of the length loading needs the questions' and theirs the loading, through the responses that are cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Expectations over a benchmark's questions; three buckets: 3:0, 2:1, 1:1:1."""

    bucket_frac: tuple[float, ...]
    majority_right_frac: tuple[float, ...]
    """In 3:0 and 2:1."""
    aggregator_right_frac: tuple[float, ...]

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


@cache
def benchmark_of(workload: str) -> Benchmark:
    """Take what a benchmark's expectations depend on from its configuration."""
    job, site = simulated_job([f"workload={workload}"])
    difficulty, scores = draw_items(job.workload.questions, site.world.question_seed, site.world.stream)
    return Benchmark(
        slots=job.workload.num_calls_by_expert,
        aggregator=job.graph.upper_nodes[0].experts[0].name,
        lengths={name: entry for name, entry in site.world.lengths.items() if isinstance(entry, ClippedLognormal)},
        difficulty=difficulty,
        scores=scores,
    )


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


@cache
def fit_first(factor: float) -> AnswerModel:
    """Fit MMLU-Pro's answers, the assumed abilities multiplied by a factor."""
    model = AnswerModel(
        mean_ability=4.0,
        discrimination=2.5,
        distractor_std=2.0,
        length_loading=0.8,
        aggregator_gain=0.0,
        deference=0.7,
        aggregator_length_loading=0.8,
        ability_by_expert={name: factor * ability for name, ability in ASSUMED_ABILITY.items()},
        source="fitted",
    )
    for _ in range(NUM_ROUNDS):
        model = fit_mmlu_pro(model, benchmark_of("mmlu_pro"))
    # NOTE: the aggregator's lengths follow the difficulty as the experts' do: no parameter of its own.
    return replace(model, aggregator_length_loading=model.length_loading)


def fit_answers(point: Point, seed: int) -> Row:
    """Fit a benchmark's answers; say what is then expected."""
    workload, factor = str(point.labels["workload"]), float(point.labels["factor"])
    model, benchmark = fit_first(factor), benchmark_of(workload)
    if workload != "mmlu_pro":
        model = fit_questions(model, benchmark, FITTED_ANSWERS[workload])
    got, tokens = expect(model, benchmark), bucket_tokens(model, benchmark)
    return {
        **{name: round(getattr(model, name), 4) for name in PARAMETERS},
        "unanimous_frac": got.bucket_frac[0],
        "distinct_frac": got.bucket_frac[2],
        "always_accuracy_frac": got.always_accuracy_frac,
        "majority_right_frac": got.majority_right_frac[0],
        "aggregator_right_frac": got.aggregator_right_frac[0],
        **dict(zip(TOKENS, tokens, strict=True)),
        "change_unanimous_pp": 100 * got.change_frac(1),
        "change_majority_pp": 100 * got.change_frac(2),
    }


def published_shares(workload: str) -> dict[str, float]:
    """List what a benchmark is fitted to, by the column of the fit."""
    found = FITTED_ANSWERS[workload]._asdict()
    if workload == "mmlu_pro":
        found |= {f"{who}_right_frac": share for who, share in UNANIMOUS_RIGHT_FRAC.items()}
    return found


def report(tables: Tables) -> str:
    """Write what was fitted beside what it was fitted to, the parameters, and what other abilities change."""
    committed = tables["answers"].filter(factor=1.0).to_dicts()
    fits = [
        {"benchmark": TITLES[row["workload"]], "share": SHARES[name], "published": f"{share:.2%}",
         "fit": f"{row[name]:.2%}"}
        for row in committed for name, share in published_shares(row["workload"]).items()
    ]  # fmt: skip
    tokens = [
        {"agreement": name.removeprefix("tokens_").replace("_", ":"), "published": f"{published:,.0f}",
         "fit": f"{committed[0][name]:,.0f}"}
        for name, published in zip(TOKENS, BUCKET_TOKENS, strict=True)
    ]  # fmt: skip
    parameters = [
        {"parameter": name, **{TITLES[row["workload"]]: row[name] for row in committed}} for name in PARAMETERS
    ]
    rows = [
        row | {"title": TITLES[row["workload"]], "factor": f"{row['factor']:g}"} for row in tables["answers"].to_dicts()
    ]
    changes = wide(rows, ["title"], "factor", "{change_unanimous_pp:.2f}, {change_majority_pp:.2f}")
    return PAGE.format(
        fits=markdown(fits),
        tokens=markdown(tokens),
        parameters=markdown(parameters),
        changes=markdown(changes, {"title": "abilities multiplied by"}),
    )


PAGE = """\
How the simulated experts answer ([the model](../../sim/world/answer_model.py)): MMLU-Pro's questions and aggregator
have six parameters, fitted to five published shares and the mean tokens by agreement. MedMCQA and GPQA share all but
three, which are fitted to three shares of theirs. What follows from these fits, such as the share of questions that
the gate skips, is no prediction. `conf/answers` holds the parameters.

## The fit

{fits}

Mean tokens of a question's calls on MMLU-Pro, by agreement: one parameter for three numbers.

{tokens}

## Parameters

{parameters}

## What other abilities would change

How much abler single experts are is assumed. With these abilities multiplied, and all else fitted anew: the expected
change of accuracy (points) when the gate skips questions on which all three agree (tau = 1), and those on which two do
(tau = 2/3). Only MMLU-Pro's first follows from the fit.

{changes}
"""

STUDY = Study(
    name="answers",
    about="How the simulated experts and aggregators answer, fitted to published shares of agreement and accuracy.",
    title="Answers of the simulated experts",
    tables={
        "answers": Sweep(
            points=tuple(
                Point(labels={"workload": workload, "factor": factor}) for factor, workload in product(FACTORS, TITLES)
            ),
            measure=fit_answers,
        )
    },
    report=report,
)

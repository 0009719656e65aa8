"""The fit of the answers: its integrals are what the simulated world does, and the configuration is what it found."""

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from experiments.fit_answers import ASSUMED_ABILITY, benchmark
from experiments.studies.answer_fit import (
    Benchmark,
    Expected,
    bucket_tokens,
    draw_items,
    even_items,
    expect,
    fit_questions,
)
from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from experiments.studies.published import FITTED_ANSWERS
from mosaic.config.job import simulated
from mosaic.config.world import ANSWER_KEYS
from mosaic.core.lengths import ClippedLognormal
from mosaic.pipelines.gates.gate import plurality
from sim.world.answer_model import AnswerModel
from sim.world.world import World
from tests.factories import make_call
from tests.sim.answer_worlds import make_choice

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FITTED = json.loads((ROOT / "results" / "calibration" / "answers.json").read_text(encoding="utf-8"))
WORKLOADS = tuple(FITTED["benchmarks"])
NUM_QUESTIONS = 12_000
"""More than a benchmark has, of the same kind; their luck is no part of any fit."""


class Drawn(NamedTuple):
    """One question of one world."""

    bucket: int
    """0: all three agree; 1: two of them; 2: none."""
    majority_right: bool
    aggregator_right: bool
    tokens: float
    """Mean of the question's calls."""


@cache
def made(workload: str) -> Benchmark:
    return benchmark(workload)


@cache
def committed_model(workload: str) -> AnswerModel:
    model = simulated([f"workload={workload}"])[1].world.answers
    assert model is not None
    return model


@cache
def many(workload: str) -> Benchmark:
    """The benchmark on the questions that are drawn here."""
    batch = batch_of(workload)
    difficulty, scores = draw_items(batch.job.workload.questions, 0, "test")
    return replace(made(workload), difficulty=difficulty, scores=scores)


@cache
def expected_of(workload: str) -> Expected:
    return expect(committed_model(workload), many(workload))


@cache
def batch_of(workload: str) -> DrawnAnswers:
    part = ["workload.part=calibration", f"workload.num_calibration_questions={NUM_QUESTIONS}"]
    return draw_answers([f"workload={workload}", *part])


@cache
def drawn(workload: str) -> tuple[Drawn, ...]:
    """Ask many questions, and the aggregator about each of them."""
    batch = batch_of(workload)
    calls, ballots = batch.aggregator_calls(), batch.ballots()
    assert len(calls) == NUM_QUESTIONS
    tokens: Counter[str] = Counter()
    for record in batch.records.values():
        tokens[record.key.question] += record.output_tokens
    rows = []
    for ballot, call in zip(ballots, calls, strict=True):
        votes = Counter(vote.answer for vote in ballot.votes if vote.answer is not None)
        gold = ballot.question.answer
        rows.append(
            Drawn(
                bucket=3 - max(votes.values(), default=1),
                majority_right=plurality(ballot).answer == gold,
                # Not cut off at its limit: the integral is of what it says.
                aggregator_right=batch.site.world.outcome(call, batch.records).answer == gold,
                tokens=tokens[ballot.question.id] / len(ballot.votes),
            )
        )
    return tuple(rows)


def assert_share(found: list[bool], expected: float, label: object) -> None:
    """A share of independent questions lies within 4 standard errors of what is expected."""
    error = sqrt(expected * (1 - expected) / len(found))
    assert abs(fmean(found) - expected) < 4 * error, (label, fmean(found), expected, error)


@pytest.fixture(params=WORKLOADS)
def workload(request: pytest.FixtureRequest) -> str:
    return request.param


def test_buckets_have_their_shares(workload: str) -> None:
    expected = expected_of(workload)
    assert sum(expected.bucket_frac) == pytest.approx(1.0)
    for bucket, share in enumerate(expected.bucket_frac):
        assert_share([row.bucket == bucket for row in drawn(workload)], share, bucket)


def test_majority_and_aggregator_are_right_as_often_in_every_bucket(workload: str) -> None:
    expected = expected_of(workload)
    rows = drawn(workload)
    for bucket in range(3):
        mine = [row for row in rows if row.bucket == bucket]
        assert_share([row.aggregator_right for row in mine], expected.aggregator_right_frac[bucket], bucket)
        if bucket < 2:
            assert_share([row.majority_right for row in mine], expected.majority_right_frac[bucket], bucket)
    assert_share([row.aggregator_right for row in rows], expected.always_accuracy_frac, "all")


@pytest.mark.parametrize("num_skipped", [1, 2])
def test_the_accuracy_changes_as_much_when_buckets_are_skipped(workload: str, num_skipped: int) -> None:
    expected = expected_of(workload).change_frac(num_skipped)
    changes = [
        (row.majority_right - row.aggregator_right) if row.bucket < num_skipped else 0 for row in drawn(workload)
    ]
    assert abs(fmean(changes) - expected) < 4 * stdev(changes) / sqrt(len(changes))


def test_calls_write_as_much_in_every_bucket(workload: str) -> None:
    expected = bucket_tokens(committed_model(workload), many(workload))
    assert expected[0] < expected[1] < expected[2]
    for bucket, mean in enumerate(expected):
        tokens = [row.tokens for row in drawn(workload) if row.bucket == bucket]
        assert abs(fmean(tokens) - mean) < 4 * stdev(tokens) / sqrt(len(tokens)), (bucket, fmean(tokens), mean)


def test_responses_that_are_cut_off_are_long_and_have_no_answer() -> None:
    """Limits at which every fifth response ends: the integrals must not take its length for a usual one."""
    lengths = {
        "A": ClippedLognormal(mean=1500, sigma=1.0, clip_tokens=3000),
        "B": ClippedLognormal(mean=800, sigma=1.2, clip_tokens=2000),
    }
    model = replace(committed_model("gpqa"), ability_by_expert={"A": 0.3, "B": -0.3})
    names = [f"q{i}" for i in range(NUM_QUESTIONS)]
    questions = {name: make_choice(name) for name in names}
    difficulty, scores = draw_items(tuple(questions.values()), 0, "test")
    small = Benchmark(slots={"A": 2, "B": 1}, aggregator="A", lengths=lengths, difficulty=difficulty, scores=scores)
    world = World(lengths=lengths, root_seed=0, answers=model, questions=questions)
    experts, num_cut = random.Random(0).choices("AAB", k=3 * NUM_QUESTIONS), 0
    tokens: list[list[float]] = [[], [], []]
    for i, name in enumerate(names):
        said, written = [], 0
        for slot in range(3):
            expert = experts[3 * i + slot]
            outcome = world.outcome(make_call(name, expert=expert, slot=slot), {})
            is_cut = outcome.output_tokens == lengths[expert].clip_tokens
            said.append(f"cut {slot}" if is_cut else outcome.answer)
            written += outcome.output_tokens
            num_cut += is_cut
        tokens[len(set(said)) - 1].append(written / 3)
    assert 0.15 < num_cut / (3 * NUM_QUESTIONS) < 0.25
    expected = expect(model, small)
    for bucket, mean in enumerate(bucket_tokens(model, small)):
        assert_share([True] * len(tokens[bucket]) + [False] * (NUM_QUESTIONS - len(tokens[bucket])),
                     expected.bucket_frac[bucket], bucket)  # fmt: skip
        error = stdev(tokens[bucket]) / sqrt(len(tokens[bucket]))
        assert abs(fmean(tokens[bucket]) - mean) < 4 * error, (bucket, fmean(tokens[bucket]), mean, error)


def test_the_committed_values_meet_what_they_were_fitted_to(workload: str) -> None:
    target, expected = FITTED_ANSWERS[workload], expect(committed_model(workload), made(workload))
    assert expected.bucket_frac[0] == pytest.approx(target.unanimous_frac, abs=1e-3)
    assert expected.bucket_frac[2] == pytest.approx(target.distinct_frac, abs=1e-3)
    assert expected.always_accuracy_frac == pytest.approx(target.always_accuracy_frac, abs=1e-3)


def read_yaml(group: str, workload: str) -> dict:
    return yaml.safe_load((ROOT / "conf" / group / f"{workload}.yaml").read_text(encoding="utf-8"))


def test_the_configuration_holds_the_fitted_answers(workload: str) -> None:
    config = read_yaml("answers", workload)
    found = {key: config[key]["value"] for key in ANSWER_KEYS}
    assert found == FITTED["benchmarks"][workload]["answers"]
    assert {name: entry["value"] for name, entry in config["ability_by_expert"].items()} == ASSUMED_ABILITY
    assert {entry["source"] for entry in config["ability_by_expert"].values()} == {"assumed"}


def test_evenly_spread_items_are_a_large_data_set() -> None:
    difficulty, scores = even_items(4)
    assert (len(difficulty), scores.shape) == (4096, (3, 4096))
    assert (difficulty.mean(), difficulty.std()) == pytest.approx((0.0, 1.0), abs=0.01)


def test_questions_with_fewer_options_have_no_score_for_the_others() -> None:
    _, scores = draw_items([make_choice("a", num_options=3), make_choice("b", num_options=5)], 0, "test")
    assert np.isneginf(scores).tolist() == [[False, False], [False, False], [True, False], [True, False]]


def test_benchmarks_share_all_but_their_questions() -> None:
    first, *others = (FITTED["benchmarks"][workload]["answers"] for workload in WORKLOADS)
    own = {"mean_ability", "discrimination", "distractor_std"}
    for other in others:
        assert {key for key in other if other[key] != first[key]} == own


@pytest.mark.parametrize("workload", ["gpqa", "medmcqa"])
def test_refitting_a_benchmarks_questions_gives_the_committed_values(workload: str) -> None:
    committed = committed_model(workload)
    refitted = fit_questions(committed_model("mmlu_pro"), made(workload), FITTED_ANSWERS[workload])
    own = {"mean_ability": 0.0, "discrimination": 1.0, "distractor_std": 1.0}
    for key in own:
        # The file holds four decimals, and the start is rounded likewise.
        assert getattr(refitted, key) == pytest.approx(getattr(committed, key), abs=2e-3), key
    assert replace(refitted, **own) == replace(committed, **own)


def test_a_fit_follows_its_targets() -> None:
    target = FITTED_ANSWERS["gpqa"]._replace(unanimous_frac=0.45, always_accuracy_frac=0.6)
    expected = expect(fit_questions(committed_model("gpqa"), made("gpqa"), target), made("gpqa"))
    assert expected.bucket_frac[0] == pytest.approx(0.45, abs=1e-4)
    assert expected.bucket_frac[2] == pytest.approx(target.distinct_frac, abs=1e-4)
    assert expected.always_accuracy_frac == pytest.approx(0.6, abs=1e-4)

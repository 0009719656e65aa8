"""The fit of the answers: its integrals are what the simulated world does, and the configuration is what it found."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import polars as pl
import pytest
import yaml

from experiments.studies.answers import (
    ASSUMED_ABILITY,
    PARAMETERS,
    TITLES,
    Benchmark,
    benchmark_of,
    bucket_tokens,
    draw_items,
    expect,
)
from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from mosaic.config.job import simulated_job
from mosaic.pipelines.rules.ballot import plurality
from sim.world.answer_model import AnswerModel
from sim.world.lengths import ClippedLognormal
from sim.world.world import World
from tests.factories import make_call
from tests.sim.answer_worlds import make_choice

ROOT = Path(__file__).parents[2]
NUM_QUESTIONS = 12_000
"""More than a benchmark has, of the same kind; their draws are no part of any fit."""


@cache
def committed_model(workload: str) -> AnswerModel:
    model = simulated_job([f"workload={workload}"])[1].world.answers
    assert model is not None
    return model


def assert_mean(found: list[float], expected: float, label: object) -> None:
    """The mean of independent draws lies within 4 standard errors of what is expected."""
    error = stdev(found) / sqrt(len(found))
    assert abs(fmean(found) - expected) < 4 * error, (label, fmean(found), expected, error)


def make_batch(workload: str) -> tuple[DrawnAnswers, Benchmark]:
    """Many questions of a benchmark, and what is expected on them."""
    part = ["workload.part=calibration", f"workload.num_calibration_questions={NUM_QUESTIONS}"]
    batch = draw_answers([f"workload={workload}", *part])
    difficulty, scores = draw_items(batch.job.workload.questions, 0, "test")
    return batch, replace(benchmark_of(workload), difficulty=difficulty, scores=scores)


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["mmlu_pro", "gpqa"])
def test_expectations_are_what_the_simulated_world_draws(workload: str) -> None:
    batch, benchmark = make_batch(workload)
    expected, tokens = expect(committed_model(workload), benchmark), bucket_tokens(committed_model(workload), benchmark)
    written: Counter[str] = Counter()
    for record in batch.records.values():
        written[record.key.question] += record.output_tokens
    buckets, majority, aggregator, lengths = [], [], [], []
    for ballot, call in zip(batch.ballots(), batch.aggregator_calls(), strict=True):
        votes, gold = Counter(vote.answer for vote in ballot.votes if vote.answer is not None), ballot.question.answer
        buckets.append(3 - max(votes.values(), default=1))
        majority.append(plurality(ballot).answer == gold)
        aggregator.append(batch.site.world.outcome(call, batch.records).answer == gold)  # not cut off at its limit
        lengths.append(written[ballot.question.id] / len(ballot.votes))
    assert len(buckets) == NUM_QUESTIONS
    assert_mean(aggregator, expected.always_accuracy_frac, "all")
    assert tokens[0] < tokens[1] < tokens[2]
    for bucket, share in enumerate(expected.bucket_frac):
        mine = [number for number, each in enumerate(buckets) if each == bucket]
        assert_mean([each == bucket for each in buckets], share, bucket)
        assert_mean([aggregator[number] for number in mine], expected.aggregator_right_frac[bucket], bucket)
        assert_mean([lengths[number] for number in mine], tokens[bucket], bucket)
        if bucket < 2:
            assert_mean([majority[number] for number in mine], expected.majority_right_frac[bucket], bucket)
    for num_skipped in (1, 2):
        rows = zip(buckets, majority, aggregator, strict=True)
        changes = [right - merged if bucket < num_skipped else 0 for bucket, right, merged in rows]
        assert_mean(changes, expected.change_frac(num_skipped), "change")


@pytest.mark.slow
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
        others = [False] * (NUM_QUESTIONS - len(tokens[bucket]))
        assert_mean([True] * len(tokens[bucket]) + others, expected.bucket_frac[bucket], bucket)
        assert_mean(tokens[bucket], mean, bucket)


@pytest.mark.parametrize("workload", TITLES)
def test_the_configuration_holds_the_fitted_answers(workload: str) -> None:
    config = yaml.safe_load((ROOT / "conf" / "answers" / f"{workload}.yaml").read_text(encoding="utf-8"))
    fits = pl.read_csv(ROOT / "results" / "calibration" / "answers.csv")
    row = fits.row(by_predicate=(pl.col("workload") == workload) & (pl.col("factor") == 1.0), named=True)
    assert {key: config[key]["value"] for key in PARAMETERS} == {key: row[key] for key in PARAMETERS}
    assert {name: entry["value"] for name, entry in config["ability_by_expert"].items()} == ASSUMED_ABILITY
    assert {entry["source"] for entry in config["ability_by_expert"].values()} == {"assumed"}


def test_questions_with_fewer_options_have_no_score_for_the_others() -> None:
    _, scores = draw_items([make_choice("a", num_options=3), make_choice("b", num_options=5)], 0, "test")
    assert np.isneginf(scores).tolist() == [[False, False], [False, False], [True, False], [True, False]]

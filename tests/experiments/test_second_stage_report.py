"""The report that puts the second stage beside the published one: it shows its misses, and what was fitted."""

import math
from dataclasses import replace

import pytest

from experiments.second_stage import (
    describe_accuracy,
    describe_auto,
    describe_end_to_end,
    describe_skips,
    describe_walls,
    longest_alone_s,
)
from experiments.studies.published import ALWAYS_AGGREGATE_S, END_TO_END_SPEEDUP, FITTED_ANSWERS, GATED_AGGREGATE_S
from experiments.studies.stage_samples import StageSample, sample_stage

TARGET = FITTED_ANSWERS["gpqa"]
SAMPLE = StageSample(
    round_robin_s=2000.0,
    ilp_s=1000.0,
    skip_frac=(TARGET.unanimous_frac, 1 - TARGET.distinct_frac),
    always_accuracy_frac=0.5657,
    change_pp=(1.0, 0.5),
    change_std_pp=(7.0, 28.0),
    bucket_tokens=(1.0, 2.0, 3.0),
    spearman=-0.3,
    always_s={"tp4": 350.0, "dp4": 400.0, "auto": 350.0},
    gated_s={"tp4": 230.0, "dp4": 300.0, "auto": 300.0},
    plain_gated_s=200.0,
    tail_frac=0.2,
    num_gated_calls=25,
    longest_tokens=30_000,
)
PAIR = [SAMPLE, replace(SAMPLE, ilp_s=1100.0, plain_gated_s=210.0)]


def test_skips_are_labelled_as_fitted_and_stand_beside_the_published() -> None:
    head, one, two = describe_skips("gpqa", PAIR, 198)
    assert "FITTED" in head
    assert "published 37.37%  simulated 37.37%  +0.00 points" in one
    assert f"standard error of one run of 198 questions {100 * math.sqrt(0.3737 * 0.6263 / 198):.2f}" in one
    assert "published 87.37%" in two


def test_an_accuracy_change_outside_its_interval_is_a_miss() -> None:
    lines = describe_accuracy("gpqa", PAIR, 198)
    assert "inside" in lines[2]
    assert "so wide that it tells nothing" in lines[3], "GPQA's interval is 4 points on each side"
    far = [replace(SAMPLE, change_pp=(5.0, 0.5))] * 2
    assert "MISS: outside" in describe_accuracy("gpqa", far, 198)[2]
    assert "follows from the fit" in describe_accuracy("mmlu_pro", PAIR, 2100)[1]


def test_walls_say_what_is_fitted_and_what_is_predicted() -> None:
    lines = describe_walls("gpqa", PAIR)
    assert f"FITTED: mean length): published {ALWAYS_AGGREGATE_S['gpqa']:,.1f} s, simulated 350.0" in lines[1]
    plain = f"no further parameter (PREDICTED): published {GATED_AGGREGATE_S['gpqa']:,.1f} s, simulated 205.0"
    assert plain in lines[2]
    assert "one elasticity (PREDICTED: fitted on MMLU-Pro)" in lines[3]
    assert "one elasticity (FITTED)" in describe_walls("mmlu_pro", PAIR)[3]
    assert "the elasticity carried over helps: 1.0% from the published wall, without it 10.0%" in lines[4]
    worse = [replace(sample, plain_gated_s=228.0, gated_s={"tp4": 280.0}) for sample in PAIR]
    assert "carried over makes it worse" in describe_walls("gpqa", worse)[4]
    assert "for 20% of the stage only the last 5% of them run" in lines[5]


def test_end_to_end_ranges_over_what_round_robin_leaves_open() -> None:
    published = END_TO_END_SPEEDUP["gpqa"]
    speedup = (2350 / 1230 + 2350 / 1330) / 2
    plain = (2350 / 1200 + 2350 / 1310) / 2
    lines = describe_end_to_end("gpqa", PAIR, {"gpqa": {"ratios": [1.0, 1.2]}})
    assert "round robin and never are FITTED" in lines[0]
    assert f"PREDICTED: published {published:.2f}, simulated {speedup:.2f}" in lines[1]
    assert f"without it; both walls PREDICTED: published {published:.2f}, simulated {plain:.2f}" in lines[2]
    assert f"{2350 / (1.2 * 1050 + 230):.2f} to {2350 / (1050 + 230):.2f}" in lines[3]
    assert "MISS" in lines[3]
    assert "published inside" in describe_end_to_end("gpqa", PAIR, {"gpqa": {"ratios": [0.5, 1.2]}})[3]
    _, with_it, _ = describe_end_to_end("mmlu_pro", PAIR, {})
    assert "FITTED here" in with_it, "on MMLU-Pro only the ILP's wall is a prediction"


def test_auto_is_compared_with_the_better_of_the_two() -> None:
    _, never, majority = describe_auto(PAIR)
    assert "auto is +0.0% from the better one" in never
    assert "auto is +30.4% from the better one" in majority


def test_one_generation_to_the_limit_bounds_the_stage() -> None:
    seconds, limit = longest_alone_s("gpqa")
    assert limit == 32768 - 1500
    assert 100 < seconds < 600


def test_a_sample_is_the_same_twice_and_adds_up() -> None:
    sample = sample_stage("gpqa", 0)
    assert sample == sample_stage("gpqa", 0)
    assert 0 < sample.skip_frac[0] < sample.skip_frac[1] < 1
    assert sample.num_gated_calls == round(198 * (1 - sample.skip_frac[1]))
    assert sample.gated_s["auto"] in (sample.gated_s["tp4"], sample.gated_s["dp4"])
    assert sample.gated_s["tp4"] < sample.always_s["tp4"]
    assert 0 < sample.tail_frac < 1
    three, two, distinct = sample.bucket_tokens
    assert three < two < distinct
    assert sample.spearman == pytest.approx(-0.3, abs=0.15)

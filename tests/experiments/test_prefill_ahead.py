"""The study of prefill ahead of time: what its scenes measure, and what its report says of made-up rows."""

import json
from math import inf
from pathlib import Path

import pytest

from experiments.prefill_ahead import main
from experiments.studies.paper_tables import to_csv
from experiments.studies.read_ahead_real import NUM_TEXTS, _expert, _lengths
from experiments.studies.read_ahead_report import report_of
from experiments.studies.read_ahead_runs import (
    AHEAD,
    AHEAD_SHORTEST,
    CHUNKED,
    MAX_TEXT_TOKENS,
    QUESTION_TOKENS,
    TWO_ENGINES,
    WHOLE,
    Scene,
    measure,
)
from experiments.studies.read_ahead_study import BatchRow, LayerRow, LoadRow

FEW = Scene(num_questions=4, output_tokens=16)


@pytest.fixture(scope="module")
def measured():
    return {method.name: measure(FEW, method, 0) for method in (WHOLE, CHUNKED, AHEAD, AHEAD_SHORTEST)}


def test_all_methods_read_the_same_texts(measured):
    assert len({one.read_tokens for one in measured.values()}) == 1
    longest = FEW.num_questions * (FEW.fan_in * MAX_TEXT_TOKENS + 2 * QUESTION_TOKENS + 400)
    assert FEW.num_questions * FEW.fan_in < measured[WHOLE.name].read_tokens < longest


def test_what_is_read_ahead_is_computed_once_but_for_the_ends_of_blocks(measured):
    assert measured[WHOLE.name].computed_tokens == measured[WHOLE.name].read_tokens
    for method in (AHEAD, AHEAD_SHORTEST):
        extra = measured[method.name].computed_tokens - measured[method.name].read_tokens
        assert 0 <= extra < FEW.num_questions * (FEW.fan_in + 1) * 16, "at most a block a prefill"


def test_an_order_that_fits_the_lengths_saves_at_least_as_much(measured):
    times = [measured[method.name].layer_s for method in (AHEAD_SHORTEST, AHEAD, CHUNKED)]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_decoding_is_not_saved(measured):
    """What is saved of a layer is saved before its first token, alone with its engine."""
    for method in (AHEAD, AHEAD_SHORTEST):
        one, other = measured[method.name], measured[CHUNKED.name]
        assert other.layer_s - one.layer_s == pytest.approx(other.first_token_s - one.first_token_s, abs=0.01)


def test_a_second_engine_takes_half_of_the_calls():
    scene = Scene(num_questions=2, num_readers=4, output_tokens=16)
    assert measure(scene, TWO_ENGINES, 0).layer_s < measure(scene, WHOLE, 0).layer_s


def test_a_batch_comes_at_once_and_its_makespan_is_shorter_than_its_questions_alone():
    alone, batch = (measure(Scene(num_questions=4, per_s=per_s), CHUNKED, 0) for per_s in (0.0, inf))
    assert batch.makespan_s < alone.makespan_s
    assert batch.question_s >= alone.question_s - 1e-6


def test_prompts_of_the_real_measurement_have_the_tokens_that_are_wanted(tmp_path: Path):
    reader = _expert("reader", tmp_path)
    for size in (512, 2048):
        lengths = _lengths(size, reader)
        assert len(lengths) == NUM_TEXTS
        assert max(lengths) - min(lengths) <= 1
        assert 0 < size - sum(lengths) < 200


def test_the_report_names_hits_and_misses(tmp_path: Path):
    rows = [
        LayerRow(3, 1, tokens, method, 1.0, saved, saved - 0.01, saved + 0.01)
        for tokens, method, saved in (
            (16, AHEAD.name, 0.25), (16, AHEAD_SHORTEST.name, 0.5), (16, CHUNKED.name, 0.01),
            (64, AHEAD.name, 0.1), (64, AHEAD_SHORTEST.name, 0.2), (64, CHUNKED.name, 0.0),
        )
    ]  # fmt: skip
    loads = [
        LoadRow(shares, per_s, metric, 1.0, -0.1, -0.2, 0.0)
        for shares in (False, True)
        for per_s in (0.0, inf)
        for metric in ("first token of the reader", "question", "makespan")
    ]
    batches = [BatchRow("never", 100.0, 0.0, -0.01, 0.01, -0.2, -0.3, -0.1, 1000.0, 900.0)]
    pair = {"cold_s": 1.0, "ahead_s": 0.3, "cached_tokens": 400, "prefilled_tokens": 500, "num_prefills": 8}
    for name, kind, table in (("layer", LayerRow, rows), ("load", LoadRow, loads), ("batch", BatchRow, batches)):
        (tmp_path / f"{name}.csv").write_text(to_csv([kind._fields, *table]))
    (tmp_path / "real.json").write_text(json.dumps([{"prompt_tokens": 512, **pair}]))
    assert main(["report", "--out", str(tmp_path)]) == 0
    said = (tmp_path / "prefill_ahead.md").read_text()
    assert "is 25.0% (24.0% to 26.0%), with fixed_tokens = 16" in said
    assert "within the published 27.4% +- 5 points" in said
    assert "0.30 of it at 512 tokens: a MISS" in said
    assert "| batch | -10.0% (-20.0% to +0.0%)" in said
    assert "| never | 100 | +0.0%" in said
    assert (tmp_path / "prefill_ahead.png").stat().st_size > 10_000


def test_a_report_of_what_is_there_leaves_the_rest_out(tmp_path: Path):
    assert "One layer alone" not in report_of(tmp_path)

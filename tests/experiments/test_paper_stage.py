"""The aggregator's stage in the reproduction: predicted without its elasticity, its tail, and what is left open."""

import json
from pathlib import Path

import pytest

from experiments.config.job import simulated
from experiments.studies.open_range import FittedSet, open_range, wall_s
from experiments.studies.paper_rows import PREDICTED
from experiments.studies.paper_runs import PaperRun, PaperRuns, paper_points, without_elasticity
from experiments.studies.paper_stage import (
    ability_table,
    end_to_end_ranges,
    longest_alone_s,
    rows_without_elasticity,
    tail_of,
    tail_table,
)
from experiments.studies.paper_tables import OpenRange
from experiments.studies.published import END_TO_END_SPEEDUP, GATED_AGGREGATE_S
from experiments.studies.round_robin_fit import ParameterSet
from mosaic.core.workload import AGGREGATE
from mosaic.report.tables import calls_parquet, sessions_parquet
from tests.run_records import make_key, make_record, make_session


def make_run(folder: Path, policy: str, seed: int, **summary: float) -> PaperRun:
    point = next(point for point in paper_points(seed + 1) if point.name == f"gpqa/{policy}/seed_{seed}")
    folder = folder / point.name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    return PaperRun(point=point, folder=folder)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperRuns:
    """GPQA alone, two seeds: round robin takes 2350 s, the ILP 1050 s and the gated aggregator 230 s on average."""
    monkeypatch.setattr("experiments.studies.paper_stage.TITLES", {"gpqa": "GPQA"})
    made = [make_run(tmp_path, "round_robin", seed, end_to_end_s=2350.0) for seed in (0, 1)]
    made += [
        make_run(tmp_path, "ilp", seed, expert_makespan_s=1000.0 + 100 * seed, aggregator_s=220.0 + 20 * seed)
        for seed in (0, 1)
    ]
    made += [
        make_run(tmp_path, "inelastic", seed, aggregator_s=200.0 + 10 * seed, end_to_end_s=1200.0 + 110 * seed)
        for seed in (0, 1)
    ]
    return PaperRuns(runs=tuple(made))


def write_tail(run: PaperRun) -> None:
    """Write a stage of 40 calls that loads from 100 on and ends at 150, the last two of them alone from 138 on."""
    ends = [float(ts) for ts in range(101, 139)] + [145.0, 150.0]
    calls = [
        make_record(key=make_key(f"q{i}", node=AGGREGATE), finished_ts=ts, output_tokens=10 + i, admitted_ts=100.0)
        for i, ts in enumerate(ends)
    ]
    calls.append(make_record("q0", finished_ts=99.0, output_tokens=9_999))
    (run.folder / "calls.parquet").write_bytes(calls_parquet(calls, {}))
    sessions = [make_session(node=AGGREGATE, load=(100.0, 1.0), end_ts=150.0), make_session(session=1)]
    (run.folder / "sessions.parquet").write_bytes(sessions_parquet(sessions))


def test_numbers_without_the_elasticity_are_predicted_and_paired_by_seed(runs: PaperRuns) -> None:
    gated, speedup = rows_without_elasticity(runs)
    assert (gated.published, gated.values) == (GATED_AGGREGATE_S["gpqa"], (200.0, 210.0))
    assert speedup.published == END_TO_END_SPEEDUP["gpqa"]
    assert speedup.values == (2350 / 1200, 2350 / 1310)
    assert gated.kind == speedup.kind == PREDICTED


def test_without_the_elasticity_the_aggregator_writes_as_much_whatever_it_reads() -> None:
    _, elastic = simulated(["workload=gpqa"])
    _, plain = simulated(["workload=gpqa", *without_elasticity("gpqa")])
    assert elastic.world.answers is not None
    assert plain.world.answers is not None
    assert plain.world.answers.aggregator_elasticity == 0 < elastic.world.answers.aggregator_elasticity
    (name,) = (name for name, entry in plain.world.aggregator_lengths.items() if entry is not plain.world.lengths[name])
    assert plain.world.aggregator_lengths[name].mean > elastic.world.aggregator_lengths[name].mean
    assert plain.world.lengths == elastic.world.lengths, "the experts' own lengths stay"


def test_the_tail_is_what_runs_when_a_twentieth_of_the_calls_is_left(runs: PaperRuns) -> None:
    run = runs.of("gpqa", "ilp")[0]
    write_tail(run)
    num_calls, frac, longest = tail_of(run)
    assert (num_calls, longest) == (40, 49), "the experts' calls are not the aggregator's"
    assert frac == pytest.approx((150 - 138) / 50)


def test_the_tails_table_says_what_one_response_alone_takes(runs: PaperRuns) -> None:
    for run in runs.of("gpqa", "ilp"):
        write_tail(run)
    _, row = tail_table(runs)
    seconds, limit = longest_alone_s("gpqa")
    assert limit == 32768 - 1500
    assert 100 < seconds < 600
    assert row[:4] == ("GPQA", "40", "24% of the stage", "49 tokens")
    assert row[4:] == (f"{seconds:.1f} s (31,268 tokens)", f"{seconds / 230:.0%}")


def test_end_to_end_ranges_over_what_round_robin_leaves_open(runs: PaperRuns) -> None:
    published = END_TO_END_SPEEDUP["gpqa"]
    _, row = end_to_end_ranges(runs, {"gpqa": OpenRange(500.0, 600.0, 500.0)})
    low, high = 2350 / (1.2 * 1050 + 230), 2350 / (1050 + 230)
    assert row[:3] == ("GPQA", f"{published:.2f}x", f"{low:.2f}x to {high:.2f}x")
    assert row[3] == f"MISS: {high / published - 1:+.1%}"
    _, row = end_to_end_ranges(runs, {"gpqa": OpenRange(250.0, 600.0, 500.0)})
    assert row[3] == "inside"


def test_accuracy_changes_are_those_of_the_second_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.studies.paper_stage.TITLES", {"gpqa": "GPQA"})
    (tmp_path / "answers.json").write_text(
        json.dumps({"accuracy_change_pp": {"gpqa": {"0": [1.0, -1.5], "2": [2.0, 0.25]}}})
    )
    assert ability_table(tmp_path / "answers.json") == [
        ("abilities multiplied by", "0", "2"),
        ("GPQA", "-1.50 pp", "+0.25 pp"),
    ]


@pytest.mark.slow
def test_the_range_is_that_of_the_sets_over_the_committed_one() -> None:
    names = ("LlamaR1", "QwenR1", "Gemma", "Exaone", "GLM", "Qwen")
    parameters = ParameterSet(
        cpu_overhead_scale=2.0, reasoning_sigma=1.0, light_sigma=0.8, mean_by_expert=dict.fromkeys(names, 500.0)
    )
    sets = [FittedSet(parameters, (1.0,)), FittedSet(parameters, (1.5, 2.0, 1.2))]
    found = open_range("gpqa", sets, num_seeds=2, num_set_seeds=1)
    mean = (wall_s("gpqa", 0) + wall_s("gpqa", 1)) / 2
    assert found["ilp_makespan_s"] == pytest.approx(mean)
    assert found["scales"] == [1.0, 1.5, 1.2, 2.0], "a set's first scale, and the ends"
    walls = [wall_s("gpqa", 0, parameters, scale) for scale in found["scales"]]
    assert found["ratios"] == pytest.approx([wall / walls[0] for wall in walls])
    assert found["ratios"][0] == 1 < found["ratios"][3]
    assert found["ilp_range_s"] == pytest.approx([mean, mean * found["ratios"][3]])

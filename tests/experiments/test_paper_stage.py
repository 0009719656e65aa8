"""The aggregator's stage in the reproduction: its tail, and what the fits leave open."""

import json
from pathlib import Path

import pytest

from experiments.studies.paper_rows import PREDICTED, row_maker
from experiments.studies.paper_runs import PaperRun, PaperRuns, paper_points
from experiments.studies.paper_stage import (
    ability_table,
    longest_alone_s,
    open_ranges,
    spread_table,
    tail_of,
    tail_table,
)
from experiments.studies.paper_tables import OpenRange
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
        make_run(tmp_path, policy, seed, expert_makespan_s=wall_s)
        for policy, walls in (("ilp_questions", (900.0, 1200.0)), ("ilp_profile", (1000.0, 1000.0)))
        for seed, wall_s in enumerate(walls)
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


def test_ranges_are_over_all_sets_and_say_what_is_outside(runs: PaperRuns) -> None:
    row = row_maker("gpqa")
    rows = [
        row("ILP, expert stage", "s", 923.0, [1000.0, 1100.0], PREDICTED),
        row("aggregator at tau = 2/3", "s", 228.0, [220.0, 240.0], PREDICTED),
        row("end to end, speedup", "x", 2.34, [2.0, 1.7], PREDICTED),
    ]
    walls = {"gpqa": {"expert_s": OpenRange(950.0, 1100.0, 1050.0), "aggregator_s": OpenRange(200.0, 250.0, 230.0)}}
    _, expert, aggregator, whole = open_ranges(rows, runs, walls)
    assert expert == ("ILP, expert stage", "GPQA", "923.0 s", "1,050 s", "950.0 s to 1,100 s", "MISS: +2.9%")
    assert aggregator[2:] == ("228.0 s", "230.0 s", "200.0 s to 250.0 s", "inside")
    low, high = 2350 / 1350, 2350 / 1150
    assert whole[3:5] == (f"{2350 / 1280:.2f}x", f"{low:.2f}x to {high:.2f}x")
    assert whole[5] == f"MISS: {high / 2.34 - 1:+.1%}"


def test_the_spread_of_walls_by_what_is_drawn_anew(runs: PaperRuns) -> None:
    _, row = spread_table(runs)
    assert row[0] == "GPQA"
    assert row[1].endswith("of 923 s")
    assert row[2:] == ("6.7% of 1,050 s", "20.2% of 1,050 s", "0.0% of 1,000 s")


def test_accuracy_changes_are_those_of_the_second_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.studies.paper_stage.TITLES", {"gpqa": "GPQA"})
    (tmp_path / "answers.csv").write_text("workload,factor,change_majority_pp\ngpqa,0.0,-1.5\ngpqa,2.0,0.25\n")
    assert ability_table(tmp_path / "answers.csv") == [
        ("abilities multiplied by", "0", "2"),
        ("GPQA", "-1.50 pp", "+0.25 pp"),
    ]

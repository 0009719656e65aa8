import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from mosaic.core.results import CallRecord, RunResult
from mosaic.core.workload import AGGREGATE
from mosaic.figures.replay import draw_replay, replay_errors, replay_metrics, replay_table, report_replay
from mosaic.report.tables import calls_parquet
from mosaic.workloads.request_log import measured_records
from tests.run_records import make_failed, make_record
from tests.workloads.test_request_log import make_line, write_log


def make_run(folder: Path) -> Path:
    """A run folder whose calls took half as long again as the log says."""
    log = write_log(folder, make_line("a"), make_line("b", last_token_ts=55.0))
    measured = measured_records(log, expert="A")
    slower = [replace(record, finished_ts=1.5 * (record.finished_ts or 0.0)) for record in measured]
    (folder / "config.yaml").write_text(f"workload:\n  path: {log}\n  expert: A\n")
    (folder / "calls.parquet").write_bytes(calls_parquet(slower, {}))
    return log


def served(question: str, queued_ts: float, first_token_ts: float, finished_ts: float, tokens: int) -> CallRecord:
    return make_record(
        question, queued_ts=queued_ts, admitted_ts=queued_ts, first_token_ts=first_token_ts, finished_ts=finished_ts,
        output_tokens=tokens,
    )  # fmt: skip


TWO = (served("r0", 0.0, 1.0, 4.0, 4), served("r1", 1.5, 3.0, 4.0, 2))


def test_errors_are_relative_to_the_log() -> None:
    slower = [
        replace(record, first_token_ts=record.first_token_ts + 1.0, finished_ts=record.finished_ts + 1.0)
        for record in TWO
        if record.first_token_ts is not None and record.finished_ts is not None
    ]
    errors = replay_errors(slower, TWO)
    assert list(errors) == [
        "mean_latency_s", "p50_latency_s", "p99_latency_s", "mean_tpot_s", "p50_tpot_s", "mean_ttft_s", "p50_ttft_s",
        "makespan_s",
    ]  # fmt: skip
    assert errors["p50_latency_s"].simulated_s == pytest.approx((5.0 + 3.5) / 2)
    assert errors["mean_latency_s"].measured_s == pytest.approx((4.0 + 2.5) / 2)
    assert errors["mean_latency_s"].error_frac == pytest.approx(1 / 3.25)
    assert errors["mean_ttft_s"].error_frac == pytest.approx(1 / 1.25)
    assert errors["mean_tpot_s"].error_frac == 0.0
    assert errors["p99_latency_s"].simulated_s == pytest.approx(3.5 + 0.99 * 1.5)
    assert errors["makespan_s"].error_frac == pytest.approx(1 / 4)
    assert "mean_latency_s" in replay_table(errors)
    assert "+25.0%" in replay_table(errors).splitlines()[-1]


def test_metrics_count_finished_calls_only() -> None:
    records = [make_record(), make_record("q1", finished_ts=9.0), make_failed("q2")]
    found = replay_metrics(records)
    expected = {"mean_ttft_s": 2.0, "mean_tpot_s": 0.55, "mean_latency_s": 7.5, "p99_latency_s": 7.99}
    assert found | expected == pytest.approx(found)


def test_makespan_starts_at_the_first_arrival() -> None:
    later = (served("r0", 3.0, 4.0, 5.0, 2), served("r1", 3.0, 4.0, 8.0, 5))
    assert replay_errors(later, later)["makespan_s"].simulated_s == pytest.approx(5.0)


def test_an_undefined_metric_and_other_calls_are_refused() -> None:
    one_token = [served("r0", 0.0, 1.0, 1.0, 1)]
    with pytest.raises(ValueError, match="mean_tpot_s must be defined"):
        replay_errors(one_token, one_token)
    with pytest.raises(ValueError, match="replay: calls must be those of the log, got 1"):
        replay_errors(TWO[:1], TWO)


def test_equal_runs_are_equal_bytes(tmp_path: Path) -> None:
    measured = measured_records(make_run(tmp_path), expert="A")
    assert draw_replay(measured, measured) == draw_replay(measured, measured)


def test_report_compares_the_last_attempt_at_each_call(tmp_path: Path) -> None:
    log = make_run(tmp_path)
    measured = measured_records(log, expert="A")
    failed = replace(measured[0], finished_ts=None, first_token_ts=None)
    again = [replace(record, attempt=1) for record in measured]
    result = RunResult(calls=(failed, *again), sessions=(), num_workers=1)
    table, files = report_replay({"path": log, "expert": "A"}, result)
    assert table.count("+0.0%") == 8
    assert json.loads(files["replay.json"])["mean_ttft_s"]["error_frac"] == 0
    assert files["replay.png"].startswith(b"\x89PNG")


def test_calls_behind_those_of_a_log_are_left_out(tmp_path: Path) -> None:
    log = make_run(tmp_path)
    measured = measured_records(log, expert="A")
    merged = [replace(one, key=one.key._replace(node=AGGREGATE), finished_ts=99.0) for one in measured]
    result = RunResult(calls=(*measured, *merged), sessions=(), num_workers=1)
    table, _ = report_replay({"path": log, "expert": "A"}, result)
    assert table.count("+0.0%") == 8

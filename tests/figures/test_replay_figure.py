import json
from pathlib import Path

import pytest

from mosaic.core.results import RunResult
from mosaic.figures.replay import draw_replay, replay_errors, report_replay
from mosaic.report.tables import calls_parquet
from mosaic.workloads.request_log import load_request_log, measured_records
from tests.workloads.test_request_log import make_line, write_log


def make_run(folder: Path) -> Path:
    """A run folder whose calls took half as long again as the log says."""
    log = write_log(folder, make_line("a"), make_line("b", last_token_ts=55.0))
    measured = measured_records(log, expert="A")
    slower = [record._replace(finished_ts=1.5 * (record.finished_ts or 0.0)) for record in measured]
    (folder / "config.yaml").write_text(f"workload:\n  path: {log}\n  expert: A\n")
    (folder / "calls.parquet").write_bytes(calls_parquet(slower, {}))
    return log


def test_equal_runs_are_equal_bytes(tmp_path: Path) -> None:
    measured = measured_records(make_run(tmp_path), expert="A")
    assert draw_replay(measured, measured) == draw_replay(measured, measured)


def test_report_compares_the_last_attempt_at_each_call(tmp_path: Path) -> None:
    log = make_run(tmp_path)
    measured = measured_records(log, expert="A")
    failed = measured[0]._replace(finished_ts=None, first_token_ts=None)
    again = [record._replace(attempt=1) for record in measured]
    result = RunResult(calls=(failed, *again), sessions=(), num_workers=1)
    report = report_replay({"path": log, "expert": "A"}, result)
    assert report.table.count("+0.0%") == 8
    assert json.loads(report.files["replay.json"])["mean_ttft_s"]["error_frac"] == 0
    assert report.files["replay.png"].startswith(b"\x89PNG")


def test_run_of_other_calls_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    log = write_log(other, make_line("c"))
    assert load_request_log(log, expert="A").num_calls_by_expert == {"A": 1}
    with pytest.raises(ValueError, match="must be those of the log"):
        replay_errors([], measured_records(log, expert="A"))

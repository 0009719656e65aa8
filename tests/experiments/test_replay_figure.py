import json
from pathlib import Path

import pytest

from experiments.analysis.replay import replay_errors
from experiments.figures.replay import draw_replay, main, report_replay
from mosaic.core.results import RunResult
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


def test_figure_of_a_run_folder_is_drawn_and_its_errors_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path)
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mean_latency_s" in printed
    assert "+50.0%" in printed
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")


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


def test_run_of_other_calls_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    log = write_log(other, make_line("c"))
    assert load_request_log(log, expert="A").num_calls_by_expert == {"A": 1}
    assert main([str(tmp_path), "--log", str(log)]) == 2
    assert "replay: calls must be those of the log" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must be those of the log"):
        replay_errors([], measured_records(log, expert="A"))


def test_folders_that_are_no_replay_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    (tmp_path / "config.yaml").write_text("workload: {name: mmlu_pro}\n")
    assert main([str(tmp_path)]) == 2
    assert "workload.path must be a request log" in capsys.readouterr().err
    log = write_log(tmp_path, make_line())
    assert main([str(tmp_path), "--log", str(log)]) == 2
    assert "calls.parquet: cannot be read" in capsys.readouterr().err
    make_run(tmp_path)
    assert main([str(tmp_path), "--out", str(tmp_path / "none" / "replay.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err

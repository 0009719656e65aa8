"""Pilots on engines: no call is asked twice, whatever ends the run in between."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mosaic.commands.run import JOURNAL
from mosaic.runtime.journal import read_journal
from tests.commands.command_line import TINY
from tests.engines.executor_runs import has_vllm
from tests.engines.fake_run import CHECKPOINTS, run_fake, write_inputs
from tests.engines.kept_launcher import run_kept
from tests.run_tables import answers_of, calls_of, summary_of

CALIBRATION = "profile.source=calibration"


def told_of(folder: Path) -> dict[tuple, tuple]:
    return {key: (row["expert"], row["output_tokens"], row["answer"]) for key, row in calls_of(folder).items()}


def num_sent(folder: Path) -> int:
    """Count the calls that ended in all journals of a run, of the batch or not."""
    return sum(len(read_journal(path).ended) for path in (folder / JOURNAL).glob("*/"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"), num_questions=40)


@pytest.mark.slow
def test_no_more_is_sent_than_the_batch_has_and_the_responses_are_those_of_a_run_without(inputs, tmp_path):
    own, others = tmp_path / "own", tmp_path / "others"
    for folder, overrides in ((own, ("aggregator=none",)), (others, ("aggregator=none", CALIBRATION))):
        outcome = run_fake(*inputs, *overrides, f"hydra.run.dir={folder}")
        assert outcome.status == 0, outcome.err
    assert num_sent(own) == len(calls_of(own)) == 120
    assert num_sent(others) == 120 + 16
    assert told_of(own) == told_of(others)
    assert (own / "responses.jsonl").read_text() == (others / "responses.jsonl").read_text()
    assert answers_of(own) == answers_of(others)


@pytest.mark.slow
def test_the_makespan_leaves_the_pilot_out_and_says_so(inputs, tmp_path):
    outcome = run_fake(*inputs, f"hydra.run.dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    summary = summary_of(tmp_path)
    pilot = summary["pilot"]
    sessions = pq.read_table(tmp_path / "sessions.parquet").to_pylist()
    first, later = sessions[: pilot["num_sessions"]], sessions[pilot["num_sessions"] :]
    assert pilot["end_ts"] == max(session["end_ts"] for session in first)
    assert pilot["end_ts"] <= min(session["load_start_ts"] for session in later)
    start_ts = min(session["load_start_ts"] for session in later)
    assert summary["end_to_end_s"] == max(session["end_ts"] for session in later) - start_ts
    assert summary["end_to_end_s"] < pilot["with_pilot_s"]
    assert summary["resumptions"] == [], "a pilot is no interruption"
    assert f"before, with {pilot['num_calls']} of these calls" in outcome.out
    assert "of the batch's own calls (SmolLM2 " in outcome.err
    assert "to price the others; their answers are kept" in outcome.err


@pytest.mark.slow
def test_calls_that_fail_in_the_pilot_are_planned_with_the_batch(tmp_path):
    inputs = [*write_inputs(tmp_path, num_questions=40), "aggregator=none", "backend.patience.max_retries=0"]
    folder = tmp_path / "run"
    (tmp_path / "checkpoints" / CHECKPOINTS["QwenHalf"] / "behave").write_text("raise once")
    outcome = run_fake(*inputs, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert summary_of(folder)["num_failed_calls"] == 0
    assert len(calls_of(folder)) == 120


@pytest.mark.slow
@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
@pytest.mark.skipif(not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py")
def test_on_real_vllm_a_pilot_asks_each_call_once_and_changes_no_response(tmp_path):
    common = ("workload=tiny_mcq", "pool=tiny", "cluster=local", "backend=vllm", "workload.num_questions=150")
    own, others = tmp_path / "own", tmp_path / "others"
    for folder, overrides in ((own, ()), (others, (CALIBRATION,))):
        outcome = run_kept(*common, "aggregator=none", *overrides, f"hydra.run.dir={folder}")
        assert outcome.status == 0, outcome.err
    assert num_sent(own) == len(calls_of(own)) == 450
    assert num_sent(others) > 450
    assert told_of(own) == told_of(others)
    assert (own / "responses.jsonl").read_text() == (others / "responses.jsonl").read_text()

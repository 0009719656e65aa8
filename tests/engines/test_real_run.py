"""experiments/run.py with backend=vllm from configuration to run folder; the engine has no model."""

import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mosaic.commands.run import JOURNAL
from mosaic.runtime.journal import read_journal
from tests.commands.command_line import write_profiles
from tests.engines.fake_run import (
    CHECKPOINTS,
    fake_hosts,
    run_fake,
    run_in,
    start,
    wait_until_gone,
    without_sweep,
    write_inputs,
)
from tests.engines.tiny_checkpoint import CONTEXT
from tests.run_tables import answers_of, calls_of, finished_of, responses_of, rows, summary_of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "live"
    run_in(folder, *inputs)
    return folder


def breaking(
    folder: Path, words: str, *options: str, num_questions: int = 12, has_profile: bool = True
) -> tuple[list[str], Path]:
    """Give the inputs of a run of which one expert's engine breaks as it loads, and the file that makes it do so."""
    inputs = [*write_inputs(folder, num_questions=num_questions), *options]
    if has_profile:  # else the pilot would meet it
        with fake_hosts:
            inputs = [*without_sweep(inputs), *write_profiles(folder, *inputs)]
    behave = folder / "checkpoints" / CHECKPOINTS["QwenHalf"] / "behave"
    behave.write_text(words)
    return inputs, behave


def test_a_run_folder_has_the_same_shape_as_a_simulated_one(inputs, done, tmp_path):
    simulated = tmp_path / "sim"
    run_in(simulated, *inputs[:4], "backend=sim", inputs[-1])
    assert [key for key in summary_of(done) if key != "pilot"] == list(summary_of(simulated))
    for name in ("calls.parquet", "sessions.parquet", "answers.parquet"):
        assert pq.read_schema(done / name) == pq.read_schema(simulated / name)
    only_real = {path.name for path in done.iterdir()} - {path.name for path in simulated.iterdir()}
    assert only_real == {"responses.jsonl", JOURNAL}


def test_the_summary_is_of_what_was_measured(done):
    summary = summary_of(done)
    assert (summary["backend"], summary["skip_frac_source"]) == ("vllm", "measured")
    assert summary["num_failed_calls"] == 0
    assert summary["expert_lower_bound_s"] is None, "nobody knows it"
    assert summary["always_aggregate_s"] is None
    assert 0 < summary["expert_makespan_s"] < summary["end_to_end_s"] < 60
    graded = [row["correct"] for row in answers_of(done)]
    assert summary["accuracy_frac"] == sum(graded) / len(graded)


def test_responses_are_kept_in_the_order_of_the_calls(done):
    texts, calls = responses_of(done), calls_of(done)
    assert texts.keys() == calls.keys()
    assert [key[::2] for key in list(texts)[:4]] == [("q0", 0), ("q0", 1), ("q0", 2), ("q1", 0)]
    assert {node for _, node, _ in texts} == {"propose", "aggregate"}
    for key, text in texts.items():
        assert calls[key]["answer"] == text.removeprefix("<think>A or B?</think>The answer is ").rstrip(".")


def test_a_complete_run_is_not_run_again(inputs, done):
    assert "already complete" in run_in(done, *inputs).out


@pytest.mark.slow
def test_another_plan_gives_the_same_answers(inputs, done, tmp_path):
    run_in(tmp_path, *inputs, "scheduler=round_robin", "cluster.num_workers=1")
    assert answers_of(tmp_path) == answers_of(done)


@pytest.mark.slow
def test_replay_takes_lengths_and_answers_from_the_simulated_world(inputs, tmp_path):
    replayed, simulated = tmp_path / "replayed", tmp_path / "simulated"
    overrides = [*inputs, "backend.mode=replay", "aggregator.min_output_tokens=64"]
    overrides += [f"pool.experts.{name}.context_tokens={CONTEXT}" for name in CHECKPOINTS]
    run_in(replayed, *overrides)
    assert not (replayed / "responses.jsonl").exists(), "random tokens say nothing"
    run_in(simulated, *(value for value in overrides if not value.startswith("backend")), "backend=sim")
    assert told_of(replayed) == told_of(simulated)
    assert answers_of(replayed) == answers_of(simulated)


def told_of(folder: Path) -> dict[tuple, tuple]:
    return {key: (row["expert"], row["output_tokens"], row["answer"]) for key, row in calls_of(folder).items()}


@pytest.mark.slow
def test_what_a_lost_worker_leaves_is_planned_anew_and_it_is_not_used_in_the_second_layer(tmp_path):
    """The first engine that loads an expert dies, and its worker counts as lost."""
    inputs, _ = breaking(tmp_path, "die once", "backend.patience.max_restarts=0", "scheduler=round_robin")
    folder = tmp_path / "run"
    outcome = run_in(folder, *inputs)
    assert summary_of(folder)["num_failed_calls"] == 0
    (line,) = [json.loads(line) for line in (folder / "replans.jsonl").read_text().splitlines()]
    assert list(line["lost_workers"]) == ["1"]
    assert {tuple(session["workers"]) for session in line["plan"]["sessions"]} == {(0,)}
    assert "lost worker 1 (the worker process of QwenHalf was ended by SIGKILL" in outcome.out
    calls = calls_of(folder)
    assert sum(node == "propose" for _, node, _ in calls) == 36
    assert {node for _, node, _ in calls} == {"propose", "aggregate"}
    assert {(row["status"], *row["workers"]) for row in calls.values()} == {("finished", 0)}
    first, second = json.loads((folder / "plan.json").read_text())["layers"]
    assert {worker for session in first["sessions"] for worker in session["workers"]} == {0, 1}
    assert {worker for session in second["sessions"] for worker in session["workers"]} == {0}


@pytest.mark.slow
def test_a_run_that_loses_all_workers_says_why_and_keeps_what_is_done(tmp_path):
    inputs, behave = breaking(tmp_path, "die", "aggregator=none", "backend.patience.max_restarts=0")
    folder = tmp_path / "run"
    outcome = run_in(folder, *inputs, "scheduler=round_robin", status=2)
    assert "all workers are lost and 12 calls are left (worker 0: the worker process of QwenHalf" in outcome.err
    assert f"what has finished is kept: the same command with hydra.run.dir={folder}" in outcome.err
    behave.unlink()
    run_in(folder, *inputs, "scheduler=round_robin")
    assert summary_of(folder)["num_failed_calls"] == 0
    assert len(finished_of(folder)) == 36


@pytest.mark.slow
def test_failed_calls_are_told_and_tried_again(tmp_path):
    inputs, behave = breaking(tmp_path, "raise", "aggregator=none", "backend.patience.max_retries=0")
    folder = tmp_path / "run"
    outcome = run_in(folder, *inputs, status=3)
    assert summary_of(folder)["num_failed_calls"] == 12
    assert "12 calls have no result, 12 of them: QwenHalf cannot be loaded: RuntimeError: the engine broke" in flat(
        outcome.out
    )
    assert f"to try failed calls again: the same command with hydra.run.dir={folder}" in outcome.out
    behave.unlink()
    again = run_in(folder, *inputs)
    assert summary_of(folder)["num_failed_calls"] == 0
    assert [one["pause_s"] > 0 for one in summary_of(folder)["resumptions"]] == [True]
    assert "DISTURBED resumed once (at " in again.out
    accuracy = sum(row["correct"] for row in answers_of(folder)) / 12
    assert summary_of(folder)["accuracy_frac"] == accuracy
    assert f"accuracy  {accuracy:.2%}, of the experts' majority\n" in again.out
    assert len(finished_of(folder)) == len(set(finished_of(folder))) == 36
    assert "already complete" in run_in(folder, *inputs).out


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_an_unfinished_run_is_not_gone_on_with_as_another(tmp_path):
    options = ("aggregator=none", "backend.patience.max_restarts=0")
    inputs, behave = breaking(tmp_path, "lose", *options, has_profile=False)
    folder = tmp_path / "run"
    run_in(folder, *inputs, status=2)
    behave.unlink()
    refused = run_in(folder, *inputs, "scheduler=round_robin", status=2)
    assert "holds the unfinished run of another configuration; scheduler._target_ is" in refused.err
    assert f"run folder: {folder} (goes on with what has finished)\n" in run_in(folder, *inputs).err


def test_points_on_real_engines_run_in_turn(tmp_path):
    sweep = ("-m", "seed=0,1", "hydra/launcher=joblib", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    outcome = run_fake(*write_inputs(tmp_path), *sweep, "hydra.launcher.n_jobs=1")
    assert outcome.status != 0
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path):
    inputs = write_inputs(tmp_path, num_questions=40, word="slow")
    folder = tmp_path / "run"
    process = start(folder, inputs)
    while process.poll() is None and not (folder / JOURNAL / "run").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"run folder: {folder}\n" in out, "known from the start"
    assert "calls are in" in out
    assert f"hydra.run.dir={folder}" in out
    assert "Traceback" not in out
    wait_until_gone(folder)


# Pilots: no call is asked twice.


def num_sent(folder: Path) -> int:
    """Count the calls that ended in all journals of a run, of the batch or not."""
    return sum(len(read_journal(path).ended) for path in (folder / JOURNAL).glob("*/"))


@pytest.mark.slow
def test_no_more_is_sent_than_the_batch_has_and_the_responses_are_those_of_a_run_without(tmp_path):
    inputs = [*write_inputs(tmp_path, num_questions=40), "aggregator=none"]
    own, others = tmp_path / "own", tmp_path / "others"
    run_in(own, *inputs)
    run_in(others, *inputs, "profile.source=calibration")
    assert num_sent(own) == len(calls_of(own)) == 120
    assert num_sent(others) == 120 + 16
    assert told_of(own) == told_of(others)
    assert (own / "responses.jsonl").read_text() == (others / "responses.jsonl").read_text()
    assert answers_of(own) == answers_of(others)


@pytest.mark.slow
def test_the_makespan_leaves_the_pilot_out_and_says_so(tmp_path):
    folder = tmp_path / "run"
    outcome = run_in(folder, *write_inputs(tmp_path, num_questions=40))
    summary, sessions = summary_of(folder), rows(folder, "sessions")
    pilot = summary["pilot"]
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
    options = ("aggregator=none", "backend.patience.max_retries=0")
    inputs, _ = breaking(tmp_path, "raise once", *options, num_questions=40, has_profile=False)
    run_in(tmp_path / "run", *inputs)
    assert summary_of(tmp_path / "run")["num_failed_calls"] == 0
    assert len(calls_of(tmp_path / "run")) == 120

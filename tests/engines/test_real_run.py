"""experiments/run.py with backend=vllm from configuration to run folder; the engine has no model."""

import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mosaic.commands.run import JOURNAL
from tests.commands.command_line import write_profiles
from tests.engines.fake_run import CHECKPOINTS, fake_hosts, run_fake, without_sweep, write_inputs
from tests.engines.interrupted_run import start, wait_until_gone
from tests.engines.tiny_checkpoint import CONTEXT
from tests.run_tables import answers_of, finished_of, summary_of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "live"
    outcome = run_fake(*inputs, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return folder


def test_a_run_folder_has_the_same_shape_as_a_simulated_one(inputs, done, tmp_path):
    simulated = tmp_path / "sim"
    assert run_fake(*inputs[:4], "backend=sim", inputs[-1], f"hydra.run.dir={simulated}").status == 0
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
    lines = [json.loads(line) for line in (done / "responses.jsonl").read_text().splitlines()]
    calls = pq.read_table(done / "calls.parquet").to_pylist()
    assert len(lines) == len(calls)
    assert [(line["question"], line["slot"]) for line in lines[:4]] == [("q0", 0), ("q0", 1), ("q0", 2), ("q1", 0)]
    assert {line["node"] for line in lines} == {"propose", "aggregate"}
    answer_of = {(call["question"], call["node"], call["slot"]): call["answer"] for call in calls}
    for line in lines:
        said = line["text"].removeprefix("<think>A or B?</think>The answer is ").rstrip(".")
        assert answer_of[line["question"], line["node"], line["slot"]] == said


def test_a_complete_run_is_not_run_again(inputs, done):
    outcome = run_fake(*inputs, f"hydra.run.dir={done}")
    assert outcome.status == 0
    assert "already complete" in outcome.out


@pytest.mark.slow
def test_another_plan_gives_the_same_answers(inputs, done, tmp_path):
    folder = tmp_path / "rr"
    outcome = run_fake(*inputs, "scheduler=round_robin", "cluster.num_workers=1", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert answers_of(folder) == answers_of(done)


@pytest.mark.slow
def test_replay_takes_lengths_and_answers_from_the_simulated_world(inputs, tmp_path):
    replayed, simulated = tmp_path / "replayed", tmp_path / "simulated"
    overrides = [*inputs, "backend.mode=replay", "aggregator.min_output_tokens=64"]
    overrides += [f"pool.experts.{name}.context_tokens={CONTEXT}" for name in CHECKPOINTS]
    assert (outcome := run_fake(*overrides, f"hydra.run.dir={replayed}")).status == 0, outcome.err
    assert not (replayed / "responses.jsonl").exists(), "random tokens say nothing"
    simulation = [value for value in overrides if not value.startswith("backend")]
    assert run_fake(*simulation, "backend=sim", f"hydra.run.dir={simulated}").status == 0
    keys = ("question", "role", "slot", "output_tokens", "answer")
    lengths = [
        sorted(tuple(call[key] for key in keys) for call in pq.read_table(folder / "calls.parquet").to_pylist())
        for folder in (replayed, simulated)
    ]
    assert lengths[0] == lengths[1]
    assert answers_of(replayed) == answers_of(simulated)


@pytest.mark.slow
def test_what_a_lost_worker_leaves_is_planned_anew(tmp_path):
    inputs = [*write_inputs(tmp_path), "aggregator=none", "backend.patience.max_restarts=0"]
    with fake_hosts:
        profile = write_profiles(tmp_path, *inputs)
    # The first engine that loads this expert dies, and its worker counts as lost.
    (tmp_path / "checkpoints" / CHECKPOINTS["QwenHalf"] / "behave").write_text("die once")
    folder = tmp_path / "run"
    given = [*without_sweep(inputs), *profile]
    outcome = run_fake(*given, "scheduler=round_robin", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert summary_of(folder)["num_failed_calls"] == 0
    (line,) = [json.loads(line) for line in (folder / "replans.jsonl").read_text().splitlines()]
    assert list(line["lost_workers"]) == ["1"]
    assert {tuple(session["workers"]) for session in line["plan"]["sessions"]} == {(0,)}
    assert "lost worker 1 (the worker process of QwenHalf was ended by SIGKILL" in outcome.out
    calls = pq.read_table(folder / "calls.parquet").to_pylist()
    assert len(calls) == len({(call["question"], call["slot"]) for call in calls}) == 36
    assert {worker for call in calls for worker in call["workers"]} == {0}


@pytest.mark.slow
def test_a_worker_that_is_lost_in_the_first_layer_is_not_used_in_the_second(tmp_path):
    inputs = write_inputs(tmp_path)
    with fake_hosts:
        inputs = [*without_sweep(inputs), *write_profiles(tmp_path, *inputs)]
    inputs += ["backend.patience.max_restarts=0", "scheduler=round_robin"]
    (tmp_path / "checkpoints" / CHECKPOINTS["QwenHalf"] / "behave").write_text("die once")
    folder = tmp_path / "run"
    outcome = run_fake(*inputs, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    calls = pq.read_table(folder / "calls.parquet").to_pylist()
    assert {call["node"] for call in calls} == {"propose", "aggregate"}
    assert {call["status"] for call in calls} == {"finished"}
    assert {worker for call in calls for worker in call["workers"]} == {0}
    first, second = json.loads((folder / "plan.json").read_text())["layers"]
    assert {worker for session in first["sessions"] for worker in session["workers"]} == {0, 1}
    assert {worker for session in second["sessions"] for worker in session["workers"]} == {0}


@pytest.mark.slow
def test_a_run_that_loses_all_workers_says_why_and_keeps_what_is_done(tmp_path):
    inputs = [*write_inputs(tmp_path), "aggregator=none", "backend.patience.max_restarts=0"]
    with fake_hosts:
        profile = write_profiles(tmp_path, *inputs)
    behave = tmp_path / "checkpoints" / CHECKPOINTS["QwenHalf"] / "behave"
    behave.write_text("die")
    folder = tmp_path / "run"
    given = [*without_sweep(inputs), *profile]
    command = (*given, "scheduler=round_robin", f"hydra.run.dir={folder}")
    outcome = run_fake(*command)
    assert outcome.status == 2
    assert "all workers are lost and 12 calls are left (worker 0: the worker process of QwenHalf" in outcome.err
    assert f"what has finished is kept: the same command with hydra.run.dir={folder}" in outcome.err
    behave.unlink()
    assert run_fake(*command).status == 0
    assert summary_of(folder)["num_failed_calls"] == 0
    assert len(finished_of(folder)) == 36


@pytest.mark.slow
def test_failed_calls_are_told_and_tried_again(tmp_path):
    inputs = [*write_inputs(tmp_path), "aggregator=none", "backend.patience.max_retries=0"]
    folder = tmp_path / "run"
    with fake_hosts:
        profile = write_profiles(tmp_path, *inputs)
    behave = tmp_path / "checkpoints" / CHECKPOINTS["QwenHalf"] / "behave"
    behave.write_text("raise")
    command = (*without_sweep(inputs), *profile, f"hydra.run.dir={folder}")
    outcome = run_fake(*command)
    assert outcome.status == 3, outcome.err
    assert summary_of(folder)["num_failed_calls"] == 12
    assert "12 calls have no result, 12 of them: QwenHalf cannot be loaded: RuntimeError: the engine broke" in flat(
        outcome.out
    )
    assert f"to try failed calls again: the same command with hydra.run.dir={folder}" in outcome.out
    behave.unlink()
    again = run_fake(*command)
    assert again.status == 0, again.err
    assert summary_of(folder)["num_failed_calls"] == 0
    assert [one["pause_s"] > 0 for one in summary_of(folder)["resumptions"]] == [True]
    assert "DISTURBED resumed once (at " in again.out
    accuracy = sum(row["correct"] for row in answers_of(folder)) / 12
    assert summary_of(folder)["accuracy_frac"] == accuracy
    assert f"accuracy  {accuracy:.2%}, of the experts' majority\n" in again.out
    assert len(finished_of(folder)) == len(set(finished_of(folder))) == 36
    assert "already complete" in run_fake(*command).out


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_an_unfinished_run_is_not_gone_on_with_as_another(tmp_path):
    inputs = write_inputs(tmp_path)
    folder = tmp_path / "run"
    behave = tmp_path / "checkpoints" / CHECKPOINTS["QwenHalf"] / "behave"
    behave.write_text("lose")
    broken = (*inputs, "aggregator=none", "backend.patience.max_restarts=0", f"hydra.run.dir={folder}")
    assert run_fake(*broken).status == 2
    behave.unlink()
    outcome = run_fake(*broken, "scheduler=round_robin")
    assert outcome.status == 2
    assert "holds the unfinished run of another configuration; scheduler._target_ is" in outcome.err
    resumed = run_fake(*broken)
    assert resumed.status == 0
    assert f"run folder: {folder} (goes on with what has finished)\n" in resumed.err


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
    assert f"\nrun folder: {folder}\n" in out, "known from the start"
    assert "calls are in" in out
    assert f"hydra.run.dir={folder}" in out
    assert "Traceback" not in out
    wait_until_gone(folder)

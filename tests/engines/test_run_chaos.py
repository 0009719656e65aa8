"""Whole runs from configuration, two stages and a controller that steals: killed, and with workers that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from experiments.measure_profile import main as profile_command
from mosaic.commands.run import JOURNAL
from mosaic.core.workload import CallKey
from mosaic.runtime.journal import read_journal
from tests.commands.command_line import ROOT
from tests.engines.executor_runs import processes_of
from tests.engines.fake_run import CHECKPOINTS, fake_hosts, run_fake, without_sweep, write_inputs

pytestmark = pytest.mark.slow


def profiled(folder: Path, **options) -> list[str]:
    """Inputs with both profiles, so that a run has nothing to measure."""
    inputs = write_inputs(folder, **options)
    experts, aggregator = folder / "experts.json", folder / "aggregator.json"
    with fake_hosts:
        profile_command([*inputs, f"out={experts}", f"aggregator_out={aggregator}"])
    return [*without_sweep(inputs), f"profile.path={experts}", f"profile.aggregator_path={aggregator}"]


def start(folder: Path, overrides: list[str]) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engines.stealing_run", str(folder), *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, overrides: list[str]) -> dict:
    process = start(folder, overrides)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return json.loads((folder / "answers.json").read_text())


def workers_of(folder: Path) -> list[int]:
    """The worker processes of a run: those that print into its workers' logs."""
    found = []
    for pid in processes_of(folder):
        with suppress(OSError):
            if Path(os.readlink(f"/proc/{pid}/fd/1")).name.startswith("worker-"):
                found.append(pid)
    return found


def ended_in(folder: Path) -> list[CallKey]:
    return [record.key for record in read_journal(folder / JOURNAL / "run").ended]


def ended_once(folder: Path) -> None:
    ended = ended_in(folder)
    assert len(ended) == len(set(ended))


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> list[str]:
    return profiled(tmp_path_factory.mktemp("slow"), num_questions=32, word="slow")


@pytest.fixture(scope="module")
def undisturbed(slow, tmp_path_factory) -> dict:
    said = finish(tmp_path_factory.mktemp("undisturbed"), slow)
    assert said["num_stolen"] > 0
    assert {node for _, node, *_ in said["calls"]} == {"propose", "aggregate"}
    return said


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_steals_and_is_killed_ends_as_if_it_never_was(slow, undisturbed, tmp_path, seed):
    rng = random.Random(seed)
    num_killed = 0
    for _ in range(5):
        enough = len(ended_in(tmp_path)) + rng.randint(1, 12)
        process = start(tmp_path, slow)
        while process.poll() is None and len(ended_in(tmp_path)) < enough:
            time.sleep(0.01)
        time.sleep(0.2 * rng.random())  # at any moment between two ends
        num_killed += process.poll() is None
        process.kill()
        process.communicate()
    assert num_killed >= 2
    again = finish(tmp_path, slow)
    assert (again["answers"], again["calls"]) == (undisturbed["answers"], undisturbed["calls"])
    ended_once(tmp_path)


def test_workers_that_are_killed_change_no_answer(slow, undisturbed, tmp_path):
    rng = random.Random(3)
    patient = [*slow, "backend.patience.max_retries=50", "backend.patience.max_restarts=50"]
    process = start(tmp_path, patient)
    num_killed = 0
    while process.poll() is None:
        time.sleep(0.1 + 0.2 * rng.random())
        if num_killed < 12 and (workers := workers_of(tmp_path)):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                num_killed += 1
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert num_killed >= 3
    said = json.loads((tmp_path / "answers.json").read_text())
    assert (said["answers"], said["calls"]) == (undisturbed["answers"], undisturbed["calls"])
    ended_once(tmp_path)


def test_a_worker_that_is_lost_in_the_first_layer_is_not_used_in_the_second(tmp_path):
    inputs = [*profiled(tmp_path), "backend.patience.max_restarts=0", "scheduler=round_robin"]
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

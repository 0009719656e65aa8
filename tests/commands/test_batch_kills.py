"""`mosaic batch` killed twenty times, its driver and its workers: nothing is lost, nothing doubled; and a long one."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from mosaic.core.results import CallRecord, CallStatus
from mosaic.runtime.journal import read_journal
from tests.commands.command_line import ROOT
from tests.engines.executor_runs import hear_ctrl_c, workers_of
from tests.engines.fake_batch import batch_line, question, write_batch, write_models

pytestmark = pytest.mark.slow

NUM_QUESTIONS, NUM_KILLS = 150, 20
PATIENT = ("backend.engine.max_num_seqs=2", "backend.patience.max_retries=50", "backend.patience.max_restarts=50")
"""Two calls at a time, so that a batch is long enough to be killed often."""


def start(*words: object, command: str = "batch") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engines.fake_batch", command, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out


def ended_calls(folder: Path) -> list[CallRecord]:
    """List what ended of the batch, its pilot included."""
    journals = sorted((folder / "questions.mosaic" / "journal").glob("*"))
    own = [path for path in journals if path.name == "run" or path.name.startswith("pilot")]
    return [record for path in own for record in read_journal(path).ended]


def num_ended(folder: Path) -> int:
    return len(ended_calls(folder))


@pytest.mark.parametrize("reactions", [[], ["pipeline.moves=true"]], ids=["planned", "moves"])
def test_a_batch_that_is_killed_twenty_times_ends_as_if_it_never_was(tmp_path: Path, reactions: list[str]) -> None:
    models = [*write_models(tmp_path), *reactions]
    folders = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
        write_batch(folder, [batch_line(number, question(number, "slow")) for number in range(NUM_QUESTIONS)])
    finish(start(folders[0] / "questions.jsonl", *models))
    draw, killed, folder = random.Random(0), Counter[str](), folders[1]
    words = [folder / "questions.jsonl", *models, *PATIENT]
    process = start(*words)
    while killed.total() < NUM_KILLS:
        enough = num_ended(folder) + draw.randint(0, 12)
        while process.poll() is None and num_ended(folder) < enough:
            time.sleep(0.01)
        time.sleep(0.3 * draw.random())
        assert process.poll() is None, f"it ended after {killed}"
        workers = workers_of(folder / "questions.mosaic")
        if workers and draw.random() < 0.5:
            with suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
                killed["worker"] += 1
            continue
        process.kill()
        process.communicate()
        killed["driver"] += 1
        process = start(*words)
    finish(process)
    print(dict(killed))
    assert min(killed["driver"], killed["worker"]) >= 5
    finished = Counter(record.key for record in ended_calls(folder) if record.status is CallStatus.FINISHED)
    assert set(finished.values()) == {1}
    for name in ("questions.out.jsonl", "questions.errors.jsonl"):
        assert (folders[0] / name).read_bytes() == (folder / name).read_bytes()
    lines = [json.loads(line) for line in (folder / "questions.out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"q{number}" for number in range(NUM_QUESTIONS)]


def test_ctrl_c_and_a_scheduler_s_signal_stop_with_status_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    models = write_models(tmp_path)
    path = write_batch(tmp_path, [batch_line(number, question(number, "slow")) for number in range(60)])
    for number, sent in enumerate((signal.SIGINT, signal.SIGTERM)):
        process = start(path, *models, *PATIENT)
        while num_ended(tmp_path) < 40 * (number + 1):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(sent)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 130, out
        assert "The same command goes on with questions.jsonl" in out
        assert "Traceback" not in out
    finish(start(path, *models, *PATIENT))


MOST_MIB = 350e6 / 2**20
MEASURED = """
import pathlib, sys
from tests.engines.fake_batch import fake_hosts, main
with fake_hosts:
    try:
        main()
    finally:
        status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss also knows the peak of who started it
        print("driver", int(status.split("VmHWM:")[1].split()[0]) // 1024, "MiB")
"""


@pytest.mark.slow
def test_ten_thousand_questions_fit_into_the_driver(tmp_path: Path) -> None:
    """With responses of 400 tokens."""
    models = write_models(tmp_path)
    path = write_batch(tmp_path, [batch_line(number, question(number, "long")) for number in range(10_000)])
    command = [sys.executable, "-c", MEASURED, "batch", str(path), *models]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "10,000 questions answered, 0 errors" in done.stdout
    found = re.search(r"driver (\d+) MiB", done.stdout)
    assert found is not None
    print(found[0])
    assert int(found[1]) < MOST_MIB

"""Runs of the fake engine in a process of their own, killed while they are at work and gone on with."""

import subprocess
import sys
import time
from pathlib import Path

from tests.commands.command_line import ROOT
from tests.engines.executor_runs import hear_ctrl_c, processes_of
from tests.run_tables import num_finished


def start(folder: Path, inputs: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engines.fake_run", *inputs, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def kill_after(folder: Path, inputs: list[str], num_done: float, wait_s: float = 0.0) -> None:
    """Start a run and kill it ``wait_s`` seconds after ``num_done`` calls have finished, while it is at work."""
    process = start(folder, inputs)
    while num_finished(folder) < num_done and process.poll() is None:
        time.sleep(0.02)
    time.sleep(wait_s)
    assert process.poll() is None, "it is still at work"
    process.kill()
    process.communicate()
    wait_until_gone(folder)


def go_on(folder: Path, inputs: list[str]) -> None:
    """Run to the end what earlier kills have left."""
    process = start(folder, inputs)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out


def wait_until_gone(folder: Path) -> None:
    """Workers end by themselves when nobody is there to hear them."""
    for _ in range(100):
        if not processes_of(folder):
            return
        time.sleep(0.05)
    raise AssertionError(f"processes outlived their run: {processes_of(folder)}")

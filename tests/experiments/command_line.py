"""Runs experiments/run.py as a user does: in a process of its own or, which is faster, in this one."""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from hydra._internal.hydra import Hydra

from experiments.run import run_command

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "run.py"

SMALL = (
    "workload.num_questions=10",
    "workload.slots={LlamaR1: 4, QwenR1: 0, Gemma: 6, Exaone: 0, GLM: 0, Qwen: 20}",
    "workload.first_seen=[Gemma, Qwen, LlamaR1]",
)
"""Turns a published workload into one of 30 calls."""

QUICK = ("profile.sweep={shard_sizes: [4, 8], num_repeats: 1}",)
"""A sweep that takes no time, and tells next to nothing about costs."""

DEMO = ("workload=file", "pool=demo", *QUICK)
"""A file of one's own, for the experts SmolLM2 and QwenHalf."""


class Outcome(NamedTuple):
    """What a command left on the screen."""

    status: int
    out: str
    err: str


def run_here(*arguments: str) -> Outcome:
    """Run the command in this process."""
    out, err, status = StringIO(), StringIO(), 0
    # NOTE: Hydra composes everything once more only to look up hydra.mode, which takes half the time of most tests.
    no_mode = patch.object(Hydra, "get_mode", lambda *_, **__: None)
    with no_mode, patch.object(sys, "argv", [str(RUN), *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            run_command()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def start_process(*arguments: str, cwd: Path, hash_seed: int = 0) -> "subprocess.Popen[str]":
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(RUN), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_process(process: "subprocess.Popen[str]") -> Outcome:
    """Wait for a started command."""
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def run_process(*arguments: str, cwd: Path, hash_seed: int = 0) -> Outcome:
    """Run the command in a process of its own."""
    return finish_process(start_process(*arguments, cwd=cwd, hash_seed=hash_seed))

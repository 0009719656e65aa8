"""The command as a user calls it, and what tests give it."""

import atexit
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

from mosaic.commands.app import main as mosaic_command
from mosaic.commands.run import run_command, run_resolved
from mosaic.config.compose import compose_config
from mosaic.config.errors import FAILED_CALLS_STATUS, exit_with_message
from mosaic.config.job import RunSpec, build_job
from mosaic.config.launch import Point
from mosaic.planning.profiles import Profile, ProfileEntry, write_profile
from mosaic.runtime.run import measure

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "run.py"
TINY = ROOT / "checkpoints" / "tiny"
"""The pool that experiments/make_pool.py trains."""

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


@cache
def store() -> Path:
    """Give the folder where the tests of a process keep what they have measured."""
    folder = TemporaryDirectory(prefix="measured-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def keeping(config: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Let a configuration keep its measurements in a folder, or in that of the process."""
    config["profile"]["store"] = str(folder or store())
    return config


def prepare(*overrides: str) -> RunSpec:
    """Build what the command runs; a folder may be among the overrides and is left out."""
    asked = [override for override in overrides if not override.startswith("hydra.run.dir=")]
    return build_job(keeping(compose_config(asked)), store() / "journal", overrides=asked)


def run_point(*overrides: str) -> Outcome:
    """Run a point in this process, without the command line around it; hydra.run.dir=FOLDER is among the overrides."""
    (folder,) = (override.partition("=")[2] for override in overrides if override.startswith("hydra.run.dir="))
    asked = [override for override in overrides if not override.startswith("hydra.run.dir=")]

    def run() -> None:
        with exit_with_message():
            num_failed = run_resolved(Point(keeping(compose_config(asked)), Path(folder), tuple(asked)))
        if num_failed:
            sys.exit(FAILED_CALLS_STATUS)

    return _watch(run)


def run_into(folder: Path, *overrides: str) -> Path:
    """Run a point that ends well into a folder; gives the folder."""
    outcome = run_point(*overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return folder


def run_here(*arguments: str) -> Outcome:
    """Run the whole command in this process."""
    with patch.object(sys, "argv", [str(RUN), *arguments]):
        return _watch(run_command)


def mosaic_status(*arguments: object) -> int:
    """Run the command `mosaic` in this process; gives its exit status."""
    try:
        mosaic_command([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def simulated_profiles(folder: Path, *inputs: str) -> list[str]:
    """Measure experts and aggregator on the simulator: a run on engines that is given this has nothing to measure."""
    return write_profiles(folder, *inputs, "profile.sweep={shard_sizes: [8, 16], num_repeats: 1}")


def write_profiles(folder: Path, *overrides: str) -> list[str]:
    """Measure experts, and an aggregator where there is one; gives the overrides that name the files."""
    job = build_job(compose_config([*overrides]), folder / "measured").job
    with job.site.open():
        profiles = measure(job)
    entries: dict[tuple[str, str, int], ProfileEntry] = {}
    for node in job.graph.upper_nodes:  # an expert that several nodes ask has the price of the first of them
        for entry in profiles[node.name].entries:
            entries.setdefault((entry.expert, entry.gpu, entry.tp_degree), entry)
    made = {"profile.path": profiles[job.graph.first_nodes[0]]}
    if entries:
        made["profile.aggregator_path"] = Profile(source="upper nodes", entries=tuple(entries.values()))
    for key, profile in made.items():
        write_profile(profile, folder / f"{key}.json")
    return [f"{key}={folder / key}.json" for key in made]


def _watch(command: Callable[[], None]) -> Outcome:
    out, err, status = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            command()
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

"""The same command gives the same plans, calls, screens and summaries on every Python.

Other interpreters are ``python3.11`` to ``python3.13`` on PATH, and those that MOSAIC_OTHER_PYTHONS lists, separated as
PATH is. One that lacks what mosaic needs is skipped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.commands.command_line import ROOT

pytestmark = pytest.mark.slow

NAMES = ("python3.11", "python3.12", "python3.13")
NEEDED = "import sys, hydra, highspy, pyomo, mpmath, polars, msgspec; print(*sys.version_info[:2])"
RUNS = {
    name: ("run", *words, "hydra.run.dir=run")
    for name, words in {
        "default": (),
        "quorum": ("+policy=quorum", "workload=medmcqa"),
        "affine": ("costs=affine", "workload=gpqa"),
        "iterations": ("scheduler=flexible", "scheduler.prices=iterations", "workload=gpqa"),
    }.items()
} | {"quote": ("quote", "--json", "--folder=pilot", "--gpus=1-3", "workload=gpqa")}
SAME_BYTES = ("plan.json", "summary.json", "actions.jsonl", "config.yaml")


def other_pythons() -> list[str]:
    listed = [path for path in os.environ.get("MOSAIC_OTHER_PYTHONS", "").split(os.pathsep) if path]
    here = "python{}.{}".format(*sys.version_info)
    return listed or [name for name in NAMES if name != here]


@pytest.fixture(scope="module", params=other_pythons())
def other(request: pytest.FixtureRequest) -> str:
    found = shutil.which(request.param)
    if found is None:
        pytest.skip(f"{request.param} is not installed")
    asked = subprocess.run([found, "-c", NEEDED], capture_output=True, text=True, check=False, env=environment())
    if asked.returncode:
        pytest.skip(f"{request.param} does not run, or lacks what mosaic needs")
    if asked.stdout.split() == [str(number) for number in sys.version_info[:2]]:
        pytest.skip(f"{request.param} is the Python that runs the tests")
    return found


def environment() -> dict[str, str]:
    """Give what a Python of another version runs in: this checkout, and nothing of the environment of the tests."""
    left_out = ("VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {"PYTHONPATH": str(ROOT)}


def run(python: str, name: str, folder: Path) -> str:
    """Run a command and give what it prints, without the name of the folder."""
    folder.mkdir()
    done = subprocess.run(
        [python, "-m", "mosaic", *RUNS[name], "profile.store=null"],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(str(folder), "")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Path]]:
    """Run a command by the Python of the tests, once."""
    root = tmp_path_factory.mktemp("ours")

    @cache
    def run_once(name: str) -> tuple[str, Path]:
        return run(sys.executable, name, root / name), root / name

    return run_once


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same(other: str, name: str, tmp_path: Path, ours: Callable[[str], tuple[str, Path]]) -> None:
    screen, here = ours(name)
    there = tmp_path / "there"
    assert run(other, name, there) == screen
    for file in (here / "run").glob("*"):
        again = there / "run" / file.name
        if file.name in SAME_BYTES:
            assert again.read_bytes() == file.read_bytes(), file.name
        elif file.suffix == ".parquet":
            assert pq.read_table(again).equals(pq.read_table(file)), file.name
    assert name == "quote" or all((here / "run" / file).exists() for file in SAME_BYTES[:2])

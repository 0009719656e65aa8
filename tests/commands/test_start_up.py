"""What a command imports before it knows that it is needed: nothing that takes long."""

import subprocess
import sys

import pytest

HEAVY = (
    "aiohttp", "highspy", "hydra", "joblib", "matplotlib", "mpmath", "numpy", "omegaconf", "polars", "pyarrow",
    "pyomo", "ray", "rich", "scipy", "simpy", "torch", "transformers", "vllm", "yaml",
)  # fmt: skip
READS_MATHEMATICS = ("mosaic.answers.math_parser", "mosaic.answers.math_equality", "mosaic.answers.choice_cues")
COMMANDS = ("compare", "quote", "batch", "audit", "doctor")


def loaded_by(*arguments: str) -> set[str]:
    """List the packages, and the rooms of mosaic, that a command has imported when it ends."""
    code = (
        "import sys\nfrom mosaic.__main__ import main\n"
        "try: main()\n"
        "finally: print('loaded', *sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)])
def test_help_and_version_load_no_package_that_only_work_needs(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert loaded.isdisjoint(HEAVY)
    assert {name for name in loaded if name.startswith("mosaic.commands.")} == {"mosaic.commands.app"}


def test_a_run_begins_without_what_only_some_runs_need() -> None:
    code = "import sys, mosaic.commands.run\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded).isdisjoint((*READS_MATHEMATICS, "pyomo", "matplotlib", "polars", "scipy", "vllm", "torch"))

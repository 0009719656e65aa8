"""No command writes into what is committed unless it is told to."""

import runpy
from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [path for path in sorted((ROOT / "experiments").glob("*.py")) if '"--out"' in path.read_text()]
IGNORED = [
    line for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith("/") or line == "checkpoints"
]


def default_out(command: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Tell where a command writes that is given no --out."""
    defaults: list[Path | None] = []

    def parse_args(parser: ArgumentParser, _arguments: object = None) -> NoReturn:
        defaults.append(parser.get_default("out"))
        raise SystemExit

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
    try:
        with pytest.raises(SystemExit):
            runpy.run_path(str(command), run_name="__main__")
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        pytest.skip(f"{command.name} needs torch, which the extras of vLLM bring")
    (default,) = defaults
    return default


def test_the_commands_that_make_committed_files_are_among_these() -> None:
    makers = {"calibrate", "fit_answers", "gates", "notebooks", "paper"}
    assert {path.stem for path in COMMANDS} >= makers


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path.stem)
def test_a_command_writes_where_it_is_told_or_where_git_ignores_it(
    command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = default_out(command, monkeypatch)
    if out is not None:  # it has to be given, or a folder that is given is its default
        place = (ROOT / out).relative_to(ROOT)
        assert any(f"{place}/".startswith(folder) for folder in IGNORED), place

"""READMEs and the pages of docs/ as programs: their fenced blocks, and how to do what they say.

A block's first word is its language and the second its marker. ``sh ci`` is run by .ci/run, from README.md alone;
``run`` by the fast tests, all blocks of a file in order in one folder; ``slow`` by the slow tests, each in a folder of
its own. A ``yaml`` or ``python`` block that begins with a file's name is that file. A ``text prints`` block is what the
Python before it prints. Without a marker a command needs a GPU, a server or minutes; it must compose all the same.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir

from mosaic.commands.run import run_resolved
from mosaic.config.compose import CONF, plain
from mosaic.config.launch import Point

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(path for path in ROOT.glob("**/README.md") if ".venv" not in path.parts)
PAGES = [*READMES, *sorted(ROOT.glob("docs/**/*.md"))]
TREE = ("conf", "experiments", "mosaic", "sim")
"""What a command run in the root may need of it."""
RUN_COMMAND = re.compile(r"^(?:PYTHONPATH=\. )?python experiments/run\.py(?P<arguments>.*)$", re.S)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    marker: str
    text: str
    at: str
    """File and line."""


def blocks_of(path: Path) -> list[Block]:
    """List the fenced blocks of a file."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+) ?(\w*)\n(.*?)^```$", text, re.M | re.S)
    name = path.relative_to(ROOT)
    return [Block(*match.groups(), f"{name}:{text.count(chr(10), 0, match.start()) + 1}") for match in found]


def commands_of(text: str) -> Iterator[str]:
    """Split shell text into commands: continued lines and here-documents stay together."""
    lines = iter(text.splitlines())
    for line in lines:
        command = line
        end = re.search(r"<<'(\w+)'", line)
        while command.endswith("\\") or (end and not command.endswith("\n" + end.group(1))):
            command += "\n" + next(lines)
        if command.strip() and not command.startswith("#"):
            yield command


def run_arguments(command: str) -> list[str] | None:
    """Give the arguments of experiments/run.py, if that is the command."""
    found = RUN_COMMAND.match(command)
    return shlex.split(found["arguments"].replace("\\\n", " "), comments=True) if found else None


def compose_arguments(arguments: list[str], folder: Path) -> tuple[dict[str, Any], str | None]:
    """Compose the configuration that arguments ask for, and the folder that they name."""
    overrides = list(arguments)
    if "--config-dir" in overrides:
        assert overrides[0] == "--config-dir", "Hydra takes it in front of overrides only"
        overrides[:2] = [f"hydra.searchpath=[file://{folder / overrides[1]}]"]
    place = [item.removeprefix("hydra.run.dir=") for item in overrides if item.startswith("hydra.run.dir=")]
    overrides = [item for item in overrides if not item.startswith("hydra.run.dir=")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("config", overrides)), place[0] if place else None


class Walk:
    """Does what blocks say, in a folder that looks like the repository's root."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        self._store = store
        """What runs have in common is measured once."""
        self._names: dict[str, Any] = {}
        self._printed = ""
        self._num_runs = 0
        self._is_changed = False
        """The tree is a copy that a block has changed: nothing of it runs in this process."""
        for name in TREE:
            (folder / name).symlink_to(ROOT / name)
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        (folder / "bin" / "python").chmod(0o755)

    def do(self, block: Block) -> None:
        """Do what a block says."""
        path = re.match(r"# (\S+\.\w+)\n", block.text)
        if block.language == "text":
            assert self._printed == block.text, f"{block.at}: the Python before it printed\n{self._printed}"
        elif block.language == "diff":
            self._change(block.text)
        elif block.language == "sh":
            for command in commands_of(block.text):
                self._command(command, block.at)
        elif path is not None:
            (self.folder / path[1]).write_text(block.text, encoding="utf-8")
        else:
            assert block.language == "python", f"{block.at}: a {block.language} block begins with its file's name"
            self._python(block)

    def _python(self, block: Block) -> None:
        out = StringIO()
        with redirect_stdout(out):
            exec(compile(block.text, block.at, "exec"), self._names)
        self._printed = out.getvalue()

    def _command(self, command: str, at: str) -> None:
        arguments = run_arguments(command)
        if arguments is not None and "-m" not in arguments and not self._is_changed:
            self._run(arguments)
            return
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{at}: {command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def _run(self, arguments: list[str]) -> None:
        config, place = compose_arguments(arguments, self.folder)
        self._num_runs += 1
        folder = self.folder / (place or f"results/runs/{self._num_runs}")
        config["profile"]["store"] = str(self._store)
        run_resolved(Point(config, folder))
        assert (folder / "summary.json").exists()

    def _change(self, diff: str) -> None:
        for name in TREE:
            if (self.folder / name).is_symlink():
                (self.folder / name).unlink()
                shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self._is_changed = True
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=self.folder, check=True)

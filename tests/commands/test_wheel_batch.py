"""The screens that docs/how-to/batch.md shows of a quote, a batch and its audit, and a wheel that prints them.

``pytest -m slow -s --benchmark-enable tests/commands/test_wheel_batch.py`` asks 600 questions, as for the
page, and prints the screens.
"""

import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.commands.command_line import ROOT
from tests.commands.tiny_batch import needs_tiny_pool, read_completions, write_tiny_batch
from tests.engines.executor_runs import has_vllm
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch, write_models
from tests.package.built_wheel import borrowing_environment, build_wheel

NUMBER = re.compile(r"(?<![A-Za-z])\d[\d.,:]*(?: (?:s|min|h)\b)?")
"""With its unit: a duration that is another may be told in minutes."""
PLAN = re.compile(r"(ilp \(\w+\)|round_robin|data_parallel)$")


class Screen(NamedTuple):
    """A command and the lines that it prints."""

    command: str
    lines: Sequence[str]


def screens_of(path: Path) -> list[Screen]:
    """List the screens of a file, each an indented block that begins with `$`."""
    found = re.findall(r"^    \$ (.+)\n((?:    .+\n|\n(?=    [^$]))+)", path.read_text(encoding="utf-8"), re.M)
    return [Screen(command, [line.removeprefix("    ") for line in text.splitlines()]) for command, text in found]


def masked(lines: Sequence[str]) -> list[str]:
    """Give lines without numbers, without the width of columns, and without what numbers choose: plan and mark."""
    shown = (" ".join(NUMBER.sub("#", line).split()).removesuffix(" <") for line in lines)
    return [PLAN.sub("PLAN", line) for line in shown]


NUM_QUESTIONS, NUM_FEW = 600, 60
SCREENS = screens_of(ROOT / "docs" / "how-to" / "batch.md")
POOL = "pool=tiny"


def test_the_page_shows_a_quote_a_batch_and_its_audit() -> None:
    begun = [" ".join(screen.command.split()[:3]) for screen in SCREENS]
    files = ("quote questions.jsonl", "batch questions.jsonl", "audit questions.out.jsonl")
    assert begun == [f"mosaic {words}" for words in files]
    assert f"questions.jsonl: {NUM_QUESTIONS} questions answered, 0 errors" in SCREENS[1].lines


@pytest.mark.slow
def test_engines_without_a_model_print_the_screens_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = write_models(tmp_path)
    write_batch(tmp_path, [batch_line(number) for number in range(NUM_FEW)])
    for command, lines in SCREENS:
        words = [word for given in shlex.split(command)[1:] for word in (models if given == POOL else [given])]
        done = run_mosaic(*words)
        assert done.status == 0, done.err
        assert masked(done.out.splitlines()) == masked(lines)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = build_wheel(tmp_path_factory.mktemp("build"))
    return borrowing_environment(wheel, tmp_path_factory.mktemp("borrowing") / "environment")


@pytest.mark.slow
@needs_tiny_pool
@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
def test_a_wheel_quotes_answers_and_audits(environment: Path, tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    texts = write_tiny_batch(tmp_path, NUM_QUESTIONS if benchmark.enabled else NUM_FEW)
    benchmark.pedantic(lambda: None)
    where = "import mosaic.bundled; print(mosaic.__file__, mosaic.bundled.BUNDLE, sep='\\n')"
    places = run(environment, tmp_path, "python", "-c", where).stdout.splitlines()
    assert [Path(place).is_relative_to(environment) for place in places] == [True, True]
    said = {}
    for command, lines in SCREENS:
        done = run(environment, tmp_path, *shlex.split(command))
        if benchmark.enabled:
            print(f"\n$ {command}\n{done.stdout}", end="")
        assert masked(done.stdout.splitlines()) == masked(lines)
        said[command.split()[1]] = done.stderr
    assert "calls of the batch have been answered, and are not sent again" in said["batch"]
    completions = read_completions(tmp_path / "questions.out.jsonl")
    assert list(completions) == list(texts)
    written = Counter[str]()
    for call in pq.read_table(tmp_path / "questions.mosaic" / "calls.parquet").to_pylist():
        written[call["question"]] += call["output_tokens"]
    assert {name: completion.usage.completion_tokens for name, completion in completions.items()} == written


def run(environment: Path, folder: Path, command: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of an environment, away from the checkout."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(environment / "bin" / command), *words],
        cwd=folder, env=clean, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done

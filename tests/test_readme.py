"""The READMEs and the pages of docs/: every example runs as it stands, and what they list is what is there."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from mosaic.commands.app import app
from mosaic.config import errors
from mosaic.config.compose import CONF
from tests.readme_blocks import PAGES, ROOT, Block, Walk, blocks_of, commands_of, compose_arguments, run_arguments

TYPER = get_command(app)
BLOCKS = [(path, block) for path in PAGES for block in blocks_of(path)]
LONG = [block for _, block in BLOCKS if block.marker == "slow"]
UNMARKED = [block for _, block in BLOCKS if block.language == "sh" and not block.marker]
ADDITIONS = {"scheduler": 2, "rule": 2, "engine-option": 2, "pipelines": 1, "own-gpu": 1}
"""Files that a new thing takes, by the page that shows it before its first section."""
HOW_TO = ROOT / "docs" / "how-to"
MOST_LINES = 150
"""Of README.md."""
MOST_EXAMPLE_LINES = 60
"""Of a file or a command that a reader is to copy."""


def name_of(item: object) -> str:
    return str(item.relative_to(ROOT)) if isinstance(item, Path) else item.at if isinstance(item, Block) else str(item)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture
def walk(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield Walk(tmp_path, store)
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=name_of(path)) for path in PAGES if any(b.marker == "run" for b in blocks_of(path))],
)
def test_examples_run(walk: Walk, path: Path) -> None:
    for block in blocks_of(path):
        if block.marker in ("run", "prints"):
            walk.do(block)


@pytest.mark.slow
@pytest.mark.parametrize("block", LONG, ids=name_of)
def test_long_examples_run(walk: Walk, block: Block) -> None:
    walk.do(block)


@pytest.mark.parametrize("block", UNMARKED, ids=name_of)
def test_commands_that_need_more_compose(block: Block, tmp_path: Path) -> None:
    for command in commands_of(block.text):
        for script in re.findall(r"experiments/\w+\.py", command):
            assert (ROOT / script).exists()
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        if words[:1] == ["mosaic"] and words[1] != "run":
            TYPER.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]
        arguments = run_arguments(command)
        if arguments is not None:
            compose_arguments([item for item in arguments if item != "-m"], tmp_path)


@pytest.mark.parametrize("block", [block for _, block in BLOCKS if block.language == "diff"], ids=name_of)
def test_changes_fit_the_files_that_they_change(block: Block) -> None:
    subprocess.run(["git", "apply", "--check", "-"], input=block.text, text=True, cwd=ROOT, check=True)


def test_markers_are_known() -> None:
    markers = {"sh": {"", "ci", "run", "slow"}, "python": {"run"}, "yaml": {"run"}, "diff": {"run"}, "text": {"prints"}}
    for path, block in BLOCKS:
        assert block.marker in markers[block.language], block.at
        assert block.marker != "ci" or path == ROOT / "README.md", f"{block.at}: .ci/run reads README.md alone"


@pytest.mark.slow
def test_the_screen_shown_is_the_default_run(walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    walk.do(Block("sh", "run", "python experiments/run.py scheduler=ilp backend=sim\n", "default"))
    shown = re.search(r"^    ilp on .*?^(?! |$)", (HOW_TO / "run-folder.md").read_text(), re.M | re.S)
    assert shown is not None
    printed = {line.strip() for line in capsys.readouterr().out.splitlines()}
    lines = [line.strip() for line in shown[0].splitlines() if line.strip() not in ("", "...")]
    assert len(lines) >= 7
    assert set(lines) <= printed


def files_written(block: Block) -> set[str]:
    """Find the files that a block writes or changes."""
    if block.language == "diff":
        return set(re.findall(r"^\+\+\+ b/(\S+)", block.text, re.M))
    if block.language == "sh":
        return set(re.findall(r"> (\S+)", block.text))
    return {named[1] if (named := re.match(r"# (\S+\.\w+)\n", block.text)) else block.at}


@pytest.mark.parametrize("name", ADDITIONS)
def test_a_new_thing_takes_few_files_and_its_example_runs(name: str) -> None:
    path = HOW_TO / f"{name}.md"
    num_lines = path.read_text(encoding="utf-8").partition("\n## ")[0].count("\n")
    blocks = [block for block in blocks_of(path) if int(block.at.rpartition(":")[2]) <= num_lines]
    assert {"run"} <= {block.marker for block in blocks} <= {"", "run"}
    assert len(set().union(*map(files_written, blocks))) == ADDITIONS[name]


def test_the_first_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_examples_stay_short() -> None:
    for _, block in BLOCKS:
        if block.language in ("sh", "yaml") or block.text.startswith("# "):
            assert len(block.text.splitlines()) <= MOST_EXAMPLE_LINES, block.at


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target, _, heading in re.findall(r"\]\(([^)#]+)(#([^)]*))?\)", path.read_text()):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target
            assert not heading or heading in headings(path.parent / target), f"{target}#{heading}"


def headings(path: Path) -> set[str]:
    """List the anchors of a file as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_exit_status_is_listed() -> None:
    rows = re.findall(r"^\| (\d+) \| ", (HOW_TO / "exit-statuses.md").read_text(), re.M)
    known = [value for name, value in vars(errors).items() if name.endswith("_STATUS")]
    assert list(map(int, rows)) == [0, *known]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_words_are_explained_before_they_are_used(path: Path) -> None:
    text = path.read_text()
    explained = text.index("## Words" if path == ROOT / "docs" / "concepts.md" else "#words") if uses(text) else 0
    assert not uses(text[:explained])


def uses(text: str) -> list[str]:
    """List the words of a text that the concepts explain and that cannot be guessed."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.findall(r"(?<![\w.`=])(?:tau|K|[Rr]eplica caps?)\b", prose)


def test_every_group_is_listed() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", (CONF / "README.md").read_text(), re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {path.name for path in CONF.iterdir() if path.is_dir()}

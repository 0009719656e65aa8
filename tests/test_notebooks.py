"""The notebooks run as they stand, and show what they print: a page on the web is never stale."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tests.notebook_runs import NOTEBOOKS, execute
from tests.test_architecture import GATED_WALLS, MUST_BE_PREDICTED, numbers_in_text
from tests.test_words import MAX_WORDS, prose_of, sentences_of

REFRESH = "if that is right, run `python -m tests.notebook_runs` and commit the notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def shown(cell: Any) -> list[tuple[str, str]]:
    """List what a cell shows, images by their presence only."""
    items = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            items.append((output.name, output.text))
        elif output.output_type == "error":
            items.append(("error", output.ename))
        else:
            items += [(kind, "" if kind.startswith("image/") else text) for kind, text in sorted(output.data.items())]
    return items


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"tour", "engine_model", "reproduction"}


@pytest.mark.slow
@BY_NAME
def test_a_notebook_runs_without_warnings_and_shows_what_it_shows_here(path: Path, tmp_path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    executed = execute(path, tmp_path)
    for before, after in zip(committed.cells, executed.cells, strict=True):
        place = f"{path.name}, cell {after.id!r}"
        kinds = [kind for kind, _ in shown(after)]
        assert not {"stderr", "error"} & set(kinds), f"{place} warns: {shown(after)}"
        assert shown(before) == shown(after), f"{place} shows something else than the committed notebook; {REFRESH}"


@BY_NAME
def test_a_committed_notebook_holds_nothing_of_the_machine_or_the_moment(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == METADATA
    assert [cell.metadata for cell in notebook.cells] == [{}] * len(notebook.cells), REFRESH
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), REFRESH
    texts = [text for cell in notebook.cells for _, text in shown(cell)]
    assert [text for text in texts if re.search(r"(?<![\w.])/(home|root|tmp|usr|work|opt|var|Users)/", text)] == []


@BY_NAME
def test_no_published_prediction_is_typed_into_a_notebook(path: Path) -> None:
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    assert [numbers_in_text(source) & (MUST_BE_PREDICTED | GATED_WALLS) for source in sources] == [set()] * len(sources)


@BY_NAME
def test_links_lead_to_files_of_the_repository(path: Path) -> None:
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)]+)\)", "\n".join(texts))
    assert links
    assert [link for link in links if not link.startswith("https://") and not (path.parent / link).is_file()] == []


@BY_NAME
def test_sentences_are_short(path: Path) -> None:
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    sentences = [one for text in texts for part in prose_of(text) for one in sentences_of(part)]
    assert [one for one in sentences if len(one.split()) > MAX_WORDS] == []


@pytest.mark.slow
def test_a_warning_ends_a_notebook_and_stderr_is_seen(tmp_path: Path) -> None:
    def notebook_of(source: str) -> Path:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=METADATA)
        nbformat.write(notebook, tmp_path / "one.ipynb")
        return tmp_path / "one.ipynb"

    loud = execute(notebook_of("import sys\nprint('hush', file=sys.stderr)"), tmp_path)
    assert shown(loud.cells[0]) == [("stderr", "hush\n")]
    with pytest.raises(CellExecutionError, match="UserWarning"):
        execute(notebook_of("import warnings\nwarnings.warn('beware')"), tmp_path)

"""The pages of docs/, READMEs and results: short enough to read, and a site without warnings or dead links."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from mosaic.config.compose import CONF
from tests.readme_blocks import PAGES, ROOT

GATEWAYS = {
    "a batch": {"README.md": "mosaic batch questions.jsonl --models A,B,C"},
    "an answer of an API": {"README.md": "mosaic batch questions.jsonl --server"},
    "a batch, on the site": {"docs/index.md": "", "docs/how-to/batch.md": "mosaic batch"},
    "an answer of an API, on the site": {"docs/index.md": "", "docs/how-to/api.md": "mosaic batch"},
}
"""Pages that a newcomer reads before something, and the command that ends each; empty: the whole page."""
MOST_WORDS_BEFORE = 250
RESULTS = sorted(ROOT.glob("results/*/*.md"))
MOST_WORDS = 1500
"""Of a page: of all its text without fenced blocks; of a page of results, whose tables are data, without tables too."""


def without_blocks(text: str) -> str:
    """Leave what a reader reads: no fenced blocks, no comments, no targets of links."""
    text = re.sub(r"^(```+|:::+).*?^\1$|<!--.*?-->", "", text, flags=re.M | re.S)
    return re.sub(r"\]\([^)]*\)", "]", text)


def num_words(text: str) -> int:
    """Count words: whatever stands between blanks and holds a letter or a digit."""
    return sum(re.search(r"\w", word) is not None for word in text.split())


@pytest.mark.parametrize(
    "path",
    [*PAGES, *RESULTS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_pages_are_short(path: Path) -> None:
    text = without_blocks(path.read_text(encoding="utf-8"))
    if path in RESULTS:
        text = re.sub(r"^\|.*$", "", text, flags=re.M)
    assert num_words(text) <= MOST_WORDS


@pytest.mark.parametrize("folder", ["how-to", "reference", "background"])
def test_a_folder_s_first_page_links_all_others(folder: str) -> None:
    index = ROOT / "docs" / folder / "index.md"
    linked = re.findall(r"\]\((.*?\.md)\)", index.read_text(encoding="utf-8"))
    assert {path.name for path in index.parent.glob("*.md")} - {"index.md"} <= set(linked)


def test_the_reference_has_every_group() -> None:
    pages = (ROOT / "docs" / "reference").glob("keys-*.md")
    named = [
        name
        for page in pages
        for line in re.findall(r"^:::\{keys\} (.*)$", page.read_text(), re.M)
        for name in line.split()
    ]
    assert sorted(named) == sorted(["run", *(folder.name for folder in CONF.iterdir() if folder.is_dir())])


@pytest.mark.parametrize("what", GATEWAYS)
def test_few_words_stand_before_the_first_command(what: str) -> None:
    read = ""
    for name, command in GATEWAYS[what].items():
        page = (ROOT / name).read_text(encoding="utf-8")
        (before, *_) = (
            re.split(rf"^```sh\w*\n(?:(?!```).*\n)*?{re.escape(command)}", page, flags=re.M) if command else (page,)
        )
        assert before != page or not command, f"{name} does not show {command}"
        read += without_blocks(before)
    assert num_words(read) <= MOST_WORDS_BEFORE


class Page(HTMLParser):
    """A built page: its anchors, what it links to, and its words outside of blocks."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: list[str] = []
        self.num_words = 0
        self._is_read: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_data(self, data: str) -> None:
        self.num_words += num_words(data) if self._is_read == ["article"] else 0

    def handle_endtag(self, tag: str) -> None:
        if self._is_read[-1:] == [tag]:
            self._is_read.pop()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article" or (self._is_read and tag == "pre"):
            self._is_read.append(tag)
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name in ("href", "src") and tag != "link":
                self.links.append(value or "")


def dead_links(site: Path, pages: Mapping[Path, Page]) -> Iterator[str]:
    """List links of a built site that lead to no file or no anchor of it; other hosts are not visited."""
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {""}
            if not target.exists() or (target in pages and unquote(parts.fragment) not in anchors):
                yield f"{path.relative_to(site)}: {link}"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("myst_nb") is None, reason="the extra docs is not installed")
def test_the_site_is_built_without_warnings_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(tmp_path / "site")]
    done = subprocess.run([*command, "-d", str(tmp_path / "doctrees")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path: Page(path) for path in (tmp_path / "site").rglob("*.html")}
    assert list(dead_links(tmp_path / "site", pages)) == []
    long = {path.stem: page.num_words for path, page in pages.items() if "docs" in path.parts}
    assert {name: number for name, number in long.items() if number > MOST_WORDS} == {}

"""The pages of docs/, READMEs and results: short enough to read, and a site without warnings or dead links."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.readme_blocks import PAGES, ROOT

RESULTS = sorted(ROOT.glob("results/*/*.md"))
MOST_WORDS = 1500
"""Of a page: of all its text without fenced blocks; of a page of results, whose tables are data, without tables too."""


def text_of(path: Path) -> str:
    """Return what a reader reads of a page: no fenced blocks, no comments, no targets of links."""
    text = path.read_text(encoding="utf-8")
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
    text = text_of(path)
    if path in RESULTS:
        text = re.sub(r"^\|.*$", "", text, flags=re.M)
    assert num_words(text) <= MOST_WORDS


class Page(HTMLParser):
    """A built page: its anchors, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name in ("href", "src") and tag != "link":
                self.links.append(value or "")


def dead_links(site: Path) -> Iterator[str]:
    """List links of a built site that lead to no file or no anchor of it; other hosts are not visited."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
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
    assert list(dead_links(tmp_path / "site")) == []

"""Plain English: words that readers stumble over stand nowhere, and sentences of the documentation are short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/**/*.md")])
SOURCES = sorted(
    path
    for folder in ("mosaic", "sim", "experiments", "conf", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".yaml"}
)
MAX_WORDS = 25
"""In a sentence of a page."""
STUMBLES = {
    "asked": "sent, called, requested or answered",
    "luck": "seed or draws",
    "told": "reported or known",
    "hears": "receives",
    "news": "a change",
    "lesson": "training example",
    "lessons": "training examples or calibration run",
    "nobody": "no call, no node, none",
    "everybody": "all",
    "as far as": "the part that",
    "as ever": "as before",
    "in silence": "silently",
    "what became of": "the outcome of",
    "looked at": "read, checked or used",
    "takes note": "records",
    "come behind": "follow",
    "wherever they wait or run": "(leave out)",
}
"""Words, and what says the same plainly."""
QUOTED = {"mosaic/pipelines/aggregation.py": "Several models were asked the question below"}
"""Words of a prompt: models were trained or measured with them."""
_STUMBLE = re.compile(r"\b(" + "|".join(STUMBLES) + r")\b", re.IGNORECASE)
_NO_PROSE = re.compile(r"^\s*(\||#|>|:::|---|- \[|\(|    )")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose_of(page: str) -> list[str]:
    """List the paragraphs of a page: without code, tables, headings and figures."""
    text = re.sub(r"^(```|~~~|:::).*?^\1", "\n", page, flags=re.MULTILINE | re.DOTALL)
    lines = ["" if _NO_PROSE.match(line) else line for line in text.splitlines()]
    return [
        " ".join(part.split())
        for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
        if part.strip()
    ]


def sentences_of(paragraph: str) -> list[str]:
    text = re.sub(r"`[^`]*`", "CODE", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph))
    return re.split(r"(?<=[.!?:;])\s+", text)


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=name_of)
def test_words_that_readers_stumble_over_are_nowhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(QUOTED.get(name_of(path), "\0"), "")
    found = [
        f"line {number}: {match[0]!r}; say {STUMBLES[match[0].lower()]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for match in _STUMBLE.finditer(line)
    ]
    assert not found, f"{name_of(path)}: " + "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_sentences_of_the_documentation_are_short(path: Path) -> None:
    sentences = [one for part in prose_of(path.read_text(encoding="utf-8")) for one in sentences_of(part)]
    found = [one for one in sentences if len(one.split()) > MAX_WORDS]
    assert not found, f"{name_of(path)}: more than {MAX_WORDS} words in\n" + "\n".join(found)


def test_a_long_sentence_and_a_word_are_found() -> None:
    page = (
        "# A title of some words\n\n"
        + "word " * 26
        + ".\n\n| a table "
        + "x " * 40
        + "|\n\n```sh\n"
        + "echo " * 40
        + "\n```\n"
    )
    assert [len(one.split()) for part in prose_of(page) for one in sentences_of(part)] == [27]
    assert _STUMBLE.findall("Who is Asked? As far as I know.") == ["Asked", "As far as"]

"""Plain English: words that readers stumble over stand nowhere, and sentences of the documentation are short."""

import ast
import re
from collections.abc import Iterator
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
CODE = [path for path in SOURCES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in ("mosaic", "sim")]
MAX_WORDS = 25
"""In a sentence of a page, or of a docstring."""
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
    "whoever": "the caller, the user or the process",
    "whom": "the user, the server or the process",
    "somebody": "the user, a caller or another process",
    "anybody": "any user, caller or process",
    "for ever": "forever",
    "sit out": "skip",
    "sits out": "skips",
    "made up their minds": "decided",
    "let go of": "release or drop",
    "as it stands": "unchanged",
    "whatever happens": "in every case",
    "what came of": "the outcome of",
    "is no matter": "does not matter",
    "under way": "in progress or running",
    "in its hands": "in progress",
    "nothing to say": "ignored",
    "takes its time": "is slow",
    "all the same": "nevertheless",
    "stands still": "does not advance",
    "stood still": "did not advance",
    "at the expense of": "evicting",
    "in the place of": "instead of",
    "told apart": "distinguished",
    "hands out": "distributes",
}
"""Words, and what says the same plainly."""
QUOTED = {"mosaic/pipelines/aggregation.py": "Several models were asked the question below"}
"""Words of a prompt: models were trained or measured with them."""
_STUMBLE = re.compile(r"\b(" + "|".join(STUMBLES) + r")\b", re.IGNORECASE)
_SECTION = re.compile(r"^ *[A-Z][a-z]+\n *-{4,}$", re.MULTILINE)
"""The head of a section of numpydoc."""
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


def docstrings_of(source: str) -> Iterator[tuple[int, str]]:
    """List the docstrings of a module with their lines: those of fields too."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for one in body if isinstance(body, list) else []:
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                yield one.lineno, one.value.value


def prose_of_docstring(text: str) -> list[str]:
    """List the paragraphs of a docstring before its numpydoc sections: without formulas, examples and lists."""
    first, *rest = (text[: found.start()] if (found := _SECTION.search(text)) else text).splitlines() or [""]
    indents = [len(line) - len(line.lstrip()) for line in rest]
    left = min((indent for indent, line in zip(indents, rest, strict=True) if line.strip()), default=0)
    lines = [first, *(line if indent == left else "" for indent, line in zip(indents, rest, strict=True))]
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]


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


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_sentences_of_docstrings_are_short(path: Path) -> None:
    found = [
        f"line {number}: {one}"
        for number, text in docstrings_of(path.read_text(encoding="utf-8"))
        for part in prose_of_docstring(text)
        for one in sentences_of(part)
        if len(one.split()) > MAX_WORDS
    ]
    assert not found, f"{name_of(path)}: more than {MAX_WORDS} words in\n" + "\n".join(found)


def test_a_long_sentence_of_a_docstring_is_found_and_a_formula_is_not() -> None:
    long = "word " * 26
    source = f'''def f():
    """Do it.

    {long}

        {long}

    Parameters
    ----------
    x
        {long}
    """
    y = 1
    """{long}"""
'''
    lengths = [
        len(one.split())
        for _, text in docstrings_of(source)
        for part in prose_of_docstring(text)
        for one in sentences_of(part)
    ]
    assert lengths == [2, 26, 26]


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

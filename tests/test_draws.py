"""Examples of property tests depend on the test alone."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def draws() -> list[tuple[list[int], str]]:
    """The examples of a property, drawn as those of every test."""
    found = []

    @settings(max_examples=200, derandomize=True)
    @given(st.lists(st.integers()), st.text())
    def look(numbers, text):
        found.append((numbers, text))

    look()
    return found


def test_examples_are_the_same_whatever_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = draws()
    source = [f"NUMBER_{n} = {1_000 + n}\nTEXT_{n} = 'some text {n}'\n" for n in range(100)]
    (tmp_path / "full_of_constants.py").write_text("".join(source), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("full_of_constants")
    after = draws()
    del sys.modules["full_of_constants"]
    assert len(before) == 200
    assert after == before

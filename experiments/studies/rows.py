"""Tables of text, for a page and for a program."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

Table = Sequence[Sequence[str]]
"""Rows of cells, the head first."""


def to_markdown(table: Table) -> str:
    """Write a table for a page."""
    head, *lines = table
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def to_csv(table: Iterable[Sequence[object]]) -> str:
    """Write a table for a program; missing is empty."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in table)
    return text.getvalue()


def read_csv(path: Path) -> Table:
    """Read a table that a command has written."""
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]

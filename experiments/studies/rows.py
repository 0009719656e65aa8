"""Rows of studies: named tuples or dataclasses, to tables and back."""

import csv
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import msgspec

Row = TypeVar("Row")


def rows_csv(kind: type[Row], rows: Iterable[Row]) -> str:
    """Write rows of one kind as a table."""
    names = _names(kind)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read what `rows_csv` wrote; there is no file: no rows.

    Raises
    ------
    ValueError
        If the table is of other rows.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    if head != _names(kind):
        raise ValueError(f"{path}: columns must be {', '.join(_names(kind))}, got {', '.join(head)}")
    cells: list[Any] = [dict(zip(head, line, strict=True)) if is_dataclass(kind) else line for line in lines]
    return msgspec.convert(cells, list[kind], strict=False)  # type: ignore[valid-type]


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)] if is_dataclass(kind) else list(kind._fields)  # type: ignore[attr-defined]

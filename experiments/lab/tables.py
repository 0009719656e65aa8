"""Rows of studies: to CSV files and back, beside their baselines, as means, and laid out in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic.comparison.estimate import estimate
from mosaic.report.run_folder import write_file

if TYPE_CHECKING:
    import polars as pl

BASE = "_base"
"""Ending of the columns that `beside` adds."""


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append the rows of a measurement to a CSV file, all or none; the first ones bring the header."""
    import polars as pl

    kept = path.read_bytes() if path.exists() else b""
    added = pl.DataFrame(rows, infer_schema_length=None).write_csv(include_header=not kept)
    write_file(path.parent, path.name, kept + added.encode())


def write_table(path: Path, table: "pl.DataFrame") -> None:
    """Replace a CSV file in one step."""
    write_file(path.parent, path.name, table.write_csv().encode())


def read_table(path: Path, keys: "Mapping[str, pl.DataType]") -> "pl.DataFrame | None":
    """Read a CSV file whose first columns have these types; None: there is none.

    Raises
    ------
    ValueError
        If the first columns are not ``keys``.
    """
    import polars as pl

    if not path.is_file():
        return None
    table = pl.read_csv(path, infer_schema_length=None, schema_overrides=keys)
    found = table.columns[: len(keys)]
    if found != list(keys):
        raise ValueError(f"{path}: first columns must be {', '.join(keys)}, got {', '.join(found)}")
    return table


def beside(table: "pl.DataFrame", baseline: "pl.Expr", by: Sequence[str]) -> "pl.DataFrame":
    """Join to each row the baseline's row with the same seed; its columns end in ``_base``.

    Parameters
    ----------
    table
        Rows of a sweep.
    baseline
        Selects the baseline's rows.
    by
        Labels in which a row and its baseline agree. Rows without a partner are left out.
    """
    import polars as pl

    keys = [*by, "seed"]
    base = table.filter(baseline).select(*keys, pl.exclude(keys).name.suffix(BASE))
    return table.join(base, on=keys, maintain_order="left")


def means(table: "pl.DataFrame", by: Sequence[str], **values: "pl.Expr") -> list[dict[str, Any]]:
    """Average over seeds: a row for each value of ``by``, in the order of the table, with an `Estimate` a value.

    A value that no row has is None.
    """
    grouped = table.group_by(by, maintain_order=True).agg(
        **{name: value.drop_nulls() for name, value in values.items()}
    )
    return [
        {name: cell if name in by else estimate(cell) if cell else None for name, cell in row.items()}
        for row in grouped.to_dicts()
    ]


def wide(
    rows: Iterable[Mapping[str, Any]],
    index: Sequence[str],
    columns: str,
    cell: str,
    cells: Mapping[Any, str] | None = None,
    order: Sequence[Any] = (),
) -> list[dict[str, Any]]:
    """Lay rows out with a column for each value of ``columns``.

    Parameters
    ----------
    rows
        As `means` makes them.
    index
        Columns that name a line.
    columns
        Column whose values become columns.
    cell
        Format string of a cell; its fields are the row's columns.
    cells
        Format strings of single columns, by value.
    order
        Values in the order of their columns; none given: as they come.

    Examples
    --------
    >>> rows = [{"gpus": 2, "name": "ilp", "s": 1.25}, {"gpus": 2, "name": "fifo", "s": 2.0}]
    >>> wide(rows, ["gpus"], "name", "{s:.1f}")
    [{'gpus': 2, 'ilp': '1.2', 'fifo': '2.0'}]
    """
    rows = list(rows)
    names = dict.fromkeys(order or (row[columns] for row in rows), "")
    laid: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in index)
        line = laid.setdefault(key, dict(zip(index, key, strict=True)) | names)
        line[row[columns]] = (cells or {}).get(row[columns], cell).format(**row)
    return list(laid.values())


def lay_out(rows: Iterable[Mapping[str, Any]], cells: Mapping[str, str]) -> list[dict[str, str]]:
    """Lay rows out with a column for each format string, under its head; its fields are the row's columns.

    Examples
    --------
    >>> lay_out([{"gpus": 2, "taken_s": 1.25}], {"GPUs": "{gpus}", "time (s)": "{taken_s:.1f}"})
    [{'GPUs': '2', 'time (s)': '1.2'}]
    """
    return [{head: cell.format(**row) for head, cell in cells.items()} for row in rows]


def markdown(rows: Sequence[Mapping[str, Any]], heads: Mapping[str, str] | None = None) -> str:
    """Write a table; ``heads`` are the words above columns whose own names are not what a reader knows.

    Examples
    --------
    >>> print(markdown([{"gpus": 2, "ilp": "1.2"}], {"gpus": "GPUs"}))
    | GPUs | ilp |
    | --- | --- |
    | 2 | 1.2 |
    """
    named = heads or {}
    lines = [[named.get(name, name) for name in rows[0]], ["---" for _ in rows[0]]]
    lines += [["" if value is None else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Reads calls.parquet and sessions.parquet of a run folder, of this shape and of the one before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic.core.errors import RunFolderError
from mosaic.core.results import SESSION_COLUMNS, CallRecord, CallStatus, SessionRecord
from mosaic.core.workload import CallKey

if TYPE_CHECKING:
    import polars as pl

CALLS, SESSIONS, ANSWERS = "calls.parquet", "sessions.parquet", "answers.parquet"


def read_table(path: Path, columns: Sequence[str]) -> "pl.DataFrame":
    """Read some columns; ``node`` is named ``role`` in older folders.

    Raises
    ------
    RunFolderError
        If the file cannot be read or lacks a column.
    """
    import polars as pl

    try:
        table = pl.read_parquet(path)
        if "node" not in table.columns and "role" in table.columns:
            table = table.with_columns(node="role")
        return table.select(columns)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error})") from error


def read_sessions(folder: Path) -> tuple[SessionRecord, ...]:
    """Read all sessions of a run, those of every node."""
    rows = read_table(folder / SESSIONS, [*SESSION_COLUMNS]).iter_rows(named=True)
    return tuple(SessionRecord(**{**row, "workers": tuple(row["workers"])}) for row in rows)


def read_calls(folder: Path) -> tuple[CallRecord, ...]:
    """Read all calls of a run, without what real engines said."""
    names = [name for name in CallRecord._fields if name not in ("key", "response", "confidence")]
    rows = read_table(folder / CALLS, ["question", "node", "slot", *names]).iter_rows(named=True)
    try:
        return tuple(
            CallRecord(
                key=CallKey(row["question"], row["node"], row["slot"]),
                **{name: row[name] for name in names}
                | {"status": CallStatus(row["status"]), "workers": tuple(row["workers"])},
            )
            for row in rows
        )
    except ValueError as error:
        raise RunFolderError(f"{folder / CALLS}: cannot be read as the calls of a run ({error})") from error

"""Writes and reads calls.parquet, sessions.parquet and answers.parquet, column by column.

pyarrow is imported inside the functions: a plan or an error message must not wait for it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mosaic.core.errors import RunFolderError
from mosaic.core.plan import LengthPrediction
from mosaic.core.results import SESSION_COLUMNS, CallRecord, CallStatus, SessionRecord
from mosaic.core.workload import CallKey, ExpertName, NodeName
from mosaic.pipelines.final_answers import FinalAnswer
from mosaic.report.metrics import session_output_tok_per_s

if TYPE_CHECKING:
    import pyarrow as pa

CALLS = """
    question string, node string, role string, slot int32, expert string, session int32, workers int32[],
    prompt_tokens int64, predicted_output_tokens float64?, output_tokens int64, queued_ts float64, admitted_ts float64?,
    first_token_ts float64?, finished_ts float64?, num_preemptions int32, attempt int32, cached_tokens int64,
    wasted_tokens int64, status string, answer string?, visible_tokens int64?
"""
SESSIONS = """
    session int32, expert string, node string, workers int32[], load_start_ts float64, load_s float64, start_ts float64,
    end_ts float64, num_calls int32, output_tokens int64, output_tok_per_s float64?
"""
ANSWERS = (
    "question string, answer string?, source string, confidence float64?, votes string[], gold string?, correct bool?"
)
"""Columns with their types; ? marks those that may be null, [] lists."""
BLOCK_ROWS = 1 << 16
_Row = TypeVar("_Row")


def calls_parquet(
    records: Sequence[CallRecord],
    lengths: Mapping[NodeName, Mapping[ExpertName, LengthPrediction]],
    roles: Mapping[NodeName, str] | None = None,
) -> bytes:
    """Encode calls.parquet: one row per record, in the order of the result.

    The plans' predicted lengths, by node, give predicted_output_tokens: the expert's mean, null without a prediction. A
    role is a node's label, or without one the node's name.
    """
    predicted = {(node, name): length.mean for node, by_name in lengths.items() for name, length in by_name.items()}

    def columns(block: Sequence[CallRecord]) -> dict[str, Iterable[Any]]:
        values = _columns(block, CallRecord.__struct_fields__)
        questions, nodes, slots = list(zip(*values["key"], strict=True)) or ((), (), ())
        return values | {
            "question": questions,
            "node": nodes,
            "role": [(roles or {}).get(node, node) for node in nodes],
            "slot": slots,
            "predicted_output_tokens": [predicted.get(key) for key in zip(nodes, values["expert"], strict=True)],
            "status": [status.value for status in values["status"]],
        }

    return _encode(records, columns, CALLS)


def sessions_parquet(sessions: Sequence[SessionRecord]) -> bytes:
    """Encode sessions.parquet: one row per session, in the order of the result."""

    def columns(block: Sequence[SessionRecord]) -> Mapping[str, Iterable[Any]]:
        return _columns(block, SESSION_COLUMNS) | {
            "output_tok_per_s": [session_output_tok_per_s(session) for session in block]
        }

    return _encode(sessions, columns, SESSIONS)


def read_calls(folder: Path) -> tuple[CallRecord, ...]:
    """Read the records of calls.parquet.

    Raises
    ------
    RunFolderError
        If it cannot be read.
    """
    names = [name for name in CallRecord.__struct_fields__ if name not in ("key", "response", "confidence")]
    return tuple(
        CallRecord(
            key=CallKey(row["question"], row["node"], row["slot"]),
            **{name: row[name] for name in names}
            | {"workers": tuple(row["workers"]), "status": CallStatus(row["status"])},
        )
        for row in _rows(folder / "calls.parquet", CALLS)
    )


def read_sessions(folder: Path) -> tuple[SessionRecord, ...]:
    """Read the records of sessions.parquet.

    Raises
    ------
    RunFolderError
        If it cannot be read.
    """
    rows = _rows(folder / "sessions.parquet", SESSIONS)
    return tuple(
        SessionRecord(**{name: row[name] for name in SESSION_COLUMNS} | {"workers": tuple(row["workers"])})
        for row in rows
    )


def answers_parquet(answers: Sequence[FinalAnswer]) -> bytes:
    """Encode answers.parquet: one row per question, in the order of the workload."""

    def columns(block: Sequence[FinalAnswer]) -> dict[str, Iterable[Any]]:
        values = _columns(block, FinalAnswer.__struct_fields__)
        return values | {"source": [source.value for source in values["source"]]}

    return _encode(answers, columns, ANSWERS)


def _columns(rows: Sequence[object], names: Iterable[str]) -> dict[str, Iterable[Any]]:
    """Turn rows into columns of these fields."""
    return {name: list(map(attrgetter(name), rows)) for name in names}


def _schema(columns: str) -> "pa.Schema":
    """Read columns with their types.

    Examples
    --------
    >>> _schema("votes string[], correct bool?")
    votes: list<item: string> not null
      child 0, item: string
    correct: bool
    """
    import pyarrow as pa

    fields = []
    for column in columns.split(","):
        name, kind = column.split()
        plain = kind.rstrip("?")
        item = pa.type_for_alias(plain.removesuffix("[]"))
        fields.append(pa.field(name, pa.list_(item) if plain.endswith("[]") else item, nullable=kind.endswith("?")))
    return pa.schema(fields)


def _rows(path: Path, columns: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).cast(_schema(columns)).to_pylist()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return rows


def _encode(
    rows: Sequence[_Row], columns: Callable[[Sequence[_Row]], Mapping[str, Iterable[Any]]], kinds: str
) -> bytes:
    """Encode rows in blocks, each a row group: columns of all rows would take as much memory as the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, sink = _schema(kinds), pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as writer:
        for start in range(0, max(1, len(rows)), BLOCK_ROWS):
            values = columns(rows[start : start + BLOCK_ROWS])
            arrays = [pa.array(values[field.name], type=field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return bytes(sink.getvalue())

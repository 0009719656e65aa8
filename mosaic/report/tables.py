"""calls.parquet, sessions.parquet and answers.parquet: their columns, written column by column.

pyarrow is imported inside the functions: a plan or an error message must not wait for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic.core.errors import RunFolderError
from mosaic.core.plan import LengthPrediction
from mosaic.core.results import SESSION_COLUMNS, CallRecord, SessionRecord
from mosaic.core.workload import ExpertName, NodeName
from mosaic.pipelines.final_answers import FinalAnswer
from mosaic.report.metrics import session_output_tok_per_s

if TYPE_CHECKING:
    import pyarrow as pa


def calls_parquet(
    records: Sequence[CallRecord],
    lengths: Mapping[NodeName, Mapping[ExpertName, LengthPrediction]],
    roles: Mapping[NodeName, str] | None = None,
) -> bytes:
    """Encode calls.parquet: one row per record, in the order of the result.

    The plans' predicted lengths, by node, give predicted_output_tokens: the expert's mean, null without a prediction.
    A role is a node's label; without one it is the node's name.
    """
    predicted = {(node, name): length.mean for node, by_name in lengths.items() for name, length in by_name.items()}
    columns = list(zip(*records, strict=True)) or [()] * len(CallRecord._fields)
    values: dict[str, Iterable[Any]] = dict(zip(CallRecord._fields, columns, strict=True))
    values.pop("response")
    values.pop("confidence")
    keys = values.pop("key")
    questions, nodes, slots = list(zip(*keys, strict=True)) or ((), (), ())
    values |= {
        "question": questions,
        "node": nodes,
        "role": [(roles or {}).get(node, node) for node in nodes],
        "slot": slots,
        "predicted_output_tokens": [predicted.get(key) for key in zip(nodes, values["expert"], strict=True)],
        "status": [status.value for status in values["status"]],
    }
    return _encode(values, _calls_schema())


def sessions_parquet(sessions: Sequence[SessionRecord]) -> bytes:
    """Encode sessions.parquet: one row per session, in the order of the result."""
    values: dict[str, Iterable[Any]] = {
        name: [getattr(session, name) for session in sessions] for name in SESSION_COLUMNS
    }
    values["output_tok_per_s"] = [session_output_tok_per_s(session) for session in sessions]
    return _encode(values, _sessions_schema())


def answers_parquet(answers: Sequence[FinalAnswer]) -> bytes:
    """Encode answers.parquet: one row per question, in the order of the workload."""
    columns = list(zip(*answers, strict=True)) or [()] * len(FinalAnswer._fields)
    values: dict[str, Iterable[Any]] = dict(zip(FinalAnswer._fields, columns, strict=True))
    values["source"] = [source.value for source in values["source"]]
    return _encode(values, _answers_schema())


def read_sessions(path: str | Path) -> tuple[SessionRecord, ...]:
    """Read sessions.parquet back.

    Raises
    ------
    RunFolderError
        If the file cannot be read or a column is missing.
    """
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=[*SESSION_COLUMNS]).to_pylist()
    except (OSError, ValueError) as error:  # NOTE: pyarrow's own errors derive from these two
        raise RunFolderError(f"{path}: cannot be read ({error})") from error
    return tuple(SessionRecord(**{**row, "workers": tuple(row["workers"])}) for row in rows)


def _calls_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("question", pa.string(), nullable=False),
            pa.field("node", pa.string(), nullable=False),
            pa.field("role", pa.string(), nullable=False),
            pa.field("slot", pa.int32(), nullable=False),
            pa.field("expert", pa.string(), nullable=False),
            pa.field("session", pa.int32(), nullable=False),
            pa.field("workers", pa.list_(pa.int32()), nullable=False),
            pa.field("prompt_tokens", pa.int64(), nullable=False),
            pa.field("predicted_output_tokens", pa.float64()),
            pa.field("output_tokens", pa.int64(), nullable=False),
            pa.field("queued_ts", pa.float64(), nullable=False),
            pa.field("admitted_ts", pa.float64()),
            pa.field("first_token_ts", pa.float64()),
            pa.field("finished_ts", pa.float64()),
            pa.field("num_preemptions", pa.int32(), nullable=False),
            pa.field("attempt", pa.int32(), nullable=False),
            pa.field("cached_tokens", pa.int64(), nullable=False),
            pa.field("wasted_tokens", pa.int64(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("answer", pa.string()),
            pa.field("visible_tokens", pa.int64()),
        ]
    )


def _answers_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("question", pa.string(), nullable=False),
            pa.field("answer", pa.string()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("confidence", pa.float64()),
            pa.field("votes", pa.list_(pa.string()), nullable=False),
            pa.field("gold", pa.string()),
            pa.field("correct", pa.bool_()),
        ]
    )


def _sessions_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("session", pa.int32(), nullable=False),
            pa.field("expert", pa.string(), nullable=False),
            pa.field("node", pa.string(), nullable=False),
            pa.field("workers", pa.list_(pa.int32()), nullable=False),
            pa.field("load_start_ts", pa.float64(), nullable=False),
            pa.field("load_s", pa.float64(), nullable=False),
            pa.field("start_ts", pa.float64(), nullable=False),
            pa.field("end_ts", pa.float64(), nullable=False),
            pa.field("num_calls", pa.int32(), nullable=False),
            pa.field("output_tokens", pa.int64(), nullable=False),
            pa.field("output_tok_per_s", pa.float64()),
        ]
    )


def _encode(values: Mapping[str, Iterable[Any]], schema: "pa.Schema") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [pa.array(values[field.name], type=field.type) for field in schema]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return bytes(sink.getvalue())

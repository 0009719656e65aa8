"""A recorded request log: JSON lines of a served engine, as a workload and as the times it measured."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from mosaic.core.checks import require, require_count, require_name, require_number
from mosaic.core.results import CallRecord
from mosaic.core.workload import PROPOSE, Call, CallKey, ExpertName, Question, Workload
from mosaic.workloads.json_text import json_lines

_COUNTS = ("input_toks", "output_toks")
_INSTANTS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")


def load_request_log(path: str | Path, *, expert: ExpertName, name: str = "request_log") -> Workload:
    """Turn a log into a workload: a question and a call per request, with arrivals and true lengths.

    Raises
    ------
    ValueError, TypeError
        As ``measured_records``.
    """
    require_name(expert, "workload.expert")
    records = measured_records(path, expert=expert)
    return Workload(
        name=name,
        questions=tuple(Question(id=record.key.question, prompt_tokens=record.prompt_tokens) for record in records),
        calls=tuple(Call(record.key, expert, record.prompt_tokens, record.queued_ts) for record in records),
        output_tokens={record.key: record.output_tokens for record in records},
    )


def measured_records(path: str | Path, *, expert: ExpertName) -> tuple[CallRecord, ...]:
    """Read what a log measured in the form of a run's records, so that the same metrics apply, in order of arrival.

    Every line has ``request_id``, ``input_toks``, ``output_toks`` and, in seconds on one clock, ``queued_ts``,
    ``scheduled_ts``, ``first_token_ts`` and ``last_token_ts``; ``arrival_time`` may be on another clock. Records have
    instants in seconds, zero at the first arrival.

    NOTE: an engine looks at its inbox between iterations, so ``queued_ts`` is late by up to an iteration.
    Where all lines have it, ``arrival_time`` counts instead. Its clock is set by the request with the least
    delay, since none can be queued before it has arrived.

    Raises
    ------
    ValueError, TypeError
        If the file cannot be read or a line lacks a field or has a bad one; names file, line and field.
    """
    rows = _rows(path)
    ready_ts = [row["queued_ts"] for row in rows]
    if all(row.get("arrival_time") is not None for row in rows):
        offset = min(row["queued_ts"] - row["arrival_time"] for row in rows)
        ready_ts = [row["arrival_time"] + offset for row in rows]
    start = min(ready_ts)
    records = [
        CallRecord(
            key=CallKey(row["request_id"], PROPOSE, 0),
            expert=expert,
            session=0,
            workers=(0,),
            prompt_tokens=row["input_toks"],
            output_tokens=row["output_toks"],
            queued_ts=ready - start,
            admitted_ts=row["scheduled_ts"] - start,
            first_token_ts=row["first_token_ts"] - start,
            finished_ts=row["last_token_ts"] - start,
        )
        for row, ready in zip(rows, ready_ts, strict=True)
    ]
    return tuple(sorted(records, key=lambda record: record.queued_ts))


def _rows(path: str | Path) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for at, row in json_lines(path):
        _check_row(row, at)
        if row["request_id"] in rows:
            raise ValueError(f"{at}: request_id must be unique, got {row['request_id']!r} twice")
        rows[row["request_id"]] = row
    require(len(rows) > 0, f"{path}", "a log with at least one request", len(rows))
    return list(rows.values())


def _check_row(row: Mapping[str, Any], place: str) -> None:
    for field in ("request_id", *_COUNTS, *_INSTANTS):
        if field not in row:
            raise ValueError(f"{place}: {field} must be given, got the fields {sorted(row)}")
    require_name(row["request_id"], f"{place}: request_id")
    for field in _COUNTS:
        require_count(row[field], f"{place}: {field}", at_least=1)
    for field in _INSTANTS:
        require_number(row[field], f"{place}: {field}")
    if row.get("arrival_time") is not None:
        require_number(row["arrival_time"], f"{place}: arrival_time")
    for earlier, later in pairwise(_INSTANTS):
        require(row[later] >= row[earlier], f"{place}: {later}", f"at least {earlier}={row[earlier]}", row[later])

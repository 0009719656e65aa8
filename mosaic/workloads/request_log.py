"""A recorded request log: JSON lines of a served engine, as a workload and as the times it measured."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.core.checks import require, require_count, require_name, require_number
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, ExpertName, PROPOSE, Question, Workload

_COUNTS = ("input_toks", "output_toks")
_INSTANTS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")


class LoggedRequest(NamedTuple):
    """One line of a log; instants in seconds, zero at the first arrival."""

    id: str
    prompt_tokens: int
    output_tokens: int
    ready_ts: float
    """Arrival at the server."""
    scheduled_ts: float
    first_token_ts: float
    finished_ts: float


def read_request_log(path: str | Path) -> tuple[LoggedRequest, ...]:
    """Read a log: one JSON object a line, in order of arrival.

    Every line has ``request_id``, ``input_toks``, ``output_toks`` and, in seconds on one clock, ``queued_ts``,
    ``scheduled_ts``, ``first_token_ts`` and ``last_token_ts``; ``arrival_time`` may be on another clock.

    NOTE: an engine looks at its inbox between iterations, so ``queued_ts`` is late by up to an iteration.
    Where all lines have it, ``arrival_time`` counts instead. Its clock is set by the request with the least
    delay, since none can be queued before it has arrived.

    Raises
    ------
    ValueError, TypeError
        If the file cannot be read or a line lacks a field or has a bad one; names file, line and field.
    """
    rows = _rows(Path(path))
    arrivals = [row.get("arrival_time") for _, row in rows]
    ready_ts = [row["queued_ts"] for _, row in rows]
    if all(arrival is not None for arrival in arrivals):
        offset = min(row["queued_ts"] - row["arrival_time"] for _, row in rows)
        ready_ts = [row["arrival_time"] + offset for _, row in rows]
    start = min(ready_ts)
    requests = [
        LoggedRequest(
            id=row["request_id"],
            prompt_tokens=row["input_toks"],
            output_tokens=row["output_toks"],
            ready_ts=ready - start,
            scheduled_ts=row["scheduled_ts"] - start,
            first_token_ts=row["first_token_ts"] - start,
            finished_ts=row["last_token_ts"] - start,
        )
        for (_, row), ready in zip(rows, ready_ts, strict=True)
    ]
    return tuple(sorted(requests, key=lambda request: request.ready_ts))


def load_request_log(path: str | Path, *, expert: ExpertName, name: str = "request_log") -> Workload:
    """Turn a log into a workload: a question and a call per request, with arrivals and true lengths.

    Raises
    ------
    ValueError, TypeError
        As ``read_request_log``.
    """
    require_name(expert, "workload.expert")
    requests = read_request_log(path)
    keys = [CallKey(request.id, PROPOSE, 0) for request in requests]
    return Workload(
        name=name,
        questions=tuple(Question(id=request.id, prompt_tokens=request.prompt_tokens) for request in requests),
        calls=tuple(
            Call(key, expert, request.prompt_tokens, request.ready_ts)
            for key, request in zip(keys, requests, strict=True)
        ),
        output_tokens={key: request.output_tokens for key, request in zip(keys, requests, strict=True)},
    )


def measured_records(path: str | Path, *, expert: ExpertName) -> tuple[CallRecord, ...]:
    """Return what the log measured in the form of a run's records, so that the same metrics apply.

    Raises
    ------
    ValueError, TypeError
        As ``read_request_log``.
    """
    return tuple(
        CallRecord(
            key=CallKey(request.id, PROPOSE, 0),
            expert=expert,
            session=0,
            workers=(0,),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            queued_ts=request.ready_ts,
            admitted_ts=request.scheduled_ts,
            first_token_ts=request.first_token_ts,
            finished_ts=request.finished_ts,
        )
        for request in read_request_log(path)
    )


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"workload.path must be a readable file, got {str(path)!r} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"workload.path must be a UTF-8 text file, got {str(path)!r}") from error
    places = [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    require(len(places) > 0, f"{path}", "a log with at least one request", len(places))
    rows = [(place, _row(place, line)) for place, line in places]
    seen: dict[str, str] = {}
    for place, row in rows:
        first = seen.setdefault(row["request_id"], place)
        if first != place:
            raise ValueError(f"{place}: request_id must be unique, got {row['request_id']!r} twice")
    return rows


def _row(place: str, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: must be a JSON object, got {line[:60]!r}") from error
    if not isinstance(row, dict):
        raise TypeError(f"{place}: must be a JSON object, got {line[:60]!r}")
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
    return row

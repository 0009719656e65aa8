"""Reads a recorded request log: JSON lines of a served engine, as a workload and as measured times."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.core.checks import require, require_count, require_name, require_number
from mosaic.core.results import CallRecord
from mosaic.core.workload import PROPOSE, Call, CallKey, ExpertName, Prefix, Question, Workload
from mosaic.workloads.files import read_objects

_INSTANTS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
_OWN_BLOCK_TOKENS = 16
"""vLLM's block size by default."""
_TRACE_BLOCK_TOKENS = 512
"""Mooncake's: https://github.com/kvcache-ai/Mooncake, its traces."""


class _Request(NamedTuple):
    """A line of a log."""

    at: str
    name: str
    prompt_tokens: int
    output_tokens: int
    ready_ts: float
    """Its arrival, zero at the first one."""
    instants_s: tuple[float, ...]
    """When it was scheduled and its first and last token, on the same clock; none in a trace."""
    hash_ids: Any
    """As its line has them; None: it has none."""


def load_request_log(
    path: str | Path, *, expert: ExpertName, name: str = "request_log", hash_block_tokens: int | None = None
) -> Workload:
    """Turn a log into a workload: a question and a call per request, with arrivals, true lengths and prefixes.

    Beside the lines of ``measured_records`` a log may have those of Mooncake's traces: ``timestamp`` in milliseconds,
    ``input_length``, ``output_length``, ``hash_ids``. They were not measured, so they are a workload alone.

    ``hash_ids``, in either format, has a number for each block of a prompt's tokens, the last one full or not. A number
    identifies the prompt up to the end of its block: prompts that share it are equal up to there.

    Parameters
    ----------
    path, expert, name
        The file, the expert that all calls go to, and the workload's name.
    hash_block_tokens
        Tokens of a block of hash_ids; None: 16, and 512 in Mooncake's format.

    Raises
    ------
    ValueError, TypeError
        As ``measured_records``; also if a number follows one in one prompt and another in the next.
    """
    require_name(expert, "workload.expert")
    if hash_block_tokens is not None:
        require_count(hash_block_tokens, "workload.hash_block_tokens", at_least=1)
    requests = _requests(path)
    block_tokens = hash_block_tokens or (_OWN_BLOCK_TOKENS if requests[0].instants_s else _TRACE_BLOCK_TOKENS)
    keys = [CallKey(request.name, PROPOSE, 0) for request in requests]
    lines = list(zip(requests, keys, _prefixes(requests, block_tokens), strict=True))
    return Workload(
        name=name,
        questions=tuple(Question(id=one.name, prompt_tokens=one.prompt_tokens) for one in requests),
        calls=tuple(Call(key, expert, one.prompt_tokens, one.ready_ts, (), prefix) for one, key, prefix in lines),
        output_tokens={key: one.output_tokens for one, key, _ in lines},
    )


def measured_records(path: str | Path, *, expert: ExpertName) -> tuple[CallRecord, ...]:
    """Read what a log measured in the form of a run's records, so that the same metrics apply, in order of arrival.

    Every line has ``request_id``, ``input_toks``, ``output_toks`` and, in seconds on one clock, ``queued_ts``,
    ``scheduled_ts``, ``first_token_ts`` and ``last_token_ts``; ``arrival_time`` may be on another clock. Records have
    instants in seconds, zero at the first arrival. There are none of a trace.

    NOTE: an engine reads its inbox between iterations, so ``queued_ts`` is late by up to an iteration. Where all lines
    have it, ``arrival_time`` counts instead. Its clock is set by the request with the least delay, since none can be
    queued before it has arrived.

    Raises
    ------
    ValueError, TypeError
        If the file cannot be read or a line lacks a field or has a bad one; names file, line and field.
    """
    records = []
    for request in _requests(path):
        if not request.instants_s:
            return ()
        admitted_ts, first_token_ts, finished_ts = request.instants_s
        records.append(
            CallRecord(
                key=CallKey(request.name, PROPOSE, 0),
                expert=expert,
                session=0,
                workers=(0,),
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                queued_ts=request.ready_ts,
                admitted_ts=admitted_ts,
                first_token_ts=first_token_ts,
                finished_ts=finished_ts,
            )
        )
    return tuple(records)


def _requests(path: str | Path) -> list[_Request]:
    """Read a log's requests in order of arrival."""
    rows = read_objects(path)
    require(len(rows) > 0, f"{path}", "a log with at least one request", len(rows))
    read = _trace if "timestamp" in next(iter(rows.values())) else _measured
    return sorted(read(rows), key=lambda request: request.ready_ts)


def _measured(rows: Mapping[str, Mapping[str, Any]]) -> list[_Request]:
    seen: set[str] = set()
    for at, row in rows.items():
        _check_fields(row, at, ("input_toks", "output_toks"), ("request_id", *_INSTANTS))
        _check_times(row, at)
        require_name(row["request_id"], f"{at}: request_id")
        if row["request_id"] in seen:
            raise ValueError(f"{at}: request_id must be unique, got {row['request_id']!r} twice")
        seen.add(row["request_id"])
    ready_ts = {at: row["queued_ts"] for at, row in rows.items()}
    if all(row.get("arrival_time") is not None for row in rows.values()):
        offset = min(row["queued_ts"] - row["arrival_time"] for row in rows.values())
        ready_ts = {at: row["arrival_time"] + offset for at, row in rows.items()}
    start = min(ready_ts.values())
    return [
        _Request(
            at=at,
            name=row["request_id"],
            prompt_tokens=row["input_toks"],
            output_tokens=row["output_toks"],
            ready_ts=ready_ts[at] - start,
            instants_s=tuple(row[field] - start for field in _INSTANTS[1:]),
            hash_ids=row.get("hash_ids"),
        )
        for at, row in rows.items()
    ]


def _trace(rows: Mapping[str, Mapping[str, Any]]) -> list[_Request]:
    for at, row in rows.items():
        _check_fields(row, at, ("input_length", "output_length"), ("timestamp",))
        require_number(row["timestamp"], f"{at}: timestamp")
    start_ms = min(row["timestamp"] for row in rows.values())
    return [
        _Request(
            at=at,
            name=f"request-{number}",
            prompt_tokens=row["input_length"],
            output_tokens=row["output_length"],
            ready_ts=(row["timestamp"] - start_ms) / 1000,
            instants_s=(),
            hash_ids=row.get("hash_ids"),
        )
        for number, (at, row) in enumerate(rows.items())
    ]


def _check_fields(row: Mapping[str, Any], at: str, counts: Sequence[str], others: Sequence[str]) -> None:
    for field in (*others, *counts):
        if field not in row:
            raise ValueError(f"{at}: {field} must be given, got the fields {sorted(row)}")
    for field in counts:
        require_count(row[field], f"{at}: {field}", at_least=1)


def _check_times(row: Mapping[str, Any], at: str) -> None:
    for field in _INSTANTS:
        require_number(row[field], f"{at}: {field}")
    if row.get("arrival_time") is not None:
        require_number(row["arrival_time"], f"{at}: arrival_time")
    for earlier, later in pairwise(_INSTANTS):
        require(row[later] >= row[earlier], f"{at}: {later}", f"at least {earlier}={row[earlier]}", row[later])


def _hash_ids(request: _Request, block_tokens: int) -> Sequence[int]:
    at, ids, prompt_tokens = request.at, request.hash_ids, request.prompt_tokens
    if ids is None:
        return ()
    if not isinstance(ids, list):
        raise TypeError(f"{at}: hash_ids must be a list, got {ids!r}")
    for number in ids:
        require_count(number, f"{at}: hash_ids")
    most = -(-prompt_tokens // block_tokens)
    rule = f"at most {most} for {prompt_tokens} tokens in blocks of {block_tokens}, see workload.hash_block_tokens"
    require(len(ids) <= most, f"{at}: number of hash_ids", rule, len(ids))
    return ids


def _check_hash_ids(ids_by_place: Mapping[str, Sequence[int]]) -> None:
    """Refuse ids that stand for a block alone: the same one would follow different beginnings."""
    follows: dict[int, int | None] = {}
    for at, ids in ids_by_place.items():
        previous = None
        for number in ids:
            known = follows.setdefault(number, previous)
            rule = f"names of whole beginnings: {number} follows {known} elsewhere (null: it is first)"
            require(known == previous, f"{at}: hash_ids", rule, previous)
            previous = number


def _prefixes(requests: Sequence[_Request], block_tokens: int) -> list[Prefix | None]:
    """Keep what requests share: blocks that no other one has are its own."""
    ids_by_place = {request.at: _hash_ids(request, block_tokens) for request in requests}
    _check_hash_ids(ids_by_place)
    num_requests = Counter(number for ids in ids_by_place.values() for number in ids)
    prefixes = []
    for ids in ids_by_place.values():
        shared = tuple(number for number in ids if num_requests[number] > 1)
        prefixes.append(Prefix(shared, block_tokens) if shared else None)
    return prefixes

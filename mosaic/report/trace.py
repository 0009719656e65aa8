"""Writes trace.json: Chrome trace events, which open in Perfetto, with one process per worker."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeAlias

import msgspec
import numpy as np

from mosaic.core.results import RunResult

Event: TypeAlias = dict[str, Any]


def trace_lines(result: RunResult) -> Iterator[bytes]:
    """Serialise a run: load and serve spans per worker, and the number of admitted calls over time.

    The counter replaces a span per call, which would take ten times the space. Its lines are generated while they are
    written: all of them together would be as large as the records.
    """
    encode = msgspec.json.Encoder().encode
    yield b'{"displayTimeUnit":"ms","traceEvents":[\n'
    for number, event in enumerate(chain(_names(result), _spans(result), _counters(result))):
        yield (b",\n" if number else b"") + encode(event)
    yield b"\n]}\n"


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def _names(result: RunResult) -> Iterator[Event]:
    for worker in range(result.num_workers):
        yield {"ph": "M", "name": "process_name", "pid": worker, "args": {"name": f"worker {worker}"}}
        yield {"ph": "M", "name": "process_sort_index", "pid": worker, "args": {"sort_index": worker}}
        yield {"ph": "M", "name": "thread_name", "pid": worker, "tid": 0, "args": {"name": "sessions"}}


def _spans(result: RunResult) -> Iterator[Event]:
    for session in result.sessions:
        args = {
            "session": session.session,
            "workers": list(session.workers),
            "num_calls": session.num_calls,
            "output_tokens": session.output_tokens,
        }
        for worker in session.workers:
            if session.load_s > 0:
                yield _span(f"load {session.expert}", "load", worker, session.load_start_ts, session.start_ts, args)
            yield _span(session.expert, session.node, worker, session.start_ts, session.end_ts, args)


def _span(name: str, category: str, worker: int, start_ts: float, end_ts: float, args: Event) -> Event:
    start, end = _micros(start_ts), _micros(end_ts)
    where = {"pid": worker, "tid": 0, "ts": start, "dur": end - start}
    return {"ph": "X", "name": name, "cat": category, **where, "args": args}


def _counters(result: RunResult) -> Iterator[Event]:
    """Count calls between admission and finish; a gang's calls are counted on its first worker."""
    spans: defaultdict[int, list[float]] = defaultdict(list)
    for record in result.calls:
        if record.admitted_ts is not None and record.finished_ts is not None:
            spans[record.workers[0]] += (record.admitted_ts, record.finished_ts)
    for worker in sorted(spans):
        micros = np.rint(np.array(spans.pop(worker)) * 1e6).astype(np.int64)  # as in _micros
        instants, index = np.unique(micros, return_inverse=True)
        changes = np.zeros(len(instants), dtype=np.int64)
        np.add.at(changes, index, np.tile([1, -1], len(micros) // 2))
        levels = np.cumsum(changes)
        for number in np.flatnonzero(changes).tolist():
            args = {"calls": int(levels[number])}
            yield {"ph": "C", "name": "admitted calls", "pid": worker, "ts": int(instants[number]), "args": args}

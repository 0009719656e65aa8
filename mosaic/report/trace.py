"""trace.json: Chrome trace events, which open in Perfetto. A process per worker."""

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

    The counter stands in for a span per call, which would take ten times the space. Its lines are made while they are
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
    served = [
        (record.workers[0], _micros(record.admitted_ts), _micros(record.finished_ts))
        for record in result.calls
        if record.admitted_ts is not None and record.finished_ts is not None
    ]
    if not served:
        return
    workers, admitted, finished = np.array(served, dtype=np.int64).T
    instants, place = np.unique(
        np.stack([np.tile(workers, 2), np.concatenate([admitted, finished])]), axis=1, return_inverse=True
    )
    changes = np.zeros(instants.shape[1], dtype=np.int64)
    np.add.at(changes, place.reshape(-1), np.repeat([1, -1], len(served)))
    level = defaultdict[int, int](int)
    for worker, ts, change in zip(*instants.tolist(), changes.tolist(), strict=True):
        level[worker] += change
        if change:
            yield {"ph": "C", "name": "admitted calls", "pid": worker, "ts": ts, "args": {"calls": level[worker]}}

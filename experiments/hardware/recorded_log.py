"""The steps that a recorded run shows, beside what a model says of them.

A log has the instants of first and last tokens only. But tokens come out at the ends of steps, and between two such
instants that follow each other no request joins or leaves. So what lies between is a few equal decode steps. The last
one may hold the prompts whose first tokens come out at its end. How many steps there are follows from the time, as no
model of a step is wrong by a third of one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from mosaic.core.results import CallRecord
from mosaic.core.workload import CallKey
from sim.hardware.iteration_time import IterationTime

MAX_STEPS = 4
"""In longer stretches an error of a tenth of a step adds up to one that might be a step."""
MAX_BEFORE_PREFILL = 2
"""Decode steps in front of one that prefills; they count as long as the model says."""
MAX_DOUBT = 0.3
"""Distance of a stretch from a whole number of the model's decode steps."""


class LoggedStep(NamedTuple):
    """Equal decode steps, or a step with prompts beside decodes; seconds of one."""

    num_steps: int
    num_decodes: int
    prompt_tokens: int
    """Computed beside them; 0: decodes alone."""
    measured_s: float
    predicted_s: float


def logged_steps(
    records: Sequence[CallRecord], cached: Mapping[CallKey, int], time: IterationTime, budget: int
) -> list[LoggedStep]:
    """Find the steps of a log whose batch is known, and whose number is sure.

    Parameters
    ----------
    records
        The log's requests, all of which finished.
    cached
        Tokens of each prompt that were in the engine's cache.
    time
        A model of a step.
    budget
        Most tokens of a step: prompts that do not fit into it take several.
    """
    firsts = defaultdict(list)
    for record in records:
        firsts[_first(record)].append(record)
    found = []
    for start, end in pairwise(sorted({*firsts, *map(_last, records)})):
        prompts = [(record.prompt_tokens - cached[record.key], cached[record.key]) for record in firsts.get(end, ())]
        lengths = _lengths(records, (start + end) / 2)
        num_tokens = sum(tokens for tokens, _ in prompts)
        if not lengths or num_tokens + len(lengths) > budget or _is_shared(records, start, end):
            continue
        kv_tokens, longest = sum(lengths), max(lengths)
        decode_s = time.decode_span_s(len(lengths), kv_tokens, 1, longest)
        predicted_s = time.mixed_s(prompts, len(lengths), kv_tokens, longest) if prompts else decode_s
        before = (end - start - predicted_s) / decode_s
        num_before = round(before)
        most_before = MAX_BEFORE_PREFILL if prompts else MAX_STEPS - 1
        if not 0 <= num_before <= most_before or abs(before - num_before) >= MAX_DOUBT:
            continue
        if prompts:
            measured_s = end - start - num_before * decode_s
            found.append(LoggedStep(1, len(lengths), num_tokens, measured_s, predicted_s))
        else:
            num_steps = num_before + 1
            found.append(LoggedStep(num_steps, len(lengths), 0, (end - start) / num_steps, predicted_s))
    return found


def _is_shared(records: Sequence[CallRecord], start: float, end: float) -> bool:
    """Return whether prompts whose first tokens come out later may have been computed in part by the end."""
    return any((record.admitted_ts or record.queued_ts) < end < _first(record) for record in records)


def _first(record: CallRecord) -> float:
    assert record.first_token_ts is not None, "of a finished request"
    return record.first_token_ts


def _last(record: CallRecord) -> float:
    assert record.finished_ts is not None, "of a finished request"
    return record.finished_ts


def _lengths(records: Sequence[CallRecord], ts: float) -> list[int]:
    """Tokens that a step at this instant reads of each request; between first and last token they grow evenly."""
    lengths = []
    for record in records:
        first, last = _first(record), _last(record)
        if first <= ts < last:
            share = (ts - first) / (last - first)
            lengths.append(record.prompt_tokens + 1 + round(share * (record.output_tokens - 1)))
    return lengths

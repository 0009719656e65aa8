"""The host time that the decode steps of a recorded run show.

The host's time is what steps took beyond what tables say that the GPU takes.

A log has the instants of first and last tokens only. But tokens come out at the ends of steps, and between two such
instants that follow each other no request joins or leaves. So a stretch is a few equal steps, and how many follows from
its time, as no model of a step is wrong by half of one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from mosaic.core.results import CallRecord
from sim.hardware.iteration_time import IterationTime

MIN_STRETCHES = 20
"""With fewer a fit would be that of noise."""
MAX_STEPS = 4
"""In longer stretches an error of a tenth of a step adds up to one that might be a step."""
MAX_DOUBT = 0.3
"""Distance of a stretch from a whole number of the model's steps."""


class Stretch(NamedTuple):
    """Decode steps without any prefill, and the batch in the middle of them."""

    num_steps: int
    seconds: float
    lengths: tuple[int, ...]
    """Tokens that the middle step reads of each sequence, in rising order."""

    @property
    def step_s(self) -> float:
        return self.seconds / self.num_steps


def stretches(records: Sequence[CallRecord], time: IterationTime) -> list[Stretch]:
    """Find the stretches of a log in which the batch is constant, nothing is prefilled and the number of steps is sure.

    Parameters
    ----------
    records
        The log's requests, all of which finished.
    time
        A model of a step, right to a tenth.
    """
    instants = sorted({ts for record in records for ts in (_first(record), _last(record))})
    prefills = [(record.admitted_ts or record.queued_ts, _first(record)) for record in records]
    found = []
    for start, end in pairwise(instants):
        if any(begin < end and until > start for begin, until in prefills):
            continue
        lengths = sorted(_lengths(records, (start + end) / 2))
        if not lengths:
            continue
        steps = (end - start) / _step_s(lengths, time)
        if 1 <= round(steps) <= MAX_STEPS and abs(steps - round(steps)) < MAX_DOUBT:
            found.append(Stretch(round(steps), end - start, tuple(lengths)))
    return found


def excess_s(stretch: Stretch, time: IterationTime) -> float:
    """Seconds that a step took beyond what the model says."""
    return stretch.step_s - _step_s(stretch.lengths, time)


def _step_s(lengths: Sequence[int], time: IterationTime) -> float:
    return time.decode_span_s(len(lengths), sum(lengths), 1, lengths[-time.num_longest :] if time.num_longest else ())


def fit_host(found: Sequence[Stretch], time: IterationTime) -> tuple[float, float]:
    """Fit seconds per step and per sequence of it, none below 0, to what the model of the GPU leaves over.

    Raises
    ------
    ValueError
        If the log shows too few stretches.
    """
    if len(found) < MIN_STRETCHES:
        raise ValueError(f"log: at least {MIN_STRETCHES} stretches of decode steps must be known, got {len(found)}")
    weights = np.sqrt([float(stretch.num_steps) for stretch in found])
    terms = np.array([(1.0, float(len(stretch.lengths))) for stretch in found])
    rest = np.array([excess_s(stretch, time) for stretch in found])
    (base_s, per_seq_s), _ = nnls(terms * weights[:, None], rest * weights)
    return float(base_s), float(per_seq_s)


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

"""Fits the coefficients of a conf/hardware file to measured sessions.

A stretch of a session is one linear equation in the coefficients: what its iterations held, see ``engine_work``, and
the seconds that it took.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from experiments.hardware.engine_work import (
    DENSE_KNOTS,
    NUM_SCALARS,
    Floats,
    Processor,
    Work,
    ramps,
    terms_of,
    works_of,
)
from experiments.hardware.sweep import MeasuredRound
from experiments.hardware.table_fits import mape
from mosaic.core.checks import require
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, ModelShape
from sim.hardware.curves import Curve

COEFFICIENTS = (
    "per_session_s", "base_s", "per_seq_s", "per_prefill_s", "per_request_s", "per_kv_token_s", "per_kv_token_beside_s",
    "per_token_pair_s",
)  # fmt: skip
"""Of `ShapeFit`, in the order of the terms of `experiments.hardware.engine_work`."""


class MeasuredShape(NamedTuple):
    """All that was measured of one model on equal gangs of workers."""

    expert: Expert
    settings: EngineOptions
    """The simulator's name for how its engines schedule: what was in an iteration follows from it."""
    rounds: Sequence[MeasuredRound]

    @property
    def num_kv_heads(self) -> int:
        """Of one worker."""
        return max(1, -(-self.expert.known_shape.num_kv_heads // self.expert.tp_degree))


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewShown:
    """How many sequences fill the bandwidth of a processor, as unequal batches show it."""

    streams: float
    """Pairs of sequence and KV head; 0: unequal lengths cost nothing."""
    error_before: float
    """Mean absolute relative error where lengths matter, with a model that knows none."""
    error_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFit:
    """Coefficients of one model on one gang of workers, in seconds per iteration of the whole model."""

    shape: ModelShape
    tp_degree: int
    context_tokens: int
    base_s: float
    per_seq_s: float
    per_session_s: float
    """From the end of a session to the next of the same expert; no part of the hardware, a load takes its place."""
    per_request_s: float
    """Taking a request in and handing its response out."""
    per_prefill_s: float
    """Of an iteration that computes any prompt, whatever it computes."""
    per_kv_token_s: float
    per_kv_token_beside_s: float
    """Of decodes in an iteration that computes a prompt too."""
    per_token_pair_s: float
    dense: Curve
    """Beyond the base: by tokens, 0 at none."""
    mape: Mapping[str, float]


class _Stretch(NamedTuple):
    """Iterations of a session that follow each other, and how long they took together."""

    works: tuple[Work, ...]
    is_start: bool
    seconds: float


def fit_shapes(measured: Sequence[MeasuredShape], processor: Processor) -> tuple[list[ShapeFit], SkewShown | None]:
    """Fit the coefficients of all shapes, and what unequal lengths cost on their processor.

    Returns
    -------
    tuple
        A fit for each shape; and what shows the skew, None where nothing can.
    """
    equations = [(shape, _stretches(shape, processor)) for shape in measured]
    least_heads = min(shape.num_kv_heads for shape in measured)
    candidates = [0.0, *map(float, range(least_heads + 1, processor.num_sms + 1))]

    def fitted(streams: float) -> list[_Fitted]:
        return [_Fitted(shape, stretches, processor, streams) for shape, stretches in equations]

    without = fitted(0.0)
    found = without
    if len(candidates) > 1:
        found = min(map(fitted, candidates), key=lambda those: sum(one.deviation for one in those))
    return [one.shape_fit() for one in found], _shown(without, found)


def _shown(without: Sequence["_Fitted"], found: Sequence["_Fitted"]) -> SkewShown | None:
    """Compare the errors of two fits where lengths matter; None: they do nowhere."""
    matters = [~np.isclose(one.rows, other.rows).all(axis=1) for one, other in zip(without, found, strict=True)]
    if not any(rows.any() for rows in matters):
        return None
    errors = []
    for fits in (without, found):
        pairs = list(zip(fits, matters, strict=True))
        predicted = np.concatenate([one.predicted[rows] for one, rows in pairs])
        errors.append(mape(predicted, np.concatenate([one.seconds[rows] for one, rows in pairs])))
    return SkewShown(streams=found[0].streams, error_before=errors[0], error_after=errors[1])


class _Fitted:
    """Coefficients of a shape: least absolute error, none below 0."""

    def __init__(
        self, measured: MeasuredShape, stretches: Sequence[_Stretch], processor: Processor, streams: float
    ) -> None:
        self.streams = streams
        skew = processor.skew(streams, measured.num_kv_heads)
        self.rows = np.array([terms_of(works, is_start=is_start, skew=skew) for works, is_start, _ in stretches])
        self.seconds = np.array([stretch.seconds for stretch in stretches])
        self._measured = measured
        self._found = _least_deviation(self.rows, self.seconds)
        self.predicted: Floats = self.rows @ self._found

    @property
    def deviation(self) -> float:
        """What was minimised."""
        return float((np.abs(self.predicted - self.seconds) / np.sqrt(self.seconds)).sum())

    def shape_fit(self) -> ShapeFit:
        """Name the coefficients."""
        found, measured = self._found, self._measured
        knots = (*DENSE_KNOTS, 2 * DENSE_KNOTS[-1])
        dense_s = tuple(float(ramps(knot) @ found[NUM_SCALARS:]) for knot in knots)
        is_short = self.seconds <= np.median(self.seconds)
        return ShapeFit(
            shape=measured.expert.known_shape,
            tp_degree=measured.expert.tp_degree,
            context_tokens=measured.expert.context_limit,
            **dict(zip(COEFFICIENTS, map(float, found[:NUM_SCALARS]), strict=True)),
            dense=Curve(tuple(float(knot) for knot in knots), dense_s),
            mape={
                f"{name}_stretches": mape(self.predicted[those], self.seconds[those])
                for name, those in (("short", is_short), ("long", ~is_short))
                if those.any()
            },
        )


def serve_s(fit: ShapeFit, requests: Sequence[tuple[int, int]], settings: EngineOptions, processor: Processor) -> float:
    """Price a session of equal requests, all of them there from the start."""
    works = works_of(
        requests,
        settings,
        kv_tokens=_kv_tokens(settings, fit.context_tokens),
        context_tokens=fit.context_tokens,
        processor=processor,
    )
    scalars = terms_of(works, is_start=True)[:NUM_SCALARS]
    dense_s: float = sum(work.num_iterations * fit.dense(work.num_tokens) for work in works)
    scalar_s: float = sum(getattr(fit, name) * number for name, number in zip(COEFFICIENTS, scalars, strict=True))
    return dense_s + scalar_s


def _kv_tokens(settings: EngineOptions, context_tokens: int) -> int:
    return settings.kv_cache_tokens or settings.max_num_seqs * context_tokens


def _stretches(measured: MeasuredShape, processor: Processor) -> list[_Stretch]:
    """Cut sessions into stretches; each gives an equation.

    NOTE: a session whose requests are all running before any ends has two, before and after the last first token; the
    second has only decodes. If processor time is known, sessions count by it, divided in proportion to the clock. On a
    worker with its own core both are equal. Waiting for a core that others use lengthens only the clock's time.
    """
    settings, context_tokens = measured.settings, measured.expert.context_limit
    kv_tokens = _kv_tokens(settings, context_tokens)
    works_by_batch: dict[tuple[tuple[int, int], ...], tuple[Work, ...]] = {}
    found: list[_Stretch] = []
    for session in (session for each in measured.rounds for session in each.sessions):
        works = works_by_batch.get(session.requests)
        if works is None:
            works = works_by_batch[session.requests] = tuple(
                works_of(
                    session.requests, settings, kv_tokens=kv_tokens, context_tokens=context_tokens, processor=processor
                )
            )
        num_read = 1 + max(place for place, work in enumerate(works) if work.num_prefills)
        share = 1.0 if session.cpu_s is None else session.cpu_s / session.serve_s
        if len(session.requests) > settings.max_num_seqs or num_read == len(works):
            found.append(_Stretch(works, True, share * session.serve_s))
        else:
            found.append(_Stretch(works[:num_read], True, share * session.prompts_read_s))
            found.append(_Stretch(works[num_read:], False, share * (session.last_token_s - session.prompts_read_s)))
    return found


def _least_deviation(terms: Floats, seconds: Floats) -> Floats:
    """Minimise the sum of |prediction - measurement| / sqrt(measurement) with coefficients that are not negative.

    Least squares are not used: other work of a machine lengthens single sessions a lot, and a median ignores them. The
    root is a compromise. With absolute errors short stretches would not count. With relative errors the noise of a few
    milliseconds would count as much as that of a second.
    """
    require(bool(seconds.min() > 0), "engine sweep: measured seconds", "above 0", float(seconds.min()))
    target = np.sqrt(seconds)
    relative = terms / target[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)
    num_rows, num_terms = terms.shape
    over_and_under = np.hstack([relative / scale, -np.eye(num_rows), np.eye(num_rows)])
    prices = np.concatenate([np.zeros(num_terms), np.ones(2 * num_rows)])
    # Each term is priced a little, so that one that nothing was measured of is 0.
    prices[:num_terms] = 1e-6
    solved = linprog(prices, A_eq=over_and_under, b_eq=target, bounds=(0, None), method="highs")
    assert solved.status == 0, solved.message
    return np.asarray(solved.x[:num_terms] / scale)


def fit_loads(load_s_by_bytes: Mapping[int, float]) -> tuple[float, float | None]:
    """Fit loads: fixed seconds and bytes per second (None: one size only, so all of it is fixed)."""
    require(len(load_s_by_bytes) > 0, "engine sweep: loads", "at least one", 0)
    sizes = np.array(list(load_s_by_bytes), dtype=float)
    seconds = np.array(list(load_s_by_bytes.values()))
    if len(sizes) == 1:
        return float(seconds[0]), None
    fixed_s, per_byte_s = _least_deviation(np.column_stack([np.ones_like(sizes), sizes]), seconds)
    return float(fixed_s), None if per_byte_s <= 0 else float(1 / per_byte_s)

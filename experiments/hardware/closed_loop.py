"""Simulates closed loops, as in benchmarks of servers: each client sends its next request after an answer.

A point is a row of a CSV file. Its columns are isl and osl (tokens of each prompt and answer), concurrency, tp, and the
measured means ttft_ms and tpot_ms. The simulator's own engine serves it.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from experiments.hardware.operator_tables import read_table
from mosaic.core.checks import require
from mosaic.core.cluster import Worker
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.kv_memory import kv_capacity_tokens
from mosaic.core.workload import Expert, Family, ModelShape
from sim.engine.engine import Engine
from sim.engine.request import Request
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import IterationTime, iteration_time

SERVER = EngineOptions(order=Order.MIXED, max_num_seqs=1024, max_num_batched_tokens=8192)
"""vLLM's own limits for a server on a GPU of 70 GiB or more."""
START_GAP_S = 0.0575
"""From a client's first request to the next client's: clients start one after the other, or else all prompts would stay
together for good. Fitted to the TTFT of Qwen3-32B's points at TP 2, in steps of 0.0025 s; TPOT hardly depends on it."""
CLIENT_S = 0.002
"""Assumed: from a client's answer to its next request, so that the step in between is missed."""
NUM_ROUNDS = 5
"""Requests of each client; the first is not counted."""
FULL_FRAC = 0.9
"""A point whose requests at full length take more of the KV cache is beyond saturation: it waits for memory."""


class LoopPoint(NamedTuple):
    """A closed loop, and what was measured."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    tp_degree: int
    ttft_s: float
    tpot_s: float

    @property
    def round_s(self) -> float:
        """From a request to the end of its answer."""
        return self.ttft_s + (self.output_tokens - 1) * self.tpot_s

    @property
    def tok_per_s(self) -> float:
        """Output tokens of all clients."""
        return self.concurrency * self.output_tokens / self.round_s

    @property
    def most_tokens(self) -> int:
        """Of all requests at full length."""
        return self.concurrency * (self.prompt_tokens + self.output_tokens)


def read_points(path: Path) -> list[LoopPoint]:
    """Read a CSV file of points.

    Raises
    ------
    ValueError
        Naming the file, the column and the rule.
    """
    table = read_table(path, ("isl", "osl", "concurrency", "tp", "ttft_ms", "tpot_ms"))
    points = [
        LoopPoint(int(prompt), int(output), int(clients), int(degree), ttft_ms * 1e-3, tpot_ms * 1e-3)
        for prompt, output, clients, degree, ttft_ms, tpot_ms in table.rows()
    ]
    for point in points:
        require(min(point[:4]) >= 1 < point.output_tokens, f"{path}: isl, concurrency, tp", "at least 1 (osl 2)", point)
    return points


def kv_tokens_of(hardware: Hardware, shape: ModelShape, tp_degree: int, options: EngineOptions) -> int:
    """Count the KV tokens that a server holds, as for a session of any expert."""
    expert = Expert(name="model", checkpoint="model", shape=shape, family=Family.INSTRUCT)
    return kv_capacity_tokens(expert, [Worker(i, hardware.gpu) for i in range(tp_degree)], options)


def run_loop(point: LoopPoint, time: IterationTime, kv_tokens: int, options: EngineOptions = SERVER) -> LoopPoint:
    """Simulate a point; clients start one after the other, and go on until all requests that count have ended."""
    context_tokens = point.prompt_tokens + point.output_tokens
    engine = Engine(iteration_time=time, settings=options, kv_tokens=kv_tokens, context_tokens=context_tokens)
    sent: list[Request] = []

    def send(ready_ts: float) -> None:
        sent.append(engine.submit(len(sent), point.prompt_tokens, point.output_tokens, ready_ts))

    for client in range(point.concurrency):
        send(client * START_GAP_S)
    num_requests = num_left = NUM_ROUNDS * point.concurrency
    while num_left:
        now = engine.next_event_ts()
        for request in engine.advance_to(now):
            num_left -= request.id < num_requests
            send(now + CLIENT_S)
    rounds = sent[point.concurrency : num_requests]
    counted = [(r.queued_ts, r.first_token_ts or 0.0, r.finished_ts or 0.0) for r in rounds]
    ttft_s = fmean(first - queued for queued, first, _ in counted)
    tpot_s = fmean(last - first for _, first, last in counted) / (point.output_tokens - 1)
    return point._replace(ttft_s=ttft_s, tpot_s=tpot_s)


def run_loops(
    points: Sequence[LoopPoint], hardware: Hardware, shape: ModelShape, options: EngineOptions = SERVER
) -> list[LoopPoint]:
    """Simulate points of one model."""
    degrees = {point.tp_degree for point in points}
    times = {degree: iteration_time(hardware, shape, degree) for degree in degrees}
    kv_tokens = {degree: kv_tokens_of(hardware, shape, degree, options) for degree in degrees}
    return [run_loop(point, times[point.tp_degree], kv_tokens[point.tp_degree], options) for point in points]


def is_full(point: LoopPoint, kv_tokens: int) -> bool:
    """Return whether a point is beyond saturation."""
    return point.most_tokens > FULL_FRAC * kv_tokens


class LoopFit(NamedTuple):
    """Constants that closed loops show, and how far they carry."""

    constants: tuple[float, ...]
    error: float
    """Mean absolute relative error of TPOT, of the points that were fitted."""
    left_out: dict[str, float]
    """The same of points left out: for each axis all points of one of its values, by a fit to the others, the mean."""


def fit_loops(
    points: Sequence[LoopPoint],
    shape: ModelShape,
    build: Callable[[Sequence[float]], Hardware],
    start: Sequence[float],
) -> LoopFit:
    """Fit what ``build`` makes a kind of GPU of to the rounds of points, least squares on relative error.

    NOTE: which prompts share an iteration jumps with the constants, and shifts time between TTFT and TPOT. Their sum
    over a round does not jump.
    """

    def errors(points: Sequence[LoopPoint], constants: Sequence[float], value: str = "tpot_s") -> Any:
        pairs = zip(run_loops(points, build(constants), shape), points, strict=True)
        return np.array([getattr(again, value) / getattr(point, value) - 1 for again, point in pairs])

    def fit(points: Sequence[LoopPoint]) -> Any:
        found = least_squares(
            lambda scale: errors(points, scale * start, "round_s"),
            np.ones(len(start)),
            bounds=(0, np.inf),
            diff_step=0.1,
            max_nfev=12,
        )
        return found.x * start

    constants = fit(points)
    left_out = {}
    for axis in ("concurrency", "prompt_tokens", "output_tokens"):
        ordered = sorted(points, key=lambda point: getattr(point, axis))
        missed = []
        for _, group in groupby(ordered, key=lambda point: getattr(point, axis)):
            kept_out = list(group)
            others = [point for point in points if point not in kept_out]
            missed += [*np.abs(errors(kept_out, fit(others)))] if others else []
        if missed:
            left_out[axis] = float(np.mean(missed))
    return LoopFit(tuple(map(float, constants)), float(np.abs(errors(points, constants)).mean()), left_out)

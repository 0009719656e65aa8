"""The engine as a queue: with one sequence at a time it is M/G/1, and theory says how long one waits."""

import random
from math import ceil, inf, log, sqrt

import pytest

from mosaic.core.engine_options import EngineOptions, Order
from sim.engine.engine import Engine
from tests.sim.oracle import LinearTime

STEP_S = 0.01
NUM_REQUESTS = 20_000
CONSTANT_STEP = LinearTime(
    base_s=STEP_S, per_seq_s=0.0, per_kv_token_s=0.0, per_prefill_token_s=0.0, per_prefill_pair_s=0.0
)


def constant_length(rng):
    return 50


def geometric_length(rng):
    """As near to exponential as whole tokens allow."""
    return ceil(log(rng.random()) / log(1 - 1 / 50))


def serve(length, *, load, order=Order.PREFILL_FIRST, seed=1):
    """Poisson arrivals at a single-sequence engine; returns requests in order of arrival."""
    rng = random.Random(seed)
    engine = Engine(
        iteration_time=CONSTANT_STEP,
        settings=EngineOptions(order=order, max_num_seqs=1),
        kv_tokens=100_000,
        context_tokens=100_000,
    )
    ts, requests = 0.0, []
    for number in range(NUM_REQUESTS):
        ts += rng.expovariate(load / (50 * STEP_S))
        requests.append(engine.submit(number, 1, length(rng), ts))
    engine.advance_to(inf)
    return requests


def mean_and_error(values):
    """Mean and its standard error from 20 batch means, since waits in a queue are correlated."""
    size = len(values) // 20
    means = [sum(values[i : i + size]) / size for i in range(0, 20 * size, size)]
    mean = sum(means) / 20
    return mean, sqrt(sum((m - mean) ** 2 for m in means) / 19 / 20)


CONSTANT, GEOMETRIC = (constant_length, 50.0**2), (geometric_length, (2 - 1 / 50) * 50**2)
"""M/D/1 and M/M/1: how lengths are drawn, and the mean of their square."""


@pytest.mark.parametrize(
    ("length", "mean_square", "load", "order"),
    [
        *((*law, load, Order.PREFILL_FIRST) for law in (CONSTANT, GEOMETRIC) for load in (0.3, 0.7)),
        *((*GEOMETRIC, 0.7, order) for order in (Order.CHUNKED, Order.MIXED)),
    ],
)
def test_the_mean_wait_is_pollaczek_khinchine(length, mean_square, load, order):
    requests = serve(length, load=load, order=order)
    waits = [request.admitted_ts - request.queued_ts for request in requests]
    mean, error = mean_and_error(waits)
    arrivals_per_s = load / (50 * STEP_S)
    expected = arrivals_per_s * mean_square * STEP_S**2 / (2 * (1 - load))
    assert abs(mean - expected) < 4 * error
    assert error < 0.1 * expected, "or the test could not fail"


def test_an_engine_with_work_never_rests():
    requests = serve(geometric_length, load=0.7)
    free_ts = 0.0
    for request in requests:
        assert request.admitted_ts == pytest.approx(max(free_ts, request.queued_ts))
        free_ts = request.finished_ts
        assert free_ts - request.admitted_ts == pytest.approx(STEP_S * request.output_tokens)

"""What the iterations of a session held, as far as their price depends on it.

An engine does not record it, but it follows from the requests and from how the engine schedules: the simulator's own
engine replays the session and counts.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.core.engine_options import EngineOptions
from sim.engine.engine import Engine

Floats: TypeAlias = NDArray[np.float64]

DENSE_KNOTS = (0, 4, 16, 64, 256, 1024)
"""Between these numbers of tokens the operators of an iteration cost the same for each token."""
NUM_SCALARS = 8
"""Coefficients before those of the dense operators: of a session, and of what `Work` counts."""


class Work(NamedTuple):
    """What a stretch of iterations held."""

    num_iterations: int
    num_seqs: int
    num_prefills: int
    """Iterations that compute any prompt."""
    num_requests: int
    """Taken in."""
    kv_tokens: int
    """Read by decodes alone."""
    kv_tokens_beside: int
    """Read by decodes beside a prompt."""
    token_pairs: int
    """c (c + 2 p) of every chunk of c tokens behind p others."""
    num_tokens: int
    """Of each iteration."""


class _Counter:
    """An iteration time that prices every iteration at one second and keeps what was in it.

    NOTE: the engine asks for the time of a jump once where all requests are there from the start, so every question
    is a stretch of iterations that then happens.
    """

    def __init__(self) -> None:
        self.works: list[Work] = []

    def decode_span_s(self, num_seqs: int, kv_tokens: int, num_steps: int) -> float:
        kv_sum = num_steps * kv_tokens + num_seqs * num_steps * (num_steps - 1) // 2
        self.works.append(Work(num_steps, num_seqs, 0, 0, kv_sum, 0, 0, num_seqs))
        return float(num_steps)

    def mixed_s(self, chunks: Sequence[tuple[int, int]], num_decodes: int, decode_kv_tokens: int) -> float:
        pairs = sum(tokens * (tokens + 2 * context) for tokens, context in chunks)
        started = sum(context == 0 for _, context in chunks)
        num_tokens = num_decodes + sum(tokens for tokens, _ in chunks)
        num_seqs = num_decodes + len(chunks)
        self.works.append(Work(1, num_seqs, 1, started, 0, decode_kv_tokens, pairs, num_tokens))
        return 1.0


def works_of(
    requests: Sequence[tuple[int, int]], settings: EngineOptions, *, kv_tokens: int, context_tokens: int
) -> list[Work]:
    """Replay a session and list the stretches of equal iterations that it consists of."""
    counter = _Counter()
    engine = Engine(iteration_time=counter, settings=settings, kv_tokens=kv_tokens, context_tokens=context_tokens)
    for number, (prompt_tokens, output_tokens) in enumerate(requests):
        engine.submit(number, prompt_tokens, output_tokens, 0.0)
    engine.advance_to(float("inf"))
    return counter.works


def terms_of(works: Sequence[Work], *, is_start: bool) -> Floats:
    """Sum what a linear price needs to know of stretches: shape (NUM_SCALARS + len(DENSE_KNOTS),)."""
    total = np.zeros(NUM_SCALARS + len(DENSE_KNOTS))
    total[0] = is_start
    for work in works:
        steps = work.num_iterations
        total[1:NUM_SCALARS] += (steps, steps * work.num_seqs, *work[2:-1])
        total[NUM_SCALARS:] += steps * ramps(work.num_tokens)
    return total


def ramps(num_tokens: int) -> Floats:
    """Split a number of tokens into those that lie in each segment between knots."""
    edges = np.array([*DENSE_KNOTS, np.inf])
    return np.clip(num_tokens - edges[:-1], 0.0, np.diff(edges))

"""Finds the content of a session's iterations: everything that their price depends on.

An engine does not record it. It follows from the requests and the engine's scheduling, so the simulator's engine
replays the session and counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.core.checks import AtLeast0, checked
from mosaic.core.engine_options import EngineOptions
from sim.engine.engine import Engine
from sim.hardware.iteration_time import Chunks, IterationTime, graph_sizes, padded_seqs, unsplit_seqs
from sim.hardware.skew_time import AttentionSkew

Floats: TypeAlias = NDArray[np.float64]

DENSE_KNOTS = (0, 4, 16, 64, 256, 1024)
"""Between these numbers of tokens the operators of an iteration cost the same for each token."""
NUM_SCALARS = 8
"""Coefficients before those of the dense operators: of a session, and of what `Work` counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("processor: ")
class Processor:
    """A worker's resources: all that the price of a batch depends on."""

    num_sms: AtLeast0 = 0
    """Streaming multiprocessors of a GPU, cores of a CPU; 0: not known, so unequal lengths cost nothing."""
    graph_max_seqs: AtLeast0 = 0
    """Decode batches up to this size are padded to sizes that are captured as CUDA graphs; 0: none is."""

    def skew(self, streams: float, num_kv_heads: int) -> AttentionSkew | None:
        """Say what unequal lengths cost, in tokens read; None: nothing.

        Parameters
        ----------
        streams
            Pairs of sequence and KV head that read at the full bandwidth together.
        num_kv_heads
            Of the model on one worker.
        """
        if streams <= num_kv_heads:  # one sequence reads at the full bandwidth
            return None
        least = unsplit_seqs(self.num_sms, num_kv_heads, graph_sizes(self.graph_max_seqs))
        return AttentionSkew(block_s=streams / num_kv_heads, min_seqs=least)


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
    """Of each iteration, as padded."""
    longest: int = 0
    """Tokens that decodes of the first iteration read of the longest sequence."""
    chunks: tuple[tuple[int, int], ...] = ()
    """Of prompts beside decodes whose lengths matter: tokens, and tokens before them."""


class _Counter(IterationTime):
    """An iteration time that prices every iteration at one second and keeps what was in it.

    NOTE: if all requests wait from the start, the engine queries the time of each jump once. So every query is a
    stretch of iterations that is then run.
    """

    def __init__(self, processor: Processor) -> None:
        self.works: list[Work] = []
        self.needs_longest = processor.num_sms > 0
        self._captured = graph_sizes(processor.graph_max_seqs)

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        kv_sum = num_steps * int(kv_tokens) + num_seqs * num_steps * (num_steps - 1) // 2
        num_tokens = padded_seqs(num_seqs, self._captured)
        self.works.append(Work(num_steps, num_seqs, 0, 0, kv_sum, 0, 0, num_tokens, longest))
        return float(num_steps)

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        pairs = sum(tokens * (tokens + 2 * context) for tokens, context in chunks)
        started = sum(context == 0 for _, context in chunks)
        num_tokens = num_decodes + sum(tokens for tokens, _ in chunks)
        num_seqs = num_decodes + len(chunks)
        beside = tuple(chunks) if longest else ()
        read = int(decode_kv_tokens)
        self.works.append(Work(1, num_seqs, 1, started, 0, read, pairs, num_tokens, longest, beside))
        return 1.0


def works_of(
    requests: Sequence[tuple[int, int]],
    settings: EngineOptions,
    *,
    kv_tokens: int,
    context_tokens: int,
    processor: Processor | None = None,
) -> list[Work]:
    """Replay a session and list the stretches of equal iterations that it consists of."""
    counter = _Counter(processor or Processor())
    engine = Engine(iteration_time=counter, settings=settings, kv_tokens=kv_tokens, context_tokens=context_tokens)
    for number, (prompt_tokens, output_tokens) in enumerate(requests):
        engine.submit(number, prompt_tokens, output_tokens, 0.0)
    engine.advance_to(float("inf"))
    return counter.works


def terms_of(works: Sequence[Work], *, is_start: bool, skew: AttentionSkew | None = None) -> Floats:
    """Sum what a linear price needs to know of stretches: shape (NUM_SCALARS + len(DENSE_KNOTS),).

    NOTE: what decodes wait for their longest sequences is priced like tokens that they read, see ``AttentionSkew``.
    """
    total = np.zeros(NUM_SCALARS + len(DENSE_KNOTS))
    total[0] = is_start
    for work in works:
        steps = work.num_iterations
        total[1:NUM_SCALARS] += (
            steps, steps * work.num_seqs, work.num_prefills, work.num_requests, work.kv_tokens + _waited(work, skew),
            work.kv_tokens_beside, work.token_pairs,
        )  # fmt: skip
        total[NUM_SCALARS:] += steps * ramps(work.num_tokens)
    return total


def _waited(work: Work, skew: AttentionSkew | None) -> float:
    """Count the tokens that could have been read while the longest were."""
    if skew is None or not work.longest or (work.num_seqs < skew.min_seqs and not work.chunks):
        return 0.0
    if not work.chunks:
        first_tokens = work.kv_tokens / work.num_iterations - work.num_seqs * (work.num_iterations - 1) / 2
        return work.num_iterations * skew.alone_s(work.longest, first_tokens / work.num_seqs)
    num_decodes = work.num_seqs - len(work.chunks)
    return skew.beside_prefill_s(work.longest, work.kv_tokens_beside / num_decodes, work.chunks)


def ramps(num_tokens: int) -> Floats:
    """Split a number of tokens into those that lie in each segment between knots."""
    edges = np.array([*DENSE_KNOTS, np.inf])
    return np.clip(num_tokens - edges[:-1], 0.0, np.diff(edges))

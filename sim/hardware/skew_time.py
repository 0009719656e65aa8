"""Iteration time that knows how long the longest sequences are, and not only how many tokens are read."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import ceil, inf
from typing import Protocol

from mosaic.core.checks import AtLeast1, NotNegative, checked


class GpuTime(Protocol):
    """Time of iterations by totals, without the host's; see ``sim.hardware.iteration_time``."""

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int) -> float: ...

    def mixed_s(self, chunks: Sequence[tuple[int, int]], num_decodes: int, decode_kv_tokens: float) -> float: ...


TILE_TOKENS = 64
"""Query tokens that one thread block of FlashAttention serves."""
IDLE_FRAC = 2 / 3
"""Share of a block's time that decodes alone lose while they wait for the longest: the blocks that are left still use a
part of the bandwidth. List schedules of 26 to 200 sequences of random lengths give 0.6 to 0.9."""
MAX_WAVES = 5
"""More thread blocks than so many per multiprocessor are not scheduled one by one: waves have blurred by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("attention skew: ")
class AttentionSkew:
    """What attention waits for its longest sequences.

    NOTE: decodes of small batches are split along their tokens, so that all parts of the GPU have work to the end. From
    a certain size on, and always beside a prefill, one thread block per head reads a whole sequence. Multiprocessors
    take the blocks head by head as they become free, so the last head's block of the longest sequence starts near the
    end and runs on alone: a step waits for the longest and not for the mean. All lengths grow by one a step, so the
    difference is constant while the batch is.
    """

    block_s: NotNegative
    """Seconds per token that one thread block takes to read its part of a sequence, all layers."""
    num_sms: AtLeast1
    """Thread blocks that run at a time."""
    num_heads: AtLeast1
    """Query heads: thread blocks of a sequence or of a tile of a chunk beside a prefill."""
    min_seqs: AtLeast1 = 1
    """Smaller batches of decodes alone are split."""

    @property
    def num_longest(self) -> int:
        """How many of the longest lengths it needs."""
        return max(1, MAX_WAVES * self.num_sms // self.num_heads)

    def longest_wait_s(self, longest: int, mean_tokens: float) -> float:
        """Price a step of decodes alone beyond one of equal lengths."""
        return IDLE_FRAC * self.block_s * (longest - mean_tokens)

    def beside_prefill_s(
        self, chunks: Sequence[tuple[int, int]], num_decodes: int, mean_tokens: float, longest: Sequence[int]
    ) -> float:
        """Price a step of decodes beside chunks beyond one of equal lengths; below 0 where skew fills the last wave.

        A tile of a chunk reads all tokens before it, as long as a decode of that length would: it hides shorter ones.
        """
        if self._blurs(chunks, num_decodes):
            for tokens, context in chunks:
                mean_tokens = max(mean_tokens, tokens + context)
            return self.block_s * max(0.0, longest[-1] - mean_tokens)
        tiles = [
            context + min(end, tokens)
            for tokens, context in chunks
            for end in range(TILE_TOKENS, tokens + TILE_TOKENS, TILE_TOKENS)
        ]
        equal = self._makespan([*tiles, *[mean_tokens] * num_decodes])
        return self.block_s * (self._makespan([*tiles, *longest]) - equal)

    def _blurs(self, chunks: Sequence[tuple[int, int]], num_decodes: int) -> bool:
        """Return whether there are too many thread blocks to schedule them one by one."""
        most = MAX_WAVES * self.num_sms // self.num_heads
        num_tiles = len(chunks)
        if num_decodes + num_tiles <= most:
            num_tiles = sum(ceil(tokens / TILE_TOKENS) for tokens, _ in chunks)
        return num_decodes + num_tiles > most

    def _makespan(self, tokens: Sequence[float]) -> float:
        """Hand out the blocks of all heads, one after the other, to the multiprocessor that is free first."""
        blocks = [*tokens] * self.num_heads
        ends = blocks[: self.num_sms]
        heapify(ends)
        for block in blocks[self.num_sms :]:
            heapreplace(ends, ends[0] + block)
        return max(ends)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("eager decode: ")
class EagerDecode:
    """Decode steps without CUDA graphs: nothing is captured beyond a length, so kernels are launched one by one."""

    max_graph_tokens: AtLeast1
    """vLLM V0's max_seq_len_to_capture: a batch with a longer sequence runs eagerly, all of it."""
    launch_s: NotNegative
    """Least time of such a step on the GPU."""


class SkewAwareIterationTime:
    """GPU time by totals, and on top what depends on lengths and what the host takes for every token.

    Without lengths all are taken for equal.
    """

    __slots__ = (
        "_base_s",
        "_busy_tokens",
        "_eager",
        "_gpu",
        "_graph_tokens",
        "_idle_s",
        "_per_kv_token_s",
        "_per_seq_s",
        "_skew",
        "_unsplit_seqs",
        "num_longest",
    )

    def __init__(
        self,
        gpu: GpuTime,
        *,
        host_base_s: float = 0.0,
        host_per_seq_s: float = 0.0,
        host_per_kv_token_s: float = 0.0,
        skew: AttentionSkew | None = None,
        eager: EagerDecode | None = None,
    ) -> None:
        self._gpu = gpu
        self._base_s = host_base_s
        self._per_seq_s = host_per_seq_s
        self._per_kv_token_s = host_per_kv_token_s
        self._skew = skew
        self._unsplit_seqs = skew.min_seqs if skew else inf
        self._idle_s = skew.longest_wait_s(1, 0.0) if skew else 0.0
        self._eager = eager
        self._graph_tokens = eager.max_graph_tokens + 1 if eager else inf
        """Steps that read a sequence of so many tokens are eager."""
        self._busy_tokens: dict[int, float] = {}
        """Per batch size, tokens to read that are known to take longer than the launches."""
        self.num_longest = max(skew.num_longest if skew else 0, 1 if eager else 0)
        """How many of the longest lengths it needs."""

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: Sequence[int] = ()) -> float:
        """Time of consecutive decode steps over an unchanged batch.

        Parameters
        ----------
        num_seqs, kv_tokens, num_steps
            As for ``IterationTime``.
        longest
            Tokens that the first step reads of the longest sequence, the last of those that are given.
        """
        step_s = self._base_s + self._per_seq_s * num_seqs
        step_s += self._per_kv_token_s * (kv_tokens + num_seqs * (num_steps - 1) / 2)
        launches_s = 0.0
        if longest:
            most_tokens, skew_s = longest[-1], 0.0
            if num_seqs >= self._unsplit_seqs:
                skew_s = self._idle_s * (most_tokens - kv_tokens / num_seqs)
                step_s += skew_s
            if most_tokens + num_steps > self._graph_tokens and kv_tokens < self._busy_tokens.get(num_seqs, inf):
                launches_s = self._launches_s(num_seqs, kv_tokens, num_steps, most_tokens, skew_s)
        return self._gpu.decode_span_s(num_seqs, kv_tokens, num_steps) + num_steps * step_s + launches_s

    def _launches_s(self, num_seqs: int, kv_tokens: float, num_steps: int, most_tokens: int, skew_s: float) -> float:
        """Price what steps of a span wait for launches: they get slower, so only the first without graphs do."""
        assert self._eager is not None, "called where there is a limit"
        gpu_s, launch_s = self._gpu.decode_span_s, self._eager.launch_s - skew_s
        num_graphs = max(0, self._eager.max_graph_tokens - most_tokens + 1)
        kv_tokens += num_graphs * num_seqs
        first_s = gpu_s(num_seqs, kv_tokens, 1)
        if first_s >= launch_s:
            if first_s >= self._eager.launch_s:
                self._busy_tokens[num_seqs] = kv_tokens
            return 0.0
        num_eager = num_steps - num_graphs
        steps = range(num_eager)
        waits = bisect_left(steps, launch_s, key=lambda step: gpu_s(num_seqs, kv_tokens + step * num_seqs, 1))
        return waits * launch_s - gpu_s(num_seqs, kv_tokens, waits)

    @property
    def max_graph_tokens(self) -> int | None:
        """Longest sequence of a step with CUDA graphs; None: there is no limit."""
        return self._eager.max_graph_tokens if self._eager else None

    def step_s(self, num_seqs: int, read_tokens: float, kv_tokens: float, longest: float) -> float:
        """Time of a decode step whose attention reads a part of the cache; the host handles all of it."""
        gpu_s = self._gpu.decode_span_s(num_seqs, read_tokens, 1)
        if self._eager is not None and longest > self._eager.max_graph_tokens:
            gpu_s = max(gpu_s, self._eager.launch_s)
        return gpu_s + self._base_s + self._per_seq_s * num_seqs + self._per_kv_token_s * kv_tokens

    def mixed_s(
        self,
        chunks: Sequence[tuple[int, int]],
        num_decodes: int,
        decode_kv_tokens: float,
        longest: Sequence[int] = (),
    ) -> float:
        """Time of an iteration that prefills chunks; the kernel for prefills never splits the decodes beside them."""
        seconds = self._gpu.mixed_s(chunks, num_decodes, decode_kv_tokens)
        if self._skew is not None and longest:
            skew_s = self._skew.beside_prefill_s(chunks, num_decodes, decode_kv_tokens / num_decodes, longest)
            # Equal lengths leave at most half of their waves idle.
            seconds = max(seconds / 2, seconds + skew_s)
        host_s = self._base_s + self._per_seq_s * (num_decodes + len(chunks))
        return seconds + host_s + self._per_kv_token_s * decode_kv_tokens

"""Iteration time that knows how long the longest sequences are, and not only how many tokens are read."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from mosaic.core.checks import require_count, require_number


class GpuTime(Protocol):
    """Time of iterations by totals, without the host's; see ``sim.hardware.iteration_time``."""

    def decode_span_s(self, num_seqs: int, kv_tokens: int, num_steps: int) -> float: ...

    def mixed_s(self, chunks: Sequence[tuple[int, int]], num_decodes: int, decode_kv_tokens: int) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSkew:
    """What decode attention waits for its longest sequences.

    NOTE: small batches are split along their tokens, so that all parts of the GPU have work to the end. From a certain
    size on each sequence is read by one thread block per KV head, and a step lasts until the longest has been read.
    While n* sequences are left they cannot use the whole bandwidth: a step takes tau (n* L_max - sum of the n* longest)
    more than its tokens do. All lengths grow by one a step, so this is constant while the batch is.
    """

    per_kv_token_s: float
    """Tau: seconds per token read at full bandwidth, all layers."""
    num_longest: float
    """n*: equal sequences that just fill the bandwidth; a fraction weighs the last one."""
    min_seqs: int = 1
    """Smaller batches of decodes alone are split."""

    def __post_init__(self) -> None:
        require_number(self.per_kv_token_s, "attention skew: per_kv_token_s", at_least=0)
        require_number(self.num_longest, "attention skew: num_longest", above=0)
        require_count(self.min_seqs, "attention skew: min_seqs", at_least=1)

    def step_s(self, longest: Sequence[int]) -> float:
        """Price a step by the lengths of its longest sequences, in rising order."""
        weight = min(self.num_longest, len(longest))
        whole = int(weight)
        behind: float = whole * longest[-1] - sum(longest[len(longest) - whole :])
        if weight > whole:
            behind += (weight - whole) * (longest[-1] - longest[-1 - whole])
        return self.per_kv_token_s * behind


@dataclass(frozen=True, slots=True, kw_only=True)
class EagerDecode:
    """Decode steps without CUDA graphs: nothing is captured beyond a length, so kernels are launched one by one."""

    max_graph_tokens: int
    """vLLM V0's max_seq_len_to_capture: a batch with a longer sequence runs eagerly, all of it."""
    launch_s: float
    """Least time of such a step on the GPU."""

    def __post_init__(self) -> None:
        require_count(self.max_graph_tokens, "eager decode: max_graph_tokens", at_least=1)
        require_number(self.launch_s, "eager decode: launch_s", at_least=0)


class LengthTime:
    """GPU time by totals, and on top what depends on lengths and what the host takes for every token.

    Without lengths it is the least that iterations of these totals can take.
    """

    __slots__ = ("_eager", "_gpu", "_host_per_kv_token_s", "_host_s", "_skew", "num_longest")

    def __init__(
        self,
        gpu: GpuTime,
        host_s: Callable[[int], float],
        *,
        host_per_kv_token_s: float = 0.0,
        skew: AttentionSkew | None = None,
        eager: EagerDecode | None = None,
    ) -> None:
        self._gpu = gpu
        self._host_s = host_s
        self._host_per_kv_token_s = host_per_kv_token_s
        self._skew = skew
        self._eager = eager
        self.num_longest = max(ceil(skew.num_longest) if skew else 0, 1 if eager else 0)
        """How many of the longest lengths it wants to be told."""

    def decode_span_s(self, num_seqs: int, kv_tokens: int, num_steps: int, longest: Sequence[int] = ()) -> float:
        """Time of consecutive decode steps over an unchanged batch.

        Parameters
        ----------
        num_seqs, kv_tokens, num_steps
            As for ``IterationTime``.
        longest
            Tokens that the first step reads of the longest sequences, in rising order.
        """
        kv_sum = num_steps * kv_tokens + num_seqs * num_steps * (num_steps - 1) // 2
        host_s = num_steps * self._host_s(num_seqs) + self._host_per_kv_token_s * kv_sum
        skew, eager, skew_s = self._skew, self._eager, 0.0
        if skew is not None and longest and num_seqs >= skew.min_seqs:
            skew_s = skew.step_s(longest)
        if eager is None or not longest:
            return host_s + self._gpu.decode_span_s(num_seqs, kv_tokens, num_steps) + num_steps * skew_s

        def step_s(step: int) -> float:
            return self._gpu.decode_span_s(num_seqs, kv_tokens + step * num_seqs, 1) + skew_s

        num_graphs = min(num_steps, max(0, eager.max_graph_tokens - longest[-1] + 1))
        # Steps get slower, so those that wait for launches come first.
        first = bisect_left(range(num_steps), eager.launch_s, lo=num_graphs, key=step_s)
        gpu_s = self._gpu.decode_span_s(num_seqs, kv_tokens, num_graphs) + num_graphs * skew_s
        rest_s = self._gpu.decode_span_s(num_seqs, kv_tokens + first * num_seqs, num_steps - first)
        return host_s + gpu_s + (first - num_graphs) * eager.launch_s + rest_s + (num_steps - first) * skew_s

    def mixed_s(
        self,
        chunks: Sequence[tuple[int, int]],
        num_decodes: int,
        decode_kv_tokens: int,
        longest: Sequence[int] = (),
    ) -> float:
        """Time of an iteration that prefills chunks; the kernel for prefills never splits the decodes beside them."""
        seconds = self._gpu.mixed_s(chunks, num_decodes, decode_kv_tokens) + self._host_s(num_decodes + len(chunks))
        if self._skew is not None and longest:
            seconds += self._skew.step_s(longest)
        return seconds + self._host_per_kv_token_s * decode_kv_tokens

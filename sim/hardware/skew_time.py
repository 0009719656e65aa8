"""What depends on how long the longest sequences are, and not only on how many tokens are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import ceil

from mosaic.core.checks import AtLeast1, NotNegative, checked

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

"""Computes the extra time of attention when decoding sequences have unequal lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

from mosaic.core.checks import AtLeast1, NotNegative, checked

IDLE_FRAC = 2 / 3
"""Share of a block's time that decodes alone lose while they wait for the longest sequence.

The remaining blocks still use a part of the bandwidth. List schedules of 26 to 200 sequences of random lengths give 0.6
to 0.9.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("attention skew: ")
class AttentionSkew:
    """The time for which attention waits for its longest sequence.

    NOTE: decodes of small batches are split along their tokens, so that all parts of the GPU have work to the end. From
    a certain size on, and always beside a prefill, one thread block per head reads a whole sequence. Multiprocessors
    take the blocks head by head as they become free. So the last head's block of the longest sequence starts near the
    end, and runs on alone when blocks of the mean length have ended. All lengths grow by one per step, so the wait of a
    step is constant while the batch is.
    """

    block_s: NotNegative
    """Seconds per token that one thread block takes to read its part of a sequence, all layers."""
    min_seqs: AtLeast1 = 1
    """Smaller batches of decodes alone are split."""

    def alone_s(self, longest: float, mean_tokens: float) -> float:
        """Price the extra time of a step of decodes alone that is not split, over one of equal lengths."""
        return IDLE_FRAC * self.block_s * (longest - mean_tokens)

    def beside_prefill_s(self, longest: float, mean_tokens: float, chunks: Sequence[tuple[int, int]]) -> float:
        """Price the extra time of decodes beside chunks (tokens, and tokens before them), over equal lengths.

        The last block of a chunk reads all tokens before it, and takes as long as a decode of that length: it hides
        shorter ones.
        """
        hidden = max(mean_tokens, *(tokens + context for tokens, context in chunks))
        return self.block_s * max(0.0, longest - hidden)

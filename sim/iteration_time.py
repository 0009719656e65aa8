"""Seconds of one engine iteration, as a function of what is in the batch."""

from collections.abc import Sequence
from typing import Protocol


class IterationTime(Protocol):
    """Time of an engine's iterations for one model on one kind of GPU at one tensor-parallel degree."""

    def decode_span_s(self, num_seqs: int, kv_tokens: int, num_steps: int) -> float:
        """Time of consecutive pure decode iterations over an unchanged batch.

        Parameters
        ----------
        num_seqs
            Running sequences B, each of which gains one token per step.
        kv_tokens
            Tokens that the attention of the *first* step reads, summed over the sequences (the token
            being computed included); every step reads ``num_seqs`` more than the one before.
        num_steps
            Number of steps k.
        """

    def mixed_s(self, chunks: Sequence[tuple[int, int]], num_decodes: int, decode_kv_tokens: int) -> float:
        """Time of one iteration that prefills chunks, with or without decodes beside them.

        Parameters
        ----------
        chunks
            Per prefilled sequence: tokens computed now, tokens already in its KV cache.
        num_decodes, decode_kv_tokens
            Sequences that decode in the same iteration and the tokens that their attention reads.
        """

"""How an engine schedules: the settings a vLLM user gives on its command line."""

from dataclasses import dataclass
from enum import StrEnum

from mosaic.core.checks import require, require_count, require_number

MIXED_BATCHED_TOKENS = 2048
"""vLLM's default token budget of an iteration where prefills are chunked."""


class Order(StrEnum):
    """What an iteration may hold."""

    PREFILL_FIRST = "prefill_first"
    """vLLM 0.7.1 (V0): whole prompts whenever one can be admitted, else one decode step for all."""
    MIXED = "mixed"
    """vLLM's V1: decodes first, then chunks of prompts, under one token budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Limits and order of one engine."""

    order: Order = Order.PREFILL_FIRST
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    """None: the order's default, max(context, 2048) for whole prompts and 2048 for chunks."""
    block_size: int = 16
    """Tokens of a KV block."""
    watermark_frac: float | None = None
    """Share of the blocks that an admission must leave free; None: the order's default, see ``watermark``."""
    kv_tokens: int | None = None
    """KV capacity of every session; None: what the model leaves free on its workers."""

    def __post_init__(self) -> None:
        allowed = [order.value for order in Order]
        require(self.order in allowed, "engine settings: order", f"one of {allowed}", self.order)
        object.__setattr__(self, "order", Order(self.order))
        require_count(self.max_num_seqs, "engine settings: max_num_seqs", at_least=1)
        require_count(self.block_size, "engine settings: block_size", at_least=1)
        if self.watermark_frac is not None:
            require_number(self.watermark_frac, "engine settings: watermark_frac", at_least=0)
            require(self.watermark_frac < 1, "engine settings: watermark_frac", "below 1", self.watermark_frac)
        if self.max_num_batched_tokens is not None:
            require_count(self.max_num_batched_tokens, "engine settings: max_num_batched_tokens", at_least=1)
        if self.order is Order.MIXED:
            # As in vLLM: with fewer tokens than sequences some decodes would have to sit out an iteration.
            require(
                self.batched_tokens(1) >= self.max_num_seqs,
                "engine settings: max_num_batched_tokens",
                f"at least max_num_seqs={self.max_num_seqs} when order is mixed",
                self.batched_tokens(1),
            )
        if self.kv_tokens is not None:
            require_count(self.kv_tokens, "engine settings: kv_tokens", at_least=self.block_size)

    @property
    def watermark(self) -> float:
        """Share of the blocks that an admission leaves free: V0's block manager keeps 1%, V1's keeps none."""
        if self.watermark_frac is not None:
            return self.watermark_frac
        return 0.0 if self.order is Order.MIXED else 0.01

    def batched_tokens(self, context_tokens: int) -> int:
        """Token budget of an iteration for a model of this context length."""
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        if self.order is Order.MIXED:
            return MIXED_BATCHED_TOKENS
        return max(context_tokens, MIXED_BATCHED_TOKENS)

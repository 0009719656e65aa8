"""Options of the simulated and the real engine, as on vLLM's command line."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from mosaic.core.checks import AtLeast1, Limit, Name, checked, require, require_count

MIXED_BATCHED_TOKENS = 2048
"""vLLM's default token budget of an iteration where prefills are chunked."""


class Order(StrEnum):
    """What one iteration may contain."""

    PREFILL_FIRST = "prefill_first"
    """vLLM 0.7.1 (V0): whole prompts whenever one can be admitted, else one decode step for all."""
    CHUNKED = "chunked"
    """vLLM 0.7.1 (V0) with chunked prefill, its default beyond 32k of context.

    Decodes come first, then chunks of prompts, under one token budget; without prefix caching, and with a watermark.
    """
    MIXED = "mixed"
    """vLLM's V1: as ``CHUNKED``, with prefix caching and without a watermark."""

    @property
    def chunks_prompts(self) -> bool:
        """Whether decodes and chunks of prompts share an iteration."""
        return self is not Order.PREFILL_FIRST


class Device(StrEnum):
    """The kind of device of a worker."""

    CPU = "cpu"
    """A group of cores; a session over several workers is one engine with a thread on each of their cores."""
    GPU = "gpu"
    """A GPU; a session over several workers splits the model by tensor parallelism."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("engine.")
class ModelLoading:
    """How a real engine loads a checkpoint; the simulated engine does not use it."""

    device: Device = Device.GPU
    dtype: Name = "auto"
    """Of weights and KV cache; auto: the checkpoint's own. CPU needs a type: only float32 gives repeatable results."""
    load_format: Literal["auto", "dummy"] = "auto"
    """dummy: random weights of the checkpoint's shapes; needs only config.json, for timing in replay mode."""
    enforce_eager: bool = True
    trust_remote_code: bool = False
    """Run the Python files of a checkpoint, for models that need them; they run with your rights."""

    def __post_init__(self) -> None:
        if self.device is Device.CPU:
            require(self.dtype != "auto", "engine.dtype", "a type by its name on CPU", self.dtype)

    @property
    def dummy_weights(self) -> bool:
        return self.load_format == "dummy"


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("engine.")
class EngineOptions:
    """Limits of one engine; the same for every expert, since real responses depend on them.

    The share of a GPU's memory for an engine is a property of the GPU, ``Gpu.memory_utilization_frac``.
    """

    max_num_seqs: AtLeast1 = 256
    max_num_batched_tokens: AtLeast1 | None = None
    """None: the engine's own default, see ``batched_tokens``."""
    block_size: AtLeast1 = 16
    """Tokens of a KV block; on CPU a multiple of 32."""
    kv_cache_tokens: AtLeast1 | None = None
    """KV capacity of every session; None: what fits into the memory."""
    kv_cache_memory_bytes: AtLeast1 | None = None
    """The same in bytes on each worker; None: the memory that the model leaves free. Give at most one of the two."""
    enable_prefix_caching: bool | None = None
    """Whether blocks keep their content until they are used again; None: yes, except with whole prompts (V0)."""
    order: Order = Order.PREFILL_FIRST
    """What an iteration contains, in simulation. A real vLLM uses the order of its version."""
    watermark_frac: Annotated[float, Limit(at_least=0, below=1)] | None = None
    """Share of the blocks that an admission must leave free (simulated); None: the default of the order."""
    scheduler_reserve_full_isl: bool = True
    """Whether an admission needs free blocks for the whole sequence, not only for its first chunk (simulated).

    Without chunks the two are the same.
    """
    loading: ModelLoading = field(default_factory=ModelLoading)

    def __post_init__(self) -> None:
        if self.kv_cache_tokens is not None:
            require_count(self.kv_cache_tokens, "engine.kv_cache_tokens", at_least=self.block_size)
        given = (self.kv_cache_tokens, self.kv_cache_memory_bytes)
        require(None in given, "engine.kv_cache_tokens", "null where kv_cache_memory_bytes is given", given)
        if self.order.chunks_prompts:
            # As in vLLM: with fewer tokens than sequences, some decodes would have to skip an iteration.
            require(
                self.batched_tokens(1) >= self.max_num_seqs,
                "engine.max_num_batched_tokens",
                f"at least max_num_seqs={self.max_num_seqs} when order is {self.order}",
                self.batched_tokens(1),
            )
        if self.loading.device is Device.CPU:
            require(self.block_size % 32 == 0, "engine.block_size", "a multiple of 32 on CPU", self.block_size)
            require(given != (None, None), "engine.kv_cache_memory_bytes", "a number of bytes on CPU", None)

    @property
    def caches_prefixes(self) -> bool:
        """Whether prompts start after the tokens that blocks still hold of them: V1's default."""
        if self.enable_prefix_caching is None:
            return self.order is Order.MIXED
        return self.enable_prefix_caching

    @property
    def watermark(self) -> float:
        """Share of the blocks that an admission leaves free: 1% in V0's block manager, none in V1's."""
        if self.watermark_frac is not None:
            return self.watermark_frac
        return 0.0 if self.order is Order.MIXED else 0.01

    def batched_tokens(self, context_tokens: int) -> int:
        """Token budget of an iteration for a model of this context length.

        By default max(context, 2048) for whole prompts and 2048 for chunks.
        """
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        if self.order.chunks_prompts:
            return MIXED_BATCHED_TOKENS
        return max(context_tokens, MIXED_BATCHED_TOKENS)

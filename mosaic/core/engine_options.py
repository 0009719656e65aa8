"""How engines run: the options a vLLM user gives on its command line, for the simulated engine and the real one."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from mosaic.core.checks import AtLeast1, Limit, Name, checked, require, require_count

MIXED_BATCHED_TOKENS = 2048
"""vLLM's default token budget of an iteration where prefills are chunked."""


class Order(StrEnum):
    """What an iteration may hold."""

    PREFILL_FIRST = "prefill_first"
    """vLLM 0.7.1 (V0): whole prompts whenever one can be admitted, else one decode step for all."""
    CHUNKED = "chunked"
    """vLLM 0.7.1 (V0) with chunked prefill, its default beyond 32k of context: decodes first, then chunks of prompts,
    under one token budget; without prefix caching, and with a watermark."""
    MIXED = "mixed"
    """vLLM's V1: as ``CHUNKED``, with prefix caching and without a watermark."""

    @property
    def chunks_prompts(self) -> bool:
        """Whether decodes and chunks of prompts share an iteration."""
        return self is not Order.PREFILL_FIRST


class Device(StrEnum):
    """What a worker is."""

    CPU = "cpu"
    """A group of cores; a session over several workers is one engine with a thread on each of their cores."""
    GPU = "gpu"
    """A GPU; a session over several workers splits the model by tensor parallelism."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("engine.")
class ModelLoading:
    """How a real engine loads a checkpoint, of which the simulated one knows nothing."""

    device: Device = Device.GPU
    dtype: Name = "auto"
    """Of weights and KV cache; auto: the checkpoint's own (not on CPU, where only float32 repeats itself)."""
    load_format: Literal["auto", "dummy"] = "auto"
    """dummy: random weights of the checkpoint's shapes; config.json is enough, for timing in replay mode."""
    enforce_eager: bool = True
    trust_remote_code: bool = False
    """Run the Python files that a checkpoint brings along, for models that need them; they may do what you may do."""

    def __post_init__(self) -> None:
        if self.device is Device.CPU:
            require(self.dtype != "auto", "engine.dtype", "a type by its name on CPU", self.dtype)

    @property
    def dummy_weights(self) -> bool:
        return self.load_format == "dummy"


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("engine.")
class EngineOptions:
    """Limits of one engine; the same for every expert, since real responses follow from them.

    The share of a GPU's memory that an engine takes is its kind's, ``Gpu.memory_utilization_frac``.
    """

    max_num_seqs: AtLeast1 = 256
    max_num_batched_tokens: AtLeast1 | None = None
    """None: the engine's own default, see ``batched_tokens``."""
    block_size: AtLeast1 = 16
    """Tokens of a KV block; on CPU a multiple of 32."""
    kv_cache_tokens: AtLeast1 | None = None
    """KV capacity of every session; None: what the memory holds."""
    kv_cache_memory_bytes: AtLeast1 | None = None
    """The same in bytes on each worker; None: what the model leaves free. At most one of the two is given."""
    enable_prefix_caching: bool | None = None
    """Whether blocks keep what they hold until they are used again; None: yes, but for whole prompts (V0)."""
    order: Order = Order.PREFILL_FIRST
    """What an iteration holds. A real vLLM does as its version has it; the simulated one follows this."""
    watermark_frac: Annotated[float, Limit(at_least=0, below=1)] | None = None
    """Share of the blocks that an admission must leave free (simulated); None: the order's own."""
    scheduler_reserve_full_isl: bool = True
    """Whether an admission needs free blocks for the whole sequence and not for its first chunk only (simulated).

    Where prompts stay whole the two are the same.
    """
    loading: ModelLoading = field(default_factory=ModelLoading)

    def __post_init__(self) -> None:
        if self.kv_cache_tokens is not None:
            require_count(self.kv_cache_tokens, "engine.kv_cache_tokens", at_least=self.block_size)
        given = (self.kv_cache_tokens, self.kv_cache_memory_bytes)
        require(None in given, "engine.kv_cache_tokens", "null where kv_cache_memory_bytes is given", given)
        if self.order.chunks_prompts:
            # As in vLLM: with fewer tokens than sequences some decodes would have to sit out an iteration.
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
        """Whether prompts start at what blocks still hold of them: V1's default."""
        if self.enable_prefix_caching is None:
            return self.order is Order.MIXED
        return self.enable_prefix_caching

    @property
    def watermark(self) -> float:
        """Share of the blocks that an admission leaves free: V0's block manager keeps 1%, V1's keeps none."""
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

"""What a worker process asks of an engine, and the plain values that go in and out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from mosaic.core.checks import require, require_count, require_name, require_number
from mosaic.core.workload import ExpertName

Prompt: TypeAlias = str | tuple[int, ...]
"""What an expert reads: a text, which the chat template of its checkpoint wraps, or token ids as they are."""
MORE_ROOM = "shorten the prompt, or raise context_tokens as far as the checkpoint allows"
"""What to do about a prompt that is too long for its expert."""


class Device(StrEnum):
    """What a worker is."""

    CPU = "cpu"
    """A group of cores; a session over several workers is one engine with a thread on each of their cores."""
    GPU = "gpu"
    """A GPU; a session over several workers splits the model by tensor parallelism."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How engines run; the same for every expert, since their responses follow from it."""

    device: Device = Device.CPU
    dtype: str = "float32"
    """Of weights and KV cache; auto: the checkpoint's own (not on CPU, where only float32 repeats itself)."""
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    block_size: int = 32
    """Tokens per KV block; on CPU a multiple of 32."""
    kv_cache_bytes: int | None = 64 * 2**20
    """Per worker; None: what the GPU has free."""
    memory_utilization_frac: float = 0.9
    """Share of a GPU's memory that an engine takes."""
    enforce_eager: bool = True
    prefix_caching: bool = True
    dummy_weights: bool = False
    """Random weights of the checkpoint's shapes: config.json is enough, for timing in replay mode."""
    trust_remote_code: bool = False
    """Run the Python files that a checkpoint brings along, for models that need them; they may do what you may do."""

    def __post_init__(self) -> None:
        if not isinstance(self.device, Device):
            allowed = [device.value for device in Device]
            require(self.device in allowed, "engine.device", f"one of {allowed}", self.device)
            object.__setattr__(self, "device", Device(self.device))
        require_name(self.dtype, "engine.dtype")
        require_count(self.max_num_seqs, "engine.max_num_seqs", at_least=1)
        require_count(self.block_size, "engine.block_size", at_least=1)
        if self.max_num_batched_tokens is not None:
            require_count(self.max_num_batched_tokens, "engine.max_num_batched_tokens", at_least=1)
        if self.kv_cache_bytes is not None:
            require_count(self.kv_cache_bytes, "engine.kv_cache_bytes", at_least=1)
        if not isinstance(self.trust_remote_code, bool):  # a "false" in quotes would be taken for consent
            raise TypeError(f"engine.trust_remote_code must be true or false, got {self.trust_remote_code!r}")
        require_number(self.memory_utilization_frac, "engine.memory_utilization_frac", above=0)
        require(self.memory_utilization_frac <= 1, "engine.memory_utilization_frac", "at most 1", self)
        if self.device is Device.CPU:
            require(self.block_size % 32 == 0, "engine.block_size", "a multiple of 32 on CPU", self.block_size)
            require(self.kv_cache_bytes is not None, "engine.kv_cache_bytes", "a number of bytes on CPU", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One expert on its workers: all that loading it needs."""

    expert: ExpertName
    checkpoint: Path
    context_tokens: int
    num_workers: int
    num_threads: int
    """Cores that the engine may use."""
    with_tokenizer: bool
    settings: EngineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation."""

    number: int
    """Unique among the requests of an engine."""
    prompt: Prompt
    seed: int
    temperature: float
    max_output_tokens: int
    """The response is cut off there, and before where the context ends."""
    output_tokens: int | None = None
    """Replay: write exactly so many, whatever they are."""
    generated: tuple[int, ...] = ()
    """Tokens of this call that another session has written: the engine goes on from there if it can."""


class Response(NamedTuple):
    """An ended generation; instants are seconds of the machine's monotonic clock."""

    number: int
    token_ids: tuple[int, ...]
    """Those that the request brought along come first, where the engine went on from them."""
    text: str | None
    """None: without a tokenizer there is no text."""
    finish_reason: str
    prompt_tokens: int | None
    """None: not known, as of a call that failed."""
    cached_tokens: int
    num_preemptions: int
    scheduled_ts: float | None
    first_token_ts: float | None
    """None: the engine cannot tell."""
    last_token_ts: float
    visible_tokens: int | None
    """Of the text without its thinking; None: not known."""
    thinking_opened: bool
    error: str | None = None
    """The call failed for this reason, in one line."""
    num_retries: int = 0
    """Tries that failed before the one that counts."""
    output_tokens: int | None = None
    """None: as many as there are token ids; some servers count tokens and do not give them."""


class Aborted(NamedTuple):
    """What a request had come to when it was aborted."""

    prompt_tokens: int | None
    """None: not known."""
    token_ids: tuple[int, ...]
    """What was written, as far as the engine can tell."""
    scheduled_ts: float | None
    first_token_ts: float | None


class Engine(Protocol):
    """A loaded model that serves requests with continuous batching."""

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises
        ------
        ValueError
            If this request cannot be served; the engine stays usable.
        """

    def step(self) -> Sequence[Response]:
        """Run one iteration and return what ended in it.

        Raises
        ------
        FatalEngineError
            If no call of the run will ever be served.
        """

    def abort(self, number: int) -> Aborted:
        """Drop a request that was submitted and whose response was not returned."""

    def progress(self) -> Mapping[int, int]:
        """Say how many tokens the requests under way have written, as far as the engine can tell."""


class EngineModule(Protocol):
    """A module that makes engines; named to the host process, which imports it once for all its workers."""

    def prepare(self, settings: EngineSettings) -> None:
        """Import whatever takes long; leave no device in use, since worker processes are forked afterwards."""

    def open_engine(self, spec: EngineSpec) -> Engine:
        """Load an expert."""

    def is_device_lost(self, error: Exception) -> bool:
        """Say whether an error means that the worker is broken, and not the session."""

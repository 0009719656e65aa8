"""Checks experts for vLLM engines on this machine before anything loads them, and specifies their engines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mosaic.core.checks import require
from mosaic.core.cluster import Cluster, Worker
from mosaic.core.engine_options import Device, EngineOptions
from mosaic.core.errors import BackendError, MosaicError
from mosaic.core.kv_memory import check_sparse_kv, free_kv_bytes
from mosaic.core.workload import Expert, ExpertName, SparseKv
from mosaic.engines.checkpoints import (
    Checkpoint,
    check_checkpoint,
    check_kv_memory,
    find_checkpoint,
    value_bytes,
)
from mosaic.engines.engine import EngineSpec
from mosaic.engines.requests import ServedExpert
from mosaic.engines.sparse_attention import UnstableHeads, read_heads, spread_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """Settings with which vLLM loads a checkpoint."""

    checkpoint: Path
    with_tokenizer: bool
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    """On each worker; None: the free memory of the GPU."""
    options: EngineOptions
    kv: SparseKv | None = None
    unstable: UnstableHeads | None = None
    """Given together with ``kv``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmEngines:
    """Engines of equal options."""

    options: EngineOptions
    with_tokenizer: bool = True
    """False: prompts are token ids and the responses are not read."""
    checkpoints: Path | None = None
    """Folder of checkpoints that are not given by path."""
    found: dict[ExpertName, Checkpoint] = field(default_factory=dict)
    """Checkpoints that passed the checks of this machine."""

    def served(self, expert: Expert) -> ServedExpert:
        """Check an expert's checkpoint, once.

        Raises
        ------
        CheckpointError
            If it cannot be loaded.
        """
        loading, checkpoint = self.options.loading, self.checkpoint(expert)
        if loading.device is Device.CPU and checkpoint.head_dim < 32:
            raise BackendError(f"expert {expert.name}: head_dim must be at least 32 on CPU, got {checkpoint.head_dim}")
        context_tokens = min(expert.context_limit, checkpoint.context_tokens or expert.context_limit)
        decides: tuple[str | int, ...] = (
            checkpoint.fingerprint,
            context_tokens,
            loading.dtype,
            loading.dummy_weights,
            loading.trust_remote_code,
            *_sparse_parts(expert, self._unstable(expert)),
        )
        return ServedExpert(
            expert=expert, context_tokens=context_tokens, vocab_size=checkpoint.vocab_size, decides=decides
        )

    def spec(self, expert: Expert, workers: Sequence[Worker]) -> EngineSpec:
        """Specify the engine of an expert on some workers.

        Raises
        ------
        CheckpointError
            If it cannot be loaded, or one of its calls would not fit into the KV cache.
        """
        checkpoint, context_tokens = self.checkpoint(expert), self.served(expert).context_tokens
        gpu, options = workers[0].gpu, self.options
        num_caches = 1 if options.loading.device is Device.CPU else len(workers)
        given = options.kv_cache_memory_bytes
        if options.kv_cache_tokens is not None:
            token_bytes = checkpoint.kv_values_per_token * value_bytes(options.loading.dtype)
            given = options.kv_cache_tokens * token_bytes // num_caches
        # Without weights of its own it gets random ones of its shape.
        weight_bytes = checkpoint.weight_bytes or None
        free = free_kv_bytes(gpu, expert, options, len(workers), weight_bytes) if given is None else given
        check_kv_memory(
            checkpoint,
            kv_cache_bytes=max(0, free) * num_caches,
            context_tokens=context_tokens,
            block_size=options.block_size,
            dtype=options.loading.dtype,
        )
        settings = VllmSettings(
            checkpoint=checkpoint.path,
            with_tokenizer=self.with_tokenizer,
            gpu_memory_utilization=gpu.memory_utilization_frac,
            kv_cache_memory_bytes=given,
            options=options,
            kv=expert.kv,
            unstable=self._unstable(expert),
        )
        return EngineSpec(
            expert=expert.name,
            num_workers=len(workers),
            context_tokens=context_tokens,
            max_num_seqs=options.max_num_seqs,
            settings=settings,
        )

    def elsewhere(self) -> "VllmEngines":
        """Return these engines for another machine, without checked checkpoints."""
        return replace(self, found={})

    def _unstable(self, expert: Expert) -> UnstableHeads | None:
        """Find the unstable heads of an expert with a sparse KV cache.

        Raises
        ------
        ValueError
            If real engines do not support it.
        """
        kv, owner, shape = expert.kv, f"expert {expert.name}: kv", expert.known_shape
        if kv is None:
            return None
        check_sparse_kv(expert.name, kv, self.options)
        on_cpu = self.options.loading.device is Device.CPU
        require(on_cpu, owner, "null on GPUs: real vLLM has it on CPU", kv.policy.value)
        require(
            kv.promoted_frac is None,
            f"{owner}.promoted_frac",
            "null on real engines: it is assumed by simulations only",
            kv.promoted_frac,
        )
        if kv.heads is None:
            return spread_heads(kv, shape.num_layers, shape.num_kv_heads)
        return read_heads(Path(kv.heads), kv, shape.num_layers, shape.num_kv_heads)

    def checkpoint(self, expert: Expert) -> Checkpoint:
        """Find and check an expert's checkpoint, once.

        Raises
        ------
        CheckpointError
            If it cannot be loaded.
        """
        if expert.name not in self.found:
            needed = {"weights": not self.options.loading.dummy_weights, "tokenizer": self.with_tokenizer}
            path = find_checkpoint(expert.checkpoint, self.checkpoints, **needed)
            self.found[expert.name] = check_checkpoint(path, **needed)
        return self.found[expert.name]


def _sparse_parts(expert: Expert, unstable: UnstableHeads | None) -> tuple[str, ...]:
    """List the parts of a sparse KV cache that a response depends on; empty without one, so old journals stay valid."""
    if expert.kv is None or unstable is None:
        return ()
    return repr(replace(expert.kv, heads=None)), repr(unstable.pairs)


def loading_problems(experts: Iterable[Expert], cluster: Cluster, engines: VllmEngines) -> list[str]:
    """List the experts that no worker can load, and why."""
    found = []
    for expert in experts:
        try:
            engines.spec(expert, cluster.workers[: expert.tp_degree])
        except (MosaicError, ValueError) as error:
            found.append(f"{expert.name}: {error}")
    return found

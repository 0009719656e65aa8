"""How much KV cache fits beside a model's weights: one arithmetic for plans, for simulated and for real engines."""

from collections.abc import Sequence

from mosaic.core.cluster import Gpu, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert

ACTIVATION_BYTES = 4 * 2**30
"""Memory kept for activations and CUDA graphs on each GPU.

Assumed: a prefill of 32k tokens through a 7-9B model peaks at about that, and it leaves a Llama-8B on 80 GB the
427k KV tokens that its engine reports.
"""


def free_kv_bytes(gpu: Gpu, weight_bytes: int, tp_degree: int) -> int:
    """Count the bytes that weights, split over so many GPUs, leave for the KV cache on each; negative: none."""
    return gpu.usable_bytes - weight_bytes // tp_degree - ACTIVATION_BYTES


def kv_capacity_tokens(expert: Expert, workers: Sequence[Worker], options: EngineOptions | None = None) -> int:
    """Count the KV tokens that a session holds; at most 0 when the weights do not fit.

    Parameters
    ----------
    expert, workers
        The session.
    options
        They may name the capacity; None: it is what the weights leave free.
    """
    if options is not None and options.kv_cache_tokens is not None:
        return options.kv_cache_tokens
    tp_degree = len(workers)
    free = min(free_kv_bytes(worker.gpu, expert.shape.weight_bytes, tp_degree) for worker in workers)
    if options is not None and options.kv_cache_memory_bytes is not None:
        free = options.kv_cache_memory_bytes
    return free // expert.shape.kv_bytes_per_token(tp_degree)


def fits_memory(expert: Expert, workers: Sequence[Worker]) -> bool:
    """Tell whether an expert can serve its longest call on these workers."""
    return kv_capacity_tokens(expert, workers) >= expert.context_tokens

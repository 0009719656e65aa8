"""Computes how much KV cache fits beside a model's weights: for plans, for simulated and for real engines."""

from collections.abc import Sequence

from mosaic.core.checks import require
from mosaic.core.cluster import Gpu, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert, SparseKv

LOGIT_BYTES = 20
"""Of one logit when sampling is profiled: in full precision, sorted, its index, and as a probability."""
CONTEXT_BYTES = 320 * 2**20
"""Context of the driver, libraries and captured graphs: from one recorded run on 24 GB (41,408 KV tokens)."""


def activation_bytes(expert: Expert, options: EngineOptions, tp_degree: int = 1) -> int:
    """Estimate the memory that an engine keeps free on each GPU beside weights and KV cache.

    vLLM measures it by an iteration that is as full as its limits allow. So it depends on these limits: the widest
    layer for every token, and the sampler for every sequence. The widest layer holds gate, up and their product, and
    the hidden state before and after. In a mixture of experts, the experts that a token passes through count.

    Parameters
    ----------
    expert, tp_degree
        The model, and the number of GPUs that share its layers; each samples from the whole vocabulary.
    options
        They limit an iteration.
    """
    shape = expert.known_shape
    ffn_size = 3 * shape.active_ffn_size // expert.attention_degree(tp_degree)
    layer_bytes = (ffn_size + 4 * shape.hidden_size) * shape.bytes_per_value
    logit_bytes = options.max_num_seqs * shape.vocab_size * LOGIT_BYTES
    return options.batched_tokens(expert.context_limit) * layer_bytes + logit_bytes + CONTEXT_BYTES


def free_kv_bytes(
    gpu: Gpu, expert: Expert, options: EngineOptions, tp_degree: int, weight_bytes: int | None = None
) -> int:
    """Compute the bytes on each GPU that the weights, split over the GPUs, leave for the KV cache; negative: none.

    ``weight_bytes`` is the size of a checkpoint that was read; None: computed from the expert's shape.
    """
    held_bytes = expert.weight_bytes_on_worker(tp_degree) if weight_bytes is None else weight_bytes // tp_degree
    return gpu.usable_bytes - held_bytes - activation_bytes(expert, options, tp_degree)


def kv_capacity_tokens(expert: Expert, workers: Sequence[Worker], options: EngineOptions) -> int:
    """Compute the KV tokens of a session, or of each of its ranks; at most 0 if the weights do not fit.

    The options may give the capacity; otherwise it is the memory that the weights leave free.
    """
    if options.kv_cache_tokens is not None:
        return options.kv_cache_tokens
    tp_degree = len(workers)
    free = options.kv_cache_memory_bytes
    if free is None:
        free = min(free_kv_bytes(worker.gpu, expert, options, tp_degree) for worker in workers)
    return free // expert.known_shape.kv_bytes_per_token(expert.attention_degree(tp_degree))


def fits_memory(expert: Expert, workers: Sequence[Worker], options: EngineOptions) -> bool:
    """Return whether an expert can serve its longest call on these workers; a given capacity is not checked."""
    if options.kv_cache_tokens is not None or options.kv_cache_memory_bytes is not None:
        return True
    return kv_capacity_tokens(expert, workers, options) >= expert.context_limit


def describe_need(expert: Expert) -> str:
    """Describe the memory that an expert needs on each GPU beside activations, for messages."""
    gib, degree = 2.0**30, expert.tp_degree
    weights = expert.weight_bytes_on_worker(degree) / gib
    cache = expert.known_shape.kv_bytes_per_token(expert.attention_degree(degree)) * expert.context_limit / gib
    return (
        f"{weights:.1f} GiB of weights and {cache:.1f} GiB of KV cache for one call of "
        f"context_tokens={expert.context_limit}"
    )


def check_sparse_kv(owner: str, kv: SparseKv | None, options: EngineOptions) -> None:
    """Check that an engine can keep an expert's KV cache as it is configured.

    Raises
    ------
    ValueError
        With prefix caching: shared blocks would be on the GPU for one request and in CPU memory for another. The
        authors' artifact refuses it too.
    """
    if kv is not None:
        rule = f"false with expert {owner}'s kv={kv.policy} (order=mixed has it on by default)"
        require(not options.caches_prefixes, "engine.enable_prefix_caching", rule, True)

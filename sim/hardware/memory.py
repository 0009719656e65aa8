"""What an engine's memory goes to: weights, activations, and the KV cache that is left."""

from mosaic.core.cluster import Gpu
from mosaic.core.workload import ModelShape

LOGIT_BYTES = 20
"""Of one logit when sampling is profiled: in full precision, sorted, the order, and as a probability."""
CONTEXT_BYTES = 320 * 2**20
"""Context of the driver, libraries and captured graphs: what one recorded run on 24 GB leaves (41,408 KV tokens)."""


def activation_bytes(shape: ModelShape, *, batched_tokens: int, max_num_seqs: int, tp_degree: int = 1) -> int:
    """Estimate what an engine keeps free on each GPU beside weights and KV cache.

    vLLM measures it by an iteration that is as full as its limits allow, so it follows from them: the widest layer
    (gate, up and their product, and the hidden state before and after) for every token, and the sampler for every
    sequence.

    Parameters
    ----------
    shape, tp_degree
        The model, and how many GPUs share its layers; each samples from the whole vocabulary.
    batched_tokens, max_num_seqs
        Limits of an iteration.
    """
    layer_bytes = (3 * shape.ffn_size // tp_degree + 4 * shape.hidden_size) * shape.bytes_per_value
    return batched_tokens * layer_bytes + max_num_seqs * shape.vocab_size * LOGIT_BYTES + CONTEXT_BYTES


def kv_capacity_tokens(
    gpu: Gpu, shape: ModelShape, *, batched_tokens: int, max_num_seqs: int, tp_degree: int = 1
) -> int:
    """Count the tokens of KV cache that fit beside weights and activations; below 1 where those do not fit."""
    activations = activation_bytes(shape, batched_tokens=batched_tokens, max_num_seqs=max_num_seqs, tp_degree=tp_degree)
    free_bytes = gpu.usable_bytes - shape.weight_bytes // tp_degree - activations
    return free_bytes // shape.kv_bytes_per_token(tp_degree)

"""What reading chosen pages alone does to a model's next tokens, teacher-forced, text by text."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from experiments.kv_heads.attention import FlexiCacheReader, decode, prefill
from mosaic.core.workload import SparseKv
from mosaic.engines.sparse_attention import UnstableHeads

DENSE = "dense"
PROFILED, RANDOM = "profiled", "random"
"""Which heads are protected as unstable."""


def measure_text(
    model: PreTrainedModel,
    number: int,
    tokens: Sequence[int],
    num_scored: int,
    profiled: UnstableHeads,
    budgets: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Score a text's last tokens densely and under every setting; what is random follows from its number.

    Yields
    ------
    row
        Of a table: the text and the setting (a dense model has a budget of 0), the mean negative log-likelihood of the
        tokens in nats, and the share of tokens whose most likely one is that of the dense model.
    """
    cache = prefill(model, tokens[: -num_scored - 1])
    steps, targets = tokens[-num_scored - 1 : -1], tokens[-num_scored:]
    dense = decode(model, steps, cache)
    yield {"text": number, "budget_pages": 0, "protected": DENSE, **_scores(dense, dense, targets)}
    num_layers, num_kv_heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    drawn = random_heads(len(profiled.pairs), num_layers, num_kv_heads, number)
    frac = len(profiled.pairs) / (num_layers * num_kv_heads)
    for budget in budgets:
        for protected, heads in ((PROFILED, profiled), (RANDOM, drawn)):
            reader = FlexiCacheReader(SparseKv(budget_pages=budget, unstable_frac=frac), heads)
            scores = _scores(decode(model, steps, cache, reader), dense, targets)
            yield {"text": number, "budget_pages": budget, "protected": protected, **scores}


def _scores(logits: Tensor, dense: Tensor, targets: Sequence[int]) -> dict[str, float]:
    agreement = (logits.argmax(-1) == dense.argmax(-1)).float().mean().item()
    nll = functional.cross_entropy(logits, logits.new_tensor(targets).long()).item()
    return {"nll": float(f"{nll:.6g}"), "agreement_frac": float(f"{agreement:.6g}")}


def random_heads(number: int, num_layers: int, num_kv_heads: int, seed: int) -> UnstableHeads:
    """Draw heads."""
    drawn = random.Random(seed).sample(range(num_layers * num_kv_heads), number)
    return UnstableHeads(tuple(divmod(head, num_kv_heads) for head in drawn))

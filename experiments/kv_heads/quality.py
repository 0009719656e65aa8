"""What reading chosen pages alone does to a model's next tokens, teacher-forced, text by text."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.kv_heads.llama import FlexiCacheReader, Llama, Reader
from mosaic.core.sparse_kv import SparseKv
from mosaic.engines.head_lists import UnstableHeads

DENSE = "dense"
PROFILED, RANDOM = "profiled", "random"
"""Which heads are protected as unstable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """One text under one setting."""

    text: int
    budget_pages: int
    """0: dense."""
    protected: str
    nll: float
    """Mean over the tokens, in nats."""
    agreement_frac: float
    """Tokens at which the most likely one is that of the dense model."""


def measure_text(
    model: Llama, number: int, tokens: Sequence[int], num_scored: int, profiled: UnstableHeads, budgets: Sequence[int]
) -> list[Quality]:
    """Score a text's last tokens densely and under every setting; what is random follows from its number."""
    prompt, rest = torch.tensor(tokens[: -num_scored - 1]), torch.tensor(tokens[-num_scored - 1 :])
    cache = model.prefill(prompt)
    dense = model.logits(rest[:-1], cache, None)
    best = dense.argmax(-1)
    found = [_quality(number, 0, DENSE, dense, best, rest[1:])]
    total = model.num_layers * model.num_kv_heads
    drawn = random_heads(len(profiled.pairs), model.num_layers, model.num_kv_heads, number)
    frac = len(profiled.pairs) / total
    for budget in budgets:
        for protected, heads in ((PROFILED, profiled), (RANDOM, drawn)):
            reader: Reader = FlexiCacheReader(SparseKv(budget_pages=budget, unstable_frac=frac), heads)
            logits = model.logits(rest[:-1], cache, reader)
            found.append(_quality(number, budget, protected, logits, best, rest[1:]))
    return found


def _quality(text: int, budget: int, protected: str, logits: Tensor, best: Tensor, targets: Tensor) -> Quality:
    nll = torch.nn.functional.cross_entropy(logits, targets).item()
    agreement = (logits.argmax(-1) == best).float().mean().item()
    return Quality(text=text, budget_pages=budget, protected=protected, nll=nll, agreement_frac=agreement)


def random_heads(number: int, num_layers: int, num_kv_heads: int, seed: int) -> UnstableHeads:
    """Draw heads."""
    drawn = random.Random(seed).sample(range(num_layers * num_kv_heads), number)
    return UnstableHeads(tuple(divmod(head, num_kv_heads) for head in drawn))

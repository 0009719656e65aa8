"""A checkpoint's decode steps with a choice of what is read, through transformers' own models.

Teacher-forced decode steps do not depend on each other's tokens, so all steps of a text go through a layer at once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mosaic.core.workload import PAGE_TOKENS
from mosaic.engines.sparse_attention import best_pages, page_scores, page_summaries

PAGED = "paged"
"""Name of the attention in transformers' registry."""


class Layer(NamedTuple):
    """Keys and queries of decode steps, as a layer's attention sees them."""

    queries: Tensor
    """Shape (T, H, G, D)."""
    keys: Tensor
    """Shape (H, L, D), of all tokens."""
    first: int
    """Place of the first step's token: step t reads first + t + 1 tokens."""


Reader: TypeAlias = Callable[[int, Layer], Tensor | None]
"""Selects the tokens that the steps of a layer read, by the layer's number, or only records them.

Gives booleans of shape (T, H, L), or None: all tokens. Those behind a step's own are masked in any case.
"""


def num_pages_of(layer: Layer) -> Tensor:
    """Count the pages of each step, shape (T,)."""
    lengths = layer.first + 1 + torch.arange(len(layer.queries))
    return (lengths + PAGE_TOKENS - 1) // PAGE_TOKENS


def fresh_pages(layer: Layer, budget_pages: int) -> Tensor:
    """Rank at every step in every head, shape (T, H, P): the last page, whose summary is not final, is read anyway."""
    scores = page_scores(layer.queries, *page_summaries(layer.keys))
    chosen: Tensor = best_pages(scores, num_pages_of(layer), budget_pages)
    return chosen


def causal(layer: Layer) -> Tensor:
    """Select the tokens up to each step's own, shape (T, L)."""
    lengths = layer.first + 1 + torch.arange(len(layer.queries))
    return torch.arange(layer.keys.shape[1]) < lengths[:, None]


def load_checkpoint(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load model and tokenizer of a folder, or of a GGUF file, in float32; the model's attention is open to readers."""
    is_gguf = path.suffix == ".gguf"
    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent if is_gguf else path}
    source |= {"gguf_file": path.name} if is_gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if is_gguf and _splits_digits(path):
        fast = tokenizer.backend_tokenizer
        fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), fast.pre_tokenizer])
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, attn_implementation=PAGED)
    return model, tokenizer


def _splits_digits(file: Path) -> bool:
    """Whether numbers are tokens digit by digit, as SmolLM has them, which transformers does not read of the file."""
    from gguf import GGUFReader

    return bool(GGUFReader(file).fields["tokenizer.ggml.pre"].contents() == "smollm")


@torch.inference_mode()
def prefill(model: PreTrainedModel, tokens: Sequence[int]) -> DynamicCache:
    """Read a prompt densely."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([tokens]), past_key_values=cache, logits_to_keep=1)
    return cache


@torch.inference_mode()
def decode(model: PreTrainedModel, tokens: Sequence[int], cache: DynamicCache, reader: Reader | None = None) -> Tensor:
    """Take decode steps for these tokens behind a prompt; shape (T, vocabulary). The cache stays the prompt's."""
    logits: Tensor = model(input_ids=torch.tensor([tokens]), past_key_values=cache, reader=reader).logits[0]
    cache.crop(-len(tokens))
    return logits


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    reader: Reader | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend in all steps of a layer to the tokens that the reader chooses; called by transformers."""
    queries = query[0].unflatten(0, (key.shape[1], -1))  # query heads that share a KV head stand together
    layer = Layer(queries.permute(2, 0, 1, 3), key[0], key.shape[2] - query.shape[2])
    read = None if reader is None else reader(module.layer_idx, layer)
    mask = causal(layer)[None, None] if read is None else (causal(layer)[:, None] & read).transpose(0, 1)[:, None]
    found = functional.scaled_dot_product_attention(
        queries,
        key[0][:, None].expand(-1, queries.shape[1], -1, -1),
        value[0][:, None].expand(-1, queries.shape[1], -1, -1),
        attn_mask=mask,
        scale=scaling,
    )
    return found.flatten(0, 1).transpose(0, 1)[None], None


AttentionInterface.register(PAGED, attend)
AttentionMaskInterface.register(PAGED, lambda *_, **__: None)  # readers see no padding

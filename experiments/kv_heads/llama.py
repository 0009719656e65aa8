"""A Llama-type checkpoint in plain torch, one sequence at a time: dense, or with FlexiCache's choice of pages.

Teacher-forced decode steps do not depend on each other's tokens, so all steps of a text go through a layer at once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mosaic.core.sparse_kv import PAGE_TOKENS, SparseKv
from mosaic.engines.head_lists import UnstableHeads
from mosaic.engines.page_selection import best_pages, page_scores, page_summaries, tokens_of

PREFILL_TOKENS = 256
"""Tokens of a prompt that are read at once: their attention takes memory for each pair."""


class Layer(NamedTuple):
    """Keys, values and queries of decode steps, as attention sees them."""

    queries: Tensor
    """Shape (T, H, G, D)."""
    keys: Tensor
    """Shape (H, L, D), of all tokens."""
    first: int
    """Place of the first step's token: step t reads first + t + 1 tokens."""


class Reader(Protocol):
    """Says which tokens the steps of a layer read."""

    def __call__(self, number: int, layer: Layer) -> Tensor:
        """Give booleans of shape (T, H, L); tokens behind a step's own are masked in any case."""


@dataclass(frozen=True)
class FlexiCacheReader:
    """Reads the pages that FlexiCache's heads choose."""

    kv: SparseKv
    unstable: UnstableHeads

    def __call__(self, number: int, layer: Layer) -> Tensor:
        pages = fresh_pages(layer, self.kv.budget_pages)
        num_steps, num_heads, num_pages = pages.shape
        unstable = self.unstable.of_layer(number)
        stable = [head for head in range(num_heads) if head not in unstable]
        ranked_at = torch.arange(num_steps) // self.kv.rerank_every * self.kv.rerank_every
        old = pages[ranked_at][:, stable]
        is_newer = torch.arange(num_pages) >= num_pages_of(layer)[ranked_at][:, None]
        pages[:, stable] = old | is_newer[:, None]
        return tokens_of(pages, layer.keys.shape[1])


def num_pages_of(layer: Layer) -> Tensor:
    """Count the pages of each step, shape (T,)."""
    lengths = layer.first + 1 + torch.arange(len(layer.queries))
    return (lengths + PAGE_TOKENS - 1) // PAGE_TOKENS


def fresh_pages(layer: Layer, budget_pages: int) -> Tensor:
    """Rank at every step in every head, shape (T, H, P): the last page, whose summary is not final, is read anyway."""
    scores = page_scores(layer.queries, *page_summaries(layer.keys))
    chosen: Tensor = best_pages(scores, num_pages_of(layer), budget_pages)
    return chosen


class Llama:
    """Weights and forward pass; everything in float32."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.num_layers: int = config["num_hidden_layers"]
        self.num_heads: int = config["num_attention_heads"]
        self.num_kv_heads: int = config["num_key_value_heads"]
        self.head_dim: int = config.get("head_dim") or config["hidden_size"] // self.num_heads
        self._epsilon: float = config["rms_norm_eps"]
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self._frequencies = theta ** -(torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        self._weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Read a prompt densely and give the keys and values of each layer, shapes (H, L, D)."""
        empty = torch.zeros((self.num_kv_heads, 0, self.head_dim))
        cache = [(empty, empty)] * self.num_layers
        for begin in range(0, len(tokens), PREFILL_TOKENS):
            hidden = self._embed(tokens[begin : begin + PREFILL_TOKENS])
            for number in range(self.num_layers):
                hidden, _, cache[number] = self._layer(number, hidden, cache[number], None)
        return cache

    @torch.inference_mode()
    def logits(self, tokens: Tensor, cache: list[tuple[Tensor, Tensor]], reader: Reader | None) -> Tensor:
        """Take decode steps for these tokens behind a prompt; shape (T, vocabulary). None: dense."""
        hidden = self._embed(tokens)
        for number in range(self.num_layers):
            hidden, _, _ = self._layer(number, hidden, cache[number], reader)
        hidden = self._norm(hidden, "model.norm")
        head = "lm_head.weight" if "lm_head.weight" in self._weights else "model.embed_tokens.weight"
        return hidden @ self._weights[head].T

    @torch.inference_mode()
    def layers(self, tokens: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[int, Layer]]:
        """Take dense decode steps and show each layer's attention."""
        hidden = self._embed(tokens)
        for number in range(self.num_layers):
            hidden, layer, _ = self._layer(number, hidden, cache[number], None)
            yield number, layer

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._weights["model.embed_tokens.weight"][tokens]

    def _norm(self, hidden: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self._epsilon)
        return hidden * scale * self._weights[f"{name}.weight"]

    def _rotate(self, values: Tensor, first: int) -> Tensor:
        """Apply rotary positions to (T, heads, D)."""
        angles = (first + torch.arange(len(values)).float())[:, None] * self._frequencies
        cos, sin = (part.repeat(1, 2)[:, None] for part in (angles.cos(), angles.sin()))
        low, high = values.chunk(2, dim=-1)
        return values * cos + torch.cat((-high, low), dim=-1) * sin

    def _layer(
        self, number: int, hidden: Tensor, before: tuple[Tensor, Tensor], reader: Reader | None
    ) -> tuple[Tensor, Layer, tuple[Tensor, Tensor]]:
        at, weights = f"model.layers.{number}", self._weights
        num_new, first = len(hidden), before[0].shape[1]
        normed = self._norm(hidden, f"{at}.input_layernorm")
        query, key, value = (
            (normed @ weights[f"{at}.self_attn.{name}_proj.weight"].T).view(num_new, -1, self.head_dim)
            for name in ("q", "k", "v")
        )
        queries = self._rotate(query, first).view(num_new, self.num_kv_heads, -1, self.head_dim)
        keys = torch.cat((before[0], self._rotate(key, first).transpose(0, 1)), dim=1)
        values = torch.cat((before[1], value.transpose(0, 1)), dim=1)
        layer = Layer(queries, keys, first)
        attended = attend_steps(layer, values, None if reader is None else reader(number, layer))
        hidden = hidden + attended.reshape(num_new, -1) @ weights[f"{at}.self_attn.o_proj.weight"].T
        normed = self._norm(hidden, f"{at}.post_attention_layernorm")
        gate = functional.silu(normed @ weights[f"{at}.mlp.gate_proj.weight"].T)
        wide = gate * (normed @ weights[f"{at}.mlp.up_proj.weight"].T)
        return hidden + wide @ weights[f"{at}.mlp.down_proj.weight"].T, layer, (keys, values)


def causal(layer: Layer) -> Tensor:
    """Select the tokens up to each step's own, shape (T, L)."""
    lengths = layer.first + 1 + torch.arange(len(layer.queries))
    return torch.arange(layer.keys.shape[1]) < lengths[:, None]


def attend_steps(layer: Layer, values: Tensor, read: Tensor | None) -> Tensor:
    """Attend in all steps to the tokens that they read, shape (T, H, G, D)."""
    mask = causal(layer)[None, None] if read is None else (causal(layer)[:, None] & read).transpose(0, 1)[:, None]
    queries = layer.queries.permute(1, 2, 0, 3)
    num_group = queries.shape[1]
    found = functional.scaled_dot_product_attention(
        queries,
        layer.keys[:, None].expand(-1, num_group, -1, -1),
        values[:, None].expand(-1, num_group, -1, -1),
        attn_mask=mask,
    )
    return found.permute(2, 0, 1, 3)

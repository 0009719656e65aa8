"""A decoder of the Llama architecture in plain torch, as small as the tiny pool's models are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.tiny_pool.prompts import JUDGE, SHAPE

ROPE_THETA = 10_000.0
NORM_EPSILON = 1e-5
_OPEN_FRAC = 0.75


class Cache(NamedTuple):
    """Keys and values of a layer, (batch, heads, context, head_dim), filled from the left."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        width = SHAPE.num_query_heads * SHAPE.head_dim
        self.q_proj = nn.Linear(SHAPE.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(SHAPE.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(SHAPE.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, SHAPE.hidden_size, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache | None, at: int) -> Tensor:
        q, k, v = (_by_head(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _turned(q, *turn), _turned(k, *turn)
        if cache is not None:
            end = at + x.shape[1]
            cache.keys[:, :, at:end], cache.values[:, :, at:end] = k, v
            k, v = cache.keys[:, :, :end], cache.values[:, :, :end]
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """The gated layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(SHAPE.hidden_size, SHAPE.ffn_size, bias=False)
        self.up_proj = nn.Linear(SHAPE.hidden_size, SHAPE.ffn_size, bias=False)
        self.down_proj = nn.Linear(SHAPE.ffn_size, SHAPE.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual path."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = FeedForward()
        self.input_layernorm = nn.RMSNorm(SHAPE.hidden_size, eps=NORM_EPSILON)
        self.post_attention_layernorm = nn.RMSNorm(SHAPE.hidden_size, eps=NORM_EPSILON)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache | None, at: int, wanted: Tensor | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, cache, at)
        if wanted is not None:
            x = x[wanted]
        return x + self.mlp(self.post_attention_layernorm(x))


class TinyModel(nn.Module):
    """The whole decoder; its parameters are named as in a Llama checkpoint, less the prefix ``model.``."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(SHAPE.vocab_size, SHAPE.hidden_size)
        self.layers = nn.ModuleList(Layer() for _ in range(SHAPE.num_layers))
        self.norm = nn.RMSNorm(SHAPE.hidden_size, eps=NORM_EPSILON)
        frequencies = ROPE_THETA ** (-torch.arange(0, SHAPE.head_dim, 2) / SHAPE.head_dim)
        angles = torch.outer(torch.arange(JUDGE.context_tokens), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 if parameter is self.embed_tokens.weight else 0.05)

    def states(self, ids: Tensor, caches: Sequence[Cache] = (), at: int = 0, wanted: Tensor | None = None) -> Tensor:
        """Return the states that score the next tokens.

        Parameters
        ----------
        ids
            Tokens, (batch, positions), at positions from ``at`` on.
        caches
            Of the layers; none: all that comes before is in ``ids``.
        at
            Position of the first token.
        wanted
            Mask of the states to return, (batch, positions), which then are (wanted, hidden); None: all of them.
        """
        x = self.embed_tokens(ids)
        turn = self.cos[at : at + ids.shape[1]], self.sin[at : at + ids.shape[1]]
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1  # only this one may leave states out: no layer attends to them
            x = layer(x, turn, caches[number] if caches else None, at, wanted if last else None)
        return self.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Score all tokens; the embedding is the head too."""
        return functional.linear(states, self.embed_tokens.weight)

    def empty_caches(self, batch: int, context: int) -> list[Cache]:
        """Make room for the keys and values of a batch."""
        size = (batch, SHAPE.num_kv_heads, context, SHAPE.head_dim)
        return [Cache(torch.zeros(size), torch.zeros(size)) for _ in self.layers]


def _by_head(x: Tensor) -> Tensor:
    return x.unflatten(2, (SHAPE.num_query_heads, SHAPE.head_dim)).transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


@torch.inference_mode()
def generate(
    model: TinyModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_output_tokens: int,
    end_id: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 256,
) -> list[list[int]]:
    """Continue prompts of any lengths up to the end token, which is left out; temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    written: list[list[int]] = [[] for _ in prompts]
    left = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    while left:
        length = len(prompts[left[0]])
        rows = [number for number in left[:batch] if len(prompts[number]) == length]
        left = left[len(rows) :]
        ids = torch.tensor([list(prompts[number]) for number in rows])
        outputs = _continue(model, ids, max_output_tokens, end_id, temperature, generator)
        for number, output in zip(rows, outputs, strict=True):
            written[number] = output
    return written


def _continue(
    model: TinyModel, ids: Tensor, max_output_tokens: int, end_id: int, temperature: float, generator: torch.Generator
) -> list[list[int]]:
    """Continue prompts of one length."""
    outputs: list[list[int]] = [[] for _ in ids]
    at, rows, open_rows = ids.shape[1], list(range(len(ids))), set(range(len(ids)))
    caches = model.empty_caches(len(ids), at + max_output_tokens)
    states = model.states(ids, caches)[:, -1:]
    while open_rows and len(outputs[min(open_rows)]) < max_output_tokens:
        picked = _pick(model.logits(states[:, -1]), temperature, generator)
        for row, token in zip(rows, picked.tolist(), strict=True):
            if row in open_rows and token != end_id:
                outputs[row].append(token)
            else:
                open_rows.discard(row)
        if len(open_rows) < _OPEN_FRAC * len(rows):  # closed rows run on until dropping them pays for the copy
            kept = [place for place, row in enumerate(rows) if row in open_rows]
            rows, picked = [rows[place] for place in kept], picked[kept]
            caches = [Cache(cache.keys[kept], cache.values[kept]) for cache in caches]
        if open_rows:
            states = model.states(picked[:, None], caches, at)
            at += 1
    return outputs


def _pick(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    # NOTE: multinomial draws a number per token of the vocabulary, which costs as much as the model itself.
    heights = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
    reached = heights[:, -1:] * torch.rand((len(heights), 1), generator=generator)
    return torch.searchsorted(heights, reached, right=True)[:, 0].clamp(max=logits.shape[1] - 1)

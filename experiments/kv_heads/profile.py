"""Measures how stable each KV head's best pages are, finds the unstable heads, and what a budget covers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.kv_heads.attention import Layer, causal, decode, fresh_pages, num_pages_of, prefill
from mosaic.core.workload import PAGE_TOKENS, SparseKv
from mosaic.engines.sparse_attention import UnstableHeads


@dataclass(frozen=True, slots=True)
class HeadProfile:
    """One document's decode steps under one policy; shapes (layers, KV heads)."""

    overlap: Tensor
    """Share of a ranking's best pages that are among the best one window later: the head's stability."""
    promoted: Tensor
    """Share of the best pages at a ranking that were there at the one before and were not among its best."""
    recall: Tensor
    """Share of the pages with the most attention that scores find, as many as are read."""
    mass: Tensor
    """Attention that falls on the pages that are read."""


def profile_document(model: PreTrainedModel, tokens: Sequence[int], num_steps: int, kv: SparseKv) -> HeadProfile:
    """Read all but the last tokens as a prompt, decode those densely, and record every layer."""
    rows: list[tuple[Tensor, ...]] = []

    def look(number: int, layer: Layer) -> None:
        chosen = fresh_pages(layer, kv.budget_pages)
        rankings = slice(None, None, kv.rerank_every)
        changes = window_changes(chosen[rankings], num_pages_of(layer)[rankings])
        rows.append((*changes, *attention_caught(layer, chosen)))

    decode(model, tokens[-num_steps:], prefill(model, tokens[:-num_steps]), look)
    return HeadProfile(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def window_changes(ranked: Tensor, num_pages: Tensor) -> tuple[Tensor, Tensor]:
    """Compare each ranking with the one before.

    Parameters
    ----------
    ranked
        Best pages, shape (R, H, P).
    num_pages
        Pages that there were, shape (R,).

    Returns
    -------
    overlap, promoted
        Means over windows, shapes (H,): of the best pages before, those that stay; of the best pages after, those that
        were there before and have to come back.
    """
    before, after = ranked[:-1], ranked[1:]
    was_there = torch.arange(ranked.shape[-1]) < num_pages[:-1, None]
    stay = (before & after).sum(-1) / before.sum(-1)
    come = (after & ~before & was_there[:, None]).sum(-1) / after.sum(-1)
    return stay.mean(0), come.mean(0)


def attention_caught(layer: Layer, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Recall of the pages with the most attention, and the attention on what is chosen; means over steps."""
    num_steps, num_heads, num_pages = chosen.shape
    scores = torch.einsum("thgd,hld->htgl", layer.queries, layer.keys) / layer.queries.shape[-1] ** 0.5
    weights = scores.masked_fill(~causal(layer)[None, :, None], float("-inf")).softmax(-1).mean(2)
    padded = torch.zeros((num_heads, num_steps, num_pages * PAGE_TOKENS))
    padded[..., : weights.shape[-1]] = weights
    by_page = padded.view(num_heads, num_steps, num_pages, PAGE_TOKENS).sum(-1).transpose(0, 1)
    number = min(int(chosen[0, 0].sum()), num_pages)
    truly = torch.zeros_like(chosen).scatter_(-1, by_page.topk(number, dim=-1).indices, True)
    recall = (truly & chosen).sum(-1) / number
    return recall.mean(0), (by_page * chosen).sum(-1).mean(0)


def consensus(overlaps: Sequence[Tensor], kv: SparseKv) -> UnstableHeads:
    """Choose the heads that most documents count among their least stable ones; of equals the less stable one."""
    num_kv_heads = overlaps[0].shape[1]
    stacked = torch.stack(list(overlaps)).flatten(1)
    total = stacked.shape[1]
    number = kv.num_unstable(total)
    votes = torch.zeros(total)
    for overlap in stacked:
        votes[overlap.argsort(stable=True)[:number]] += 1
    means = stacked.mean(0)
    order = sorted(range(total), key=lambda head: (-votes[head].item(), means[head].item()))
    return UnstableHeads(tuple(divmod(head, num_kv_heads) for head in order[:number]))


def shared_frac(one: UnstableHeads, other: UnstableHeads) -> float:
    """Share of a list that is in another of the same length."""
    return len(set(one.pairs) & set(other.pairs)) / len(one.pairs)

"""Which pages of a KV cache a decode step reads, by FlexiCache's rule; tensors in, tensors out.

NOTE: shapes are in numbers of KV heads H, queries per KV head G, pages P, tokens L, head size D. Nothing here imports
torch: its tensors know how to compute.
"""

from typing import Any, TypeAlias

from mosaic.core.workload import PAGE_TOKENS

Tensor: TypeAlias = Any


def page_summaries(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Take the least and the largest key of each page, element by element; the last page may be begun only.

    Parameters
    ----------
    keys
        Shape (H, L, D).

    Returns
    -------
    least, largest
        Shapes (H, P, D).
    """
    num_heads, num_tokens, size = keys.shape
    num_full = num_tokens // PAGE_TOKENS
    full = keys[:, : num_full * PAGE_TOKENS].reshape(num_heads, num_full, PAGE_TOKENS, size)
    least, largest = full.amin(dim=2), full.amax(dim=2)
    if num_full * PAGE_TOKENS == num_tokens:
        return least, largest
    rest = keys[:, num_full * PAGE_TOKENS :]
    last = keys.new_empty((num_heads, num_full + 1, size))
    first = last.clone()
    first[:, :-1], first[:, -1] = least, rest.amin(dim=1)
    last[:, :-1], last[:, -1] = largest, rest.amax(dim=1)
    return first, last


def page_scores(queries: Tensor, least: Tensor, largest: Tensor) -> Tensor:
    """Bound what a query may find in each page: sum over j of max(q_j k_min_j, q_j k_max_j), largest over a group.

    Parameters
    ----------
    queries
        Shape (..., H, G, D).
    least, largest
        Shapes (H, P, D).

    Returns
    -------
    scores
        Shape (..., H, P).
    """
    up, down = queries.clamp(min=0), queries.clamp(max=0)
    bounds = up @ largest.transpose(-1, -2) + down @ least.transpose(-1, -2)
    return bounds.amax(dim=-2)


def best_pages(scores: Tensor, num_pages: Tensor | int, budget_pages: int) -> Tensor:
    """Choose the best pages; the last one is always among them.

    Parameters
    ----------
    scores
        Shape (..., H, P).
    num_pages
        Pages that there are, shape (...) or one number; later ones are not.
    budget_pages
        How many are read, or all where there are no more.

    Returns
    -------
    chosen
        Booleans, shape (..., H, P).
    """
    most = scores.shape[-1]
    places = scores.new_ones(most).cumsum(0) - 1
    if not isinstance(num_pages, int):
        num_pages = num_pages[..., None, None]
    scores = scores.masked_fill(places >= num_pages, float("-inf"))
    scores = scores.masked_fill(places == num_pages - 1, float("inf"))
    if budget_pages >= most:
        return scores > float("-inf")
    chosen = scores.new_zeros(scores.shape).bool()
    return chosen.scatter_(-1, scores.topk(budget_pages, dim=-1).indices, True) & (scores > float("-inf"))


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float, read: Tensor) -> Tensor:
    """Attend to some tokens.

    Parameters
    ----------
    queries, keys, values
        Shapes (H, G, D) or (H, G x T, D), (H, L, D), (H, L, D).
    scale
        Of the scores.
    read
        Booleans that select tokens, broadcast to (H, queries, L).

    Returns
    -------
    output
        Shape of the queries.
    """
    scores = (queries @ keys.transpose(-1, -2)) * scale
    weights = scores.masked_fill(~read, float("-inf")).softmax(dim=-1)
    return weights @ values


def tokens_of(pages: Tensor, num_tokens: int) -> Tensor:
    """Spread choices of pages, shape (..., P), over their tokens, shape (..., L)."""
    return pages.repeat_interleave(PAGE_TOKENS, dim=-1)[..., :num_tokens]

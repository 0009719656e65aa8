"""FlexiCache on vLLM for CPUs: selects unstable heads and the pages of a step, and computes attention over them.

NOTE: heads really read only their chosen pages, so answers are those of the policy. The memory is not tiered: vLLM's
block tables are shared by all heads, so every page stays where it is. Summaries are recomputed from the keys when pages
are ranked.

Shapes are in numbers of KV heads H, queries per KV head G, pages P, tokens L, head size D. This module does not import
torch: it only uses methods of its tensors.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from mosaic.core.checks import require, require_count
from mosaic.core.errors import BackendError
from mosaic.core.json_file import read_json
from mosaic.core.workload import PAGE_TOKENS, SparseKv

Tensor: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class UnstableHeads:
    """Pairs of layer and KV head, in order."""

    pairs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        pairs = tuple(sorted((layer, head) for layer, head in self.pairs))
        object.__setattr__(self, "pairs", pairs)
        for layer, head in pairs:
            require_count(layer, "unstable heads: layer")
            require_count(head, "unstable heads: head")
        require(len(set(pairs)) == len(pairs), "unstable heads: pairs", "distinct", pairs)

    def of_layer(self, layer: int) -> tuple[int, ...]:
        """List the heads of a layer."""
        return tuple(head for at, head in self.pairs if at == layer)


def spread_heads(kv: SparseKv, num_layers: int, num_kv_heads: int) -> UnstableHeads:
    """Select a policy's number of heads, at equal distances over the model: for models without a profile.

    Examples
    --------
    >>> spread_heads(SparseKv(unstable_frac=0.25), 4, 2).pairs
    ((0, 0), (2, 0))
    """
    total = num_layers * num_kv_heads
    number = kv.num_unstable(total)
    return UnstableHeads(tuple(divmod(place * total // number, num_kv_heads) for place in range(number)))


def write_heads(path: Path, heads: UnstableHeads) -> None:
    """Write a list as JSON: an object with the pairs of layer and KV head."""
    path.write_text(json.dumps({"pairs": heads.pairs}) + "\n", encoding="utf-8")


def read_heads(path: Path, kv: SparseKv, num_layers: int, num_kv_heads: int) -> UnstableHeads:
    """Read a list, for a model of this many layers and heads.

    Raises
    ------
    BackendError
        If the file is no such list.
    ValueError
        If it is for another model, or has another number of heads than the policy.
    """
    label = "expert.kv: heads"
    heads = read_json(path, UnstableHeads, label, BackendError)
    for layer, head in heads.pairs:
        rule = f"below {num_layers} layers of {num_kv_heads} KV heads"
        require(layer < num_layers and head < num_kv_heads, f"{label} {path}: pair", rule, [layer, head])
    number = kv.num_unstable(num_layers * num_kv_heads)
    rule = f"{number} pairs, as unstable_frac={kv.unstable_frac:g} says"
    require(len(heads.pairs) == number, f"{label} {path}", rule, len(heads.pairs))
    return heads


def page_summaries(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the smallest and the largest key of each page, element by element; the last page may be incomplete.

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
    num_pages = -(-num_tokens // PAGE_TOKENS)
    places = keys.new_ones(num_pages * PAGE_TOKENS).long().cumsum(0) - 1
    places = places.clamp(max=num_tokens - 1)  # the last token fills the rest of its page
    pages = keys[:, places].reshape(num_heads, num_pages, PAGE_TOKENS, size)
    return pages.amin(dim=2), pages.amax(dim=2)


def page_scores(queries: Tensor, least: Tensor, largest: Tensor) -> Tensor:
    """Bound a query's score in each page: sum over j of max(q_j k_min_j, q_j k_max_j), largest over a group.

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
        Number of existing pages, shape (...) or one number; later ones do not exist.
    budget_pages
        Number of pages to read; all if there are no more.

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
    """Compute attention over some tokens.

    Parameters
    ----------
    queries, keys, values
        Shapes (H, G, D) or (H, G x T, D), (H, L, D), (H, L, D).
    scale
        Scale of the scores.
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


_installed: list[tuple[SparseKv, UnstableHeads]] = []


def install(kv: SparseKv, heads: UnstableHeads) -> None:
    """Use a sparse KV cache in all engines that this process loads from now on."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.attention.selector import _cached_get_attn_backend

    _installed[:] = [(kv, heads)]
    _cached_get_attn_backend.cache_clear()
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.SparseCpuBackend")  # CpuPlatform ignores CUSTOM


def uninstall() -> None:
    """Use vLLM's own KV cache in all engines that this process loads from now on."""
    if not _installed:
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.attention.selector import _cached_get_attn_backend

    _installed.clear()
    _cached_get_attn_backend.cache_clear()
    AttentionBackendEnum.CPU_ATTN.clear_override()


class RequestPages:
    """The pages of one request that the heads of one layer read."""

    def __init__(self, kv: SparseKv, unstable: Sequence[int], num_heads: int) -> None:
        self._kv = kv
        self._unstable = list(unstable)
        self._stable = [head for head in range(num_heads) if head not in set(unstable)]
        self._num_steps = 0
        self._ranked: Tensor | None = None
        """Of the stable heads at their last ranking, shape (stable heads, pages then)."""

    def choose(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Choose the tokens that each head reads in the next step, shape (H, L).

        Parameters
        ----------
        queries, keys
            Shapes (H, G, D) and (H, L, D), the token being computed among them.
        """
        num_heads, num_tokens, _ = keys.shape
        num_pages = -(-num_tokens // PAGE_TOKENS)
        ranks = self._num_steps % self._kv.rerank_every == 0
        self._num_steps += 1
        pages = keys.new_ones((num_heads, num_pages)).bool()
        heads = [*self._unstable, *(self._stable if ranks else [])]
        if heads:
            scores = page_scores(queries[heads], *page_summaries(keys[heads]))
            pages[heads] = best_pages(scores, num_pages, self._kv.budget_pages)
        if self._stable:
            self._keep(pages, ranks)
        return tokens_of(pages, num_tokens)

    def _keep(self, pages: Tensor, ranks: bool) -> None:
        """Keep the stable heads' best pages, or their earlier pages and all newer ones."""
        ranked = self._ranked
        if ranks:
            self._ranked = pages[self._stable].clone()
            return
        assert ranked is not None, "the first step ranks"
        kept = pages[self._stable]
        kept[:, : ranked.shape[1]] = ranked
        pages[self._stable] = kept


def __getattr__(name: str) -> Any:
    """Return the backend's class by its name, as vLLM resolves it: it derives from vLLM's, which is imported late."""
    if name == "SparseCpuBackend":
        return _backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _backend() -> type:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

    class SparseCpuImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
        """One layer's attention, in PyTorch: dense for prompts, pages for decodes."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.policy, self.heads = _installed[0]
            self.pages: dict[int, RequestPages] = {}
            """Of each running request, by its first block, which it does not share."""

        def do_kv_cache_update(self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> None:
            block_size, size = kv_cache.shape[2], self.head_size
            blocks, offsets = slots // block_size, slots % block_size
            kv_cache[blocks, :, offsets, :size] = key[: len(slots)]
            kv_cache[blocks, :, offsets, size:] = value[: len(slots)]

        def forward(
            self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, attn_metadata: Any,
            output: Tensor, *args: Any, **kwargs: Any,
        ) -> Tensor:  # fmt: skip
            if attn_metadata is not None:
                layer_number = int(layer.layer_name.split(".layers.")[1].split(".")[0])
                _attend_all(self, layer_number, query, kv_cache, attn_metadata, output)
            return output

    class SparseCpuBackend(CPUAttentionBackend):  # type: ignore[misc]
        """vLLM's backend for CPUs with another implementation of attention."""

        @staticmethod
        def get_impl_cls() -> type:
            return SparseCpuImpl

    return SparseCpuBackend


def _attend_all(impl: Any, layer: int, query: Tensor, kv_cache: Tensor, metadata: Any, output: Tensor) -> None:
    """Compute attention for every request of a batch."""
    starts, lengths = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
    size, num_heads = impl.head_size, impl.num_kv_heads
    for number, num_tokens in enumerate(lengths):
        begin, end = starts[number], starts[number + 1]
        if end == begin:
            continue
        table = metadata.block_table[number, : -(-num_tokens // kv_cache.shape[2])]
        cached = kv_cache[table].transpose(0, 1).reshape(num_heads, -1, 2 * size)[:, :num_tokens]
        queries = query[begin:end].reshape(end - begin, num_heads, -1, size)
        found = _attend_one(impl, layer, int(table[0]), queries, cached[..., :size], cached[..., size:])
        output[begin:end] = found.reshape(output[begin:end].shape)


def _attend_one(impl: Any, layer: int, first_block: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute attention for one request: queries (T, H, G, D) of its last T tokens."""
    num_new, num_heads, group, size = queries.shape
    num_tokens = keys.shape[1]
    if num_new == num_tokens:  # its prompt, and after a preemption also its written tokens
        impl.pages[first_block] = RequestPages(impl.policy, impl.heads.of_layer(layer), num_heads)
    if num_new == 1 < num_tokens:
        read = impl.pages[first_block].choose(queries[0], keys)[:, None]
    else:
        ages = keys.new_ones(num_tokens).cumsum(0)
        read = (ages[None] <= ages[num_tokens - num_new :, None]).repeat_interleave(group, dim=0)[None]
    flat = queries.permute(1, 0, 2, 3).reshape(num_heads, num_new * group, size)
    found = attend(flat, keys, values, impl.scale, read)
    return found.reshape(num_heads, num_new, group, size).transpose(0, 1)

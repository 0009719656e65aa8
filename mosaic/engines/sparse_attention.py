"""FlexiCache on vLLM for CPUs: an attention backend registered from outside, with real page selection.

NOTE: heads really read their chosen pages only, so answers are those of the policy. The memory is not tiered: vLLM's
block tables are shared by all heads, so every page stays where it is, and what a GPU would hold and what would cross
its link to the host is counted. Summaries are recomputed from the keys when pages are ranked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from mosaic.core.workload import PAGE_TOKENS, SparseKv
from mosaic.engines.head_lists import UnstableHeads
from mosaic.engines.page_selection import attend, best_pages, page_scores, page_summaries, tokens_of

Tensor = Any


@dataclass(slots=True)
class SparseCounts:
    """What a GPU with tiers would have held and moved, over all layers and decode steps, in pages of one head."""

    num_steps: int = 0
    """Decodes of one request in one layer."""
    held_pages: int = 0
    all_pages: int = 0
    read_pages: int = 0
    promoted_pages: int = 0
    """Fetched at rankings of stable heads."""
    ranked_pages: int = 0
    """Best pages at those rankings, the first of a request not among them."""

    @property
    def promoted_frac(self) -> float:
        """Share of the best pages that a ranking fetches."""
        return self.promoted_pages / self.ranked_pages if self.ranked_pages else 0.0

    def clear(self) -> None:
        """Start anew."""
        for field in fields(self):
            setattr(self, field.name, 0)


COUNTS = SparseCounts()
"""Of this process, which serves one engine at a time."""
_installed: list[tuple[SparseKv, UnstableHeads]] = []


def install(kv: SparseKv, heads: UnstableHeads) -> None:
    """Let the engines that this process loads from now on keep their KV cache so."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.attention.selector import _cached_get_attn_backend

    _installed[:] = [(kv, heads)]
    _cached_get_attn_backend.cache_clear()
    COUNTS.clear()
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.SparseCpuBackend")  # CpuPlatform ignores CUSTOM


def uninstall() -> None:
    """Let the engines that this process loads from now on keep their KV cache as vLLM does."""
    if not _installed:
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.attention.selector import _cached_get_attn_backend

    _installed.clear()
    _cached_get_attn_backend.cache_clear()
    AttentionBackendEnum.CPU_ATTN.clear_override()


class RequestPages:
    """The pages that the heads of one layer read of one request."""

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
        self._count(pages)
        return tokens_of(pages, num_tokens)

    def _keep(self, pages: Tensor, ranks: bool) -> None:
        """Take the stable heads' best pages, or what they had and all that came since."""
        ranked = self._ranked
        if ranks:
            chosen = pages[self._stable]
            if ranked is not None:
                num_old = ranked.shape[1]
                COUNTS.promoted_pages += int((chosen[:, :num_old] & ~ranked).sum())
                COUNTS.ranked_pages += int(chosen.sum())
            self._ranked = chosen.clone()
            return
        assert ranked is not None, "the first step ranks"
        kept = pages[self._stable]
        kept[:, : ranked.shape[1]] = ranked
        pages[self._stable] = kept

    def _count(self, pages: Tensor) -> None:
        num_heads, num_pages = pages.shape
        COUNTS.num_steps += 1
        COUNTS.all_pages += num_heads * num_pages
        COUNTS.read_pages += int(pages.sum())
        COUNTS.held_pages += len(self._unstable) * num_pages
        COUNTS.held_pages += int(pages[self._stable].sum()) if self._stable else 0


def __getattr__(name: str) -> Any:
    """Give the backend's class by its name, as vLLM resolves it: it derives from vLLM's, which is imported late."""
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
            """Of each running request, by its first block, which it shares with none."""

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
    """Attend for every request of a batch."""
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
    """Attend for one request: queries (T, H, G, D) of its last T tokens."""
    num_new, num_heads, group, size = queries.shape
    num_tokens = keys.shape[1]
    if num_new == num_tokens:  # its prompt, or what it had written before it was preempted as well
        impl.pages[first_block] = RequestPages(impl.policy, impl.heads.of_layer(layer), num_heads)
    if num_new == 1 < num_tokens:
        read = impl.pages[first_block].choose(queries[0], keys)[:, None]
    else:
        ages = keys.new_ones(num_tokens).cumsum(0)
        read = (ages[None] <= ages[num_tokens - num_new :, None]).repeat_interleave(group, dim=0)[None]
    flat = queries.permute(1, 0, 2, 3).reshape(num_heads, num_new * group, size)
    found = attend(flat, keys, values, impl.scale, read)
    return found.reshape(num_heads, num_new, group, size).transpose(0, 1)

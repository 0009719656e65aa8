"""A sparse KV cache as an option of an expert: which heads keep what on the GPU, and which tokens a step reads."""

from dataclasses import dataclass
from enum import StrEnum

from mosaic.core.checks import require, require_count, require_name, require_number
from mosaic.core.engine_options import EngineOptions

PAGE_TOKENS = 16
"""Tokens of a page, FlexiCache's; a page also has a summary, the least and the largest of its keys."""
PROMOTED_FRAC = 0.29
"""The middle of what is published, 0.23 to 0.35."""


class KvPolicy(StrEnum):
    """How the KV cache is kept."""

    FLEXICACHE = "flexicache"
    """Every head reads its best pages only; heads whose best pages seldom change keep the others on the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseKv:
    """FlexiCache: heads are ranked pages, and stable heads leave most of them on the host.

    NOTE: a step scores pages by their summaries and reads the best ``budget_pages`` of every head. Unstable heads keep
    all pages on the GPU and rank them at every step. Stable heads rank them every ``rerank_every`` steps and keep
    those, and what is written until the next ranking. Pages that come back into their set are promoted over the link
    to the host, and the request pauses for them.

    References
    ----------
    FlexiCache, arXiv 2511.00868.
    """

    policy: KvPolicy = KvPolicy.FLEXICACHE
    budget_pages: int = 64
    """Pages that a head reads."""
    rerank_every: int = 16
    """Steps from one ranking of a stable head to the next."""
    unstable_frac: float = 0.25
    """Share of the KV heads, of all layers, that are unstable."""
    promoted_frac: float | None = None
    """Share of its best pages that a stable head has to fetch at a ranking, in simulation; null: PROMOTED_FRAC."""
    heads: str | None = None
    """File of the unstable heads, for real engines; null: at equal distances over the model."""

    def __post_init__(self) -> None:
        allowed = [policy.value for policy in KvPolicy]
        require(self.policy in allowed, "expert.kv: policy", f"one of {allowed}", self.policy)
        object.__setattr__(self, "policy", KvPolicy(self.policy))
        require_count(self.budget_pages, "expert.kv: budget_pages", at_least=1)
        require_count(self.rerank_every, "expert.kv: rerank_every", at_least=1)
        for name in ("unstable_frac", "promoted_frac"):
            value = getattr(self, name)
            if value is not None:
                require_number(value, f"expert.kv: {name}", at_least=0)
                require(value <= 1, f"expert.kv: {name}", "at most 1", value)
        if self.heads is not None:
            require_name(self.heads, "expert.kv: heads")

    @property
    def promoted(self) -> float:
        """Share of the best pages that a ranking of a stable head fetches."""
        return PROMOTED_FRAC if self.promoted_frac is None else self.promoted_frac

    @property
    def budget_tokens(self) -> int:
        """Tokens that a head reads of a long sequence."""
        return self.budget_pages * PAGE_TOKENS

    @property
    def dense_tokens(self) -> int:
        """Up to so many tokens a sequence is kept and read in full: the budget and what is written between rankings."""
        return PAGE_TOKENS * (self.budget_pages - (-self.rerank_every // PAGE_TOKENS))

    @property
    def scored_frac(self) -> float:
        """Share of the heads that score all pages at a step."""
        return self.unstable_frac + (1 - self.unstable_frac) / self.rerank_every

    def num_unstable(self, num_heads: int) -> int:
        """Count the unstable ones of so many heads."""
        return round(self.unstable_frac * num_heads)

    def resident_tokens(self, num_tokens: int, *, with_summaries: bool = True) -> float:
        """Count what a decoding sequence holds on the GPU, in tokens of a full KV cache.

        A summary is two vectors for 16 tokens of two vectors each: a sixteenth.
        """
        stable = (1 - self.unstable_frac) * min(num_tokens, self.dense_tokens)
        summaries = num_tokens / PAGE_TOKENS if with_summaries else 0.0
        return self.unstable_frac * num_tokens + stable + summaries

    def long_read_tokens(self) -> float:
        """Tokens that attention reads of a long sequence, the mean over steps and heads; scores come on top."""
        return self.budget_tokens + (1 - self.unstable_frac) * self.rerank_every / 2

    def scored_tokens_per_token(self) -> float:
        """Tokens of a full KV cache that scoring reads, per token of a long sequence: summaries of 16 tokens."""
        return self.scored_frac / PAGE_TOKENS


def check_sparse_kv(owner: str, kv: SparseKv | None, options: EngineOptions) -> None:
    """Check that an engine can keep an expert's KV cache as it asks for.

    Raises
    ------
    ValueError
        With prefix caching: blocks that requests share would be on the GPU for one and on the host for another; the
        authors' artifact refuses it too.
    """
    if kv is not None:
        rule = f"false with expert {owner}'s kv={kv.policy} (order=mixed has it on by default)"
        require(not options.caches_prefixes, "engine.enable_prefix_caching", rule, True)

"""Sparse KV caches that a plan may choose for an expert, each with what it costs in accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mosaic.core.checks import require, require_count, require_number, require_unique
from mosaic.core.source import Source, require_source
from mosaic.core.sparse_kv import PAGE_TOKENS, SparseKv


@dataclass(frozen=True, slots=True, kw_only=True)
class KvVariant:
    """A sparse KV cache and its price in answers."""

    kv: SparseKv
    accuracy_cost_frac: float
    """Share of the expert's right answers that it is believed to lose, against the full cache."""
    low_frac: float
    high_frac: float
    """Between these the true share is believed to lie."""
    source: Source = "assumed"
    """Of the three numbers."""

    def __post_init__(self) -> None:
        label = f"kv_variants.{self.kv.budget_tokens}"
        for name in ("accuracy_cost_frac", "low_frac", "high_frac"):
            require_number(getattr(self, name), f"{label}.{name}", at_least=0)
        rule = f"from low_frac={self.low_frac:g} to high_frac={self.high_frac:g}, and these at most 1"
        is_between = self.low_frac <= self.accuracy_cost_frac <= self.high_frac <= 1
        require(is_between, f"{label}.accuracy_cost_frac", rule, self.accuracy_cost_frac)
        require_source(self.source, f"{label}.source")

    @property
    def budget_tokens(self) -> int:
        """Its name: tokens that a head reads of a long sequence."""
        return self.kv.budget_tokens


_KEYS = ("accuracy_cost_frac", "low_frac", "high_frac", "source")


def budget_of(key: object, label: str) -> int:
    """Read a KV budget in tokens that is the key of a mapping; overrides by a dotted name make a text of it.

    Raises
    ------
    ValueError, TypeError
        If it is not a whole number.
    """
    budget = int(key) if isinstance(key, str) and key.isdecimal() else key
    require_count(budget, f"{label}: budget in tokens", at_least=1)
    assert isinstance(budget, int)
    return budget


def kv_variants(config: Mapping[int | str, Mapping[str, Any]]) -> tuple[KvVariant, ...]:
    """Build variants from their settings by budget in tokens; the largest budget first.

    Beside the cost a variant may have the settings of ``SparseKv``, but for its budget.

    Raises
    ------
    ValueError, TypeError
        Naming the budget, the rule and the value.

    Examples
    --------
    >>> costs = {"accuracy_cost_frac": 0.01, "low_frac": 0.0, "high_frac": 0.05, "source": "assumed"}
    >>> [variant.kv.budget_pages for variant in kv_variants({1024: costs, 2048: costs})]
    [128, 64]
    """
    made = []
    for key, settings in config.items():
        budget = budget_of(key, "kv_variants")
        require(budget % PAGE_TOKENS == 0, "kv_variants: budget in tokens", f"a multiple of {PAGE_TOKENS}", budget)
        if not isinstance(settings, Mapping):
            raise TypeError(
                f"kv_variants.{budget} must have accuracy_cost_frac, low_frac and high_frac, got {settings!r}"
            )
        kept = {key: value for key, value in settings.items() if key not in _KEYS}
        try:
            kv = SparseKv(**{**kept, "budget_pages": budget // PAGE_TOKENS})
            made.append(KvVariant(kv=kv, **{key: settings[key] for key in _KEYS if key in settings}))
        except TypeError as error:
            raise TypeError(f"kv_variants.{budget}: {str(error).partition('() ')[2] or error}") from error
    return tuple(sorted(made, key=lambda variant: -variant.budget_tokens))


def checked_variants(owner: str, given: object, kv: SparseKv | None) -> tuple[KvVariant, ...]:
    """Check an expert's variants, built from their settings where these are given.

    Raises
    ------
    ValueError, TypeError
        Naming the expert, the rule and the value.
    """
    label = f"{owner}: kv_variants"
    variants = kv_variants(given) if isinstance(given, Mapping) else given
    if not isinstance(variants, tuple) or not all(isinstance(variant, KvVariant) for variant in variants):
        raise TypeError(f"{label} must be settings by budget in tokens, got {given!r}")
    require_unique((variant.budget_tokens for variant in variants), label)
    rule = "empty where kv is given: they stand in for the full cache"
    require(kv is None or not variants, label, rule, [variant.budget_tokens for variant in variants])
    return variants


def find_variant(owner: str, variants: Sequence[KvVariant], budget_tokens: int) -> KvVariant:
    """Find an expert's variant.

    Raises
    ------
    ValueError
        If there is none of this budget.
    """
    for variant in variants:
        if variant.budget_tokens == budget_tokens:
            return variant
    known = [variant.budget_tokens for variant in variants]
    raise ValueError(f"{owner}: kv_budget_tokens must be one of its kv_variants {known}, got {budget_tokens}")

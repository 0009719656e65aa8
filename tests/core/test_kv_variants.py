"""KV variants: what they are made of, and what is refused."""

from dataclasses import replace

import pytest

from mosaic.core.kv_variants import KvVariant, kv_variants
from mosaic.core.sparse_kv import SparseKv
from tests.factories import make_expert

COST = {"accuracy_cost_frac": 0.01, "low_frac": 0.0, "high_frac": 0.05}


def test_settings_beside_the_cost_are_those_of_the_cache() -> None:
    large, small = kv_variants({1024: {**COST, "rerank_every": 8}, 2048: {**COST, "source": "measured"}})
    assert large.kv == SparseKv(budget_pages=128)
    assert large.source == "measured"
    assert small.kv == SparseKv(budget_pages=64, rerank_every=8)
    assert small.source == "assumed"


def test_an_expert_is_given_the_cache_that_a_session_chose() -> None:
    expert = replace(make_expert("A"), kv_variants={1024: COST, 2048: COST})
    assert [variant.budget_tokens for variant in expert.kv_variants] == [2048, 1024]
    sparse = expert.with_kv_budget(1024)
    assert (sparse.kv, sparse.kv_variants, sparse.kv_budget_tokens) == (SparseKv(budget_pages=64), (), 1024)
    assert expert.with_kv_budget(None) is expert
    assert sparse.with_kv_budget(1024) is sparse
    with pytest.raises(ValueError, match=r"A: kv_budget_tokens must be one of its kv_variants \[2048, 1024\], got 512"):
        expert.with_kv_budget(512)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({1000: COST}, "budget in tokens must be a multiple of 16, got 1000"),
        ({"1k": COST}, "budget in tokens must be a whole number"),
        ({1024: COST, "1024": COST}, "A: kv_variants"),
        ({1024: 0.01}, "kv_variants.1024 must have accuracy_cost_frac"),
        ({1024: {"accuracy_cost_frac": 0.01}}, "kv_variants.1024: .*low_frac"),
        ({1024: {**COST, "budget": 3}}, "kv_variants.1024: .*budget"),
        ({1024: {**COST, "accuracy_cost_frac": 0.06}}, "kv_variants.1024.accuracy_cost_frac must be from low_frac=0"),
        ({1024: {**COST, "high_frac": 1.1}}, "and these at most 1"),
        ({1024: {**COST, "source": "hoped"}}, "kv_variants.1024.source must be"),
        ([1024], "A: kv_variants must be settings by budget in tokens"),
        (kv_variants({1024: COST}) * 2, "A: kv_variants"),
    ],
)
def test_what_makes_no_sense_is_refused(given: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        replace(make_expert("A"), kv_variants=given)


def test_variants_stand_in_for_the_full_cache_alone() -> None:
    (variant,) = kv_variants({1024: COST})
    with pytest.raises(ValueError, match="kv_variants must be empty where kv is given"):
        replace(make_expert("A", kv=SparseKv()), kv_variants=(variant,))
    with pytest.raises(ValueError, match="low_frac must be"):
        KvVariant(kv=SparseKv(), accuracy_cost_frac=0.0, low_frac=-0.1, high_frac=0.0)

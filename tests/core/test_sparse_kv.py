"""A sparse KV cache: what it holds, what it reads, what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions
from mosaic.core.kv_memory import check_sparse_kv
from mosaic.core.workload import SparseKv
from sim.engine.sparse_kv_cache import PageSizes, SparseKvCache
from tests.factories import make_expert


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "none"}, r"expert.kv: policy must be one of \['flexicache'\], got 'none'"),
        ({"budget_pages": 0}, "expert.kv: budget_pages must be at least 1, got 0"),
        ({"rerank_every": 0}, "expert.kv: rerank_every must be at least 1, got 0"),
        ({"unstable_frac": -0.1}, "expert.kv: unstable_frac must be at least 0, got -0.1"),
        ({"unstable_frac": 1.1}, "expert.kv: unstable_frac must be at most 1, got 1.1"),
        ({"promoted_frac": 2}, "expert.kv: promoted_frac must be at most 1, got 2"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SparseKv(**values)


def test_an_expert_takes_its_settings_by_name():
    assert make_expert(kv={"policy": "flexicache", "budget_pages": 128}).kv == SparseKv(budget_pages=128)
    with pytest.raises(TypeError, match="expert A: kv must be a SparseKv, its settings or null, got 'flexicache'"):
        make_expert(kv="flexicache")


def test_prefix_caching_is_refused():
    with pytest.raises(ValueError, match="enable_prefix_caching must be false with expert A's kv=flexicache"):
        check_sparse_kv("A", SparseKv(), EngineOptions(order="mixed"))
    check_sparse_kv("A", SparseKv(), EngineOptions(order="mixed", enable_prefix_caching=False))
    check_sparse_kv("A", None, EngineOptions(order="mixed"))


def test_what_a_long_sequence_holds_and_reads_is_the_papers_arithmetic():
    kv = SparseKv()
    assert kv.resident_tokens(20_000) == 20_000 / 4 + 3 / 4 * (1024 + 16) + 20_000 / 16
    assert kv.resident_tokens(20_000, with_summaries=False) == 20_000 / 4 + 3 / 4 * (1024 + 16)
    assert kv.long_read_tokens() == 1024 + 3 / 4 * 8
    assert kv.scored_tokens_per_token() == (1 / 4 + 3 / 4 / 16) / 16


@given(
    st.integers(1, 5000),
    st.builds(
        SparseKv,
        budget_pages=st.integers(1, 64),
        rerank_every=st.integers(1, 40),
        unstable_frac=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
)
def test_the_cache_counts_in_pages_what_the_formula_counts_in_tokens(num_tokens, kv):
    num_heads = 8
    cache = SparseKvCache(kv_tokens=10**6, watermark_frac=0.0, sizes=PageSizes.of(kv, num_heads))
    held, tokens = cache.held(num_tokens) / num_heads, kv.resident_tokens(num_tokens)
    # A page that is begun counts in full.
    assert tokens - 1e-6 <= held <= tokens + 17
    assert held <= cache.blocks(num_tokens) / num_heads

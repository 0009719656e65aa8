"""Blocks of a KV cache: what fits, what grows, and what is used again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.kv_cache import NOTHING, KvCache
from sim.engine.request import Request

REQUEST = Request(0, 1, 1, 0.0)


def make_cache(*, kv_tokens=160, block_size=16, watermark_frac=0.0) -> KvCache:
    return KvCache(kv_tokens=kv_tokens, block_size=block_size, watermark_frac=watermark_frac)


def test_a_cache_below_one_block_is_refused():
    with pytest.raises(ValueError, match=r"kv_cache_tokens must be at least one block of 16 tokens, got 15"):
        make_cache(kv_tokens=15)


@given(
    tokens=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    counter=st.integers(0, 50),
    spare=st.integers(0, 60),
    limit=st.integers(1, 90),
    block_size=st.sampled_from([1, 2, 7, 16]),
)
def test_the_histogram_agrees_with_counting_every_sequence(tokens, counter, spare, limit, block_size):
    def used(steps):
        return sum(-(-(count + steps) // block_size) for count in tokens)

    cache = make_cache(kv_tokens=(used(0) + spare) * block_size, block_size=block_size)
    for count in tokens:
        assert cache.try_admit(REQUEST, NOTHING, count, 0)
        cache.join(counter - count)
    assert cache.num_free == spare
    assert cache.next_step_blocks(counter) == used(1) - used(0)
    steps = cache.steps_that_fit(counter, limit)
    expected = max(k for k in range(limit + 1) if used(k) - used(0) <= spare)
    assert steps == expected
    cache.grow(counter, steps)
    assert cache.num_free == spare - (used(steps) - used(0))

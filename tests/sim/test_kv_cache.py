"""Blocks of a KV cache: what fits, what grows, and what is used again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.kv_cache import NOTHING, KvCache
from sim.engine.prefix_cache import PrefixKvCache
from sim.engine.request import Request

REQUEST = Request(0, 1, 1, 0.0)


def make_cache(*, kv_tokens=160, block_size=16, watermark_frac=0.0) -> KvCache:
    return KvCache(kv_tokens=kv_tokens, block_size=block_size, watermark_frac=watermark_frac)


def test_a_part_of_a_block_holds_nothing():
    assert make_cache(kv_tokens=47).num_blocks == 2


def test_a_cache_below_one_block_is_refused():
    with pytest.raises(ValueError, match=r"kv_cache_tokens must be at least one block of 16 tokens, got 15"):
        make_cache(kv_tokens=15)


def test_an_admission_leaves_the_watermark_free():
    cache = make_cache(watermark_frac=0.25)
    assert (cache.watermark_blocks, cache.max_tokens) == (2, 128)
    assert not cache.try_admit(REQUEST, NOTHING, 129, 0)
    assert cache.num_free == 10
    assert cache.try_admit(REQUEST, NOTHING, 128, 0)
    assert cache.num_free == 2


def test_a_chunk_may_use_the_watermark_but_no_more_than_there_is():
    cache = make_cache(watermark_frac=0.25)
    assert cache.try_admit(REQUEST, NOTHING, 100, 0)
    assert cache.try_extend(REQUEST, 100, 60)
    assert cache.num_free == 0
    assert cache.try_extend(REQUEST, 155, 5), "the rest of the last block is there already"
    assert not cache.try_extend(REQUEST, 160, 1)


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


def make_prefix_cache(num_blocks=10):
    return PrefixKvCache(kv_tokens=num_blocks * 10, block_size=10, watermark_frac=0.0)


def make_request(prompt_tokens, **fields):
    return Request(0, prompt_tokens, 50, 0.0, **fields)


def admit(cache, request, num_tokens=None):
    found = cache.find(request) if request.prefix_tokens or request.num_preemptions else NOTHING
    assert cache.try_admit(request, found, num_tokens or request.num_tokens, 0)
    return found.num_tokens


def test_blocks_are_used_again_oldest_first_and_tails_first():
    cache = make_prefix_cache()
    old, young = make_request(30), make_request(40)
    for request in (old, young):
        admit(cache, request)
    for request in (old, young):
        cache.free(request, request.num_tokens)
        request.num_preemptions = 1
        request.num_generated = 1
    # Three blank blocks, then the old one's third and second block, are in front.
    cache.hold(5)
    assert cache.find(old).num_tokens == 10
    assert cache.find(young).num_tokens == 40
    cache.hold(3)
    assert cache.find(old).num_tokens == 0
    assert cache.find(young).num_tokens == 20


def test_a_block_that_is_not_full_is_forgotten_first():
    cache = make_prefix_cache(4)
    request = make_request(35)
    admit(cache, request)
    cache.free(request, 35)
    request.num_preemptions = 1
    cache.hold(1)
    assert cache.find(request).num_tokens == 30


def test_a_prefix_in_use_is_not_used_again():
    cache = make_prefix_cache(4)
    first, second = (make_request(20, prefix="p", prefix_tokens=20) for _ in range(2))
    assert [admit(cache, first), admit(cache, second)] == [0, 10]
    cache.free(first, 20)
    assert cache.num_free == 2
    cache.hold(2)
    assert cache.find(make_request(25, prefix="p", prefix_tokens=20)).num_tokens == 20

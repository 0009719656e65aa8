import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.kv_cache import NOTHING, KvCache
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


def test_a_sequence_that_leaves_gives_back_what_it_took():
    cache = make_cache()
    cache.try_admit(REQUEST, NOTHING, 20, 0)
    cache.join(-20)
    cache.grow(0, 13)
    assert cache.num_free == 7
    cache.leave(REQUEST, 13 - 33, 33)
    assert (cache.num_free, cache.num_growing) == (10, 0)


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

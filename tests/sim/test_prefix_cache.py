"""Prefix caching and whole-sequence admission, in scenarios small enough to check by hand: an iteration is a second."""

from math import inf

import pytest

from mosaic.core.engine_options import EngineOptions, Order
from sim.engine.kv_cache import NOTHING
from sim.engine.prefix_cache import PrefixKvCache
from sim.engine.request import Request
from tests.sim.test_engine import make_engine, times


def mixed(**settings):
    return make_engine(**{"order": "mixed", "block_size": 10, "max_num_seqs": 4, **settings})


def make_cache(num_blocks=10):
    return PrefixKvCache(kv_tokens=num_blocks * 10, block_size=10, watermark_frac=0.0)


def make_request(prompt_tokens, **fields):
    return Request(0, prompt_tokens, 50, 0.0, **fields)


def admit(cache, request, num_tokens=None):
    found = cache.find(request) if request.prefix_tokens or request.num_preemptions else NOTHING
    assert cache.try_admit(request, found, num_tokens or request.num_tokens, 0)
    return found.num_tokens


def test_a_template_is_computed_once():
    engine = mixed()
    first = engine.submit(0, 35, 3, 0.0, prefix="template", prefix_tokens=29)
    second = engine.submit(1, 45, 3, 1.0, prefix="template", prefix_tokens=29)
    other = engine.submit(2, 45, 3, 1.0, prefix="another", prefix_tokens=29)
    engine.advance_to(inf)
    # Two full blocks of the template are shared; the third holds tokens of the first request, too.
    assert [request.cached_tokens for request in (first, second, other)] == [0, 20, 0]


def test_even_a_prompt_that_is_all_there_computes_its_last_token():
    engine = mixed()
    first, again = (engine.submit(i, 30, 1, float(i), prefix=0, prefix_tokens=30) for i in range(2))
    engine.advance_to(inf)
    assert (first.cached_tokens, again.cached_tokens) == (0, 20)


def test_prompts_of_one_batch_share_at_once():
    engine = mixed()
    requests = [engine.submit(i, 30, 2, 0.0, prefix=0, prefix_tokens=20) for i in range(3)]
    engine.advance_to(inf)
    assert [request.cached_tokens for request in requests] == [0, 20, 20]


def test_shared_blocks_take_room_once():
    # Four blocks: two shared and one of each; without sharing the second would have to wait.
    engine = mixed(kv_tokens=40)
    first, second = (engine.submit(i, 25, 3, 0.0, prefix=0, prefix_tokens=20) for i in range(2))
    engine.advance_to(inf)
    assert times(second) == times(first)


def test_who_is_preempted_finds_what_survives():
    engine = mixed(kv_tokens=40)
    first, last = engine.submit(0, 19, 5, 0.0), engine.submit(1, 19, 5, 0.0)
    engine.advance_to(inf)
    # The step from 2 to 3 takes two blocks: the second's go free, full ones both, and the last of them is taken. When
    # it comes back at 5 the first ten of its tokens are there, and ten are computed anew.
    assert times(first) == (0.0, 0.0, 1.0, 5.0)
    assert (last.num_preemptions, last.wasted_tokens, last.finished_ts) == (1, 10, 8.0)


def test_blocks_are_used_again_oldest_first_and_tails_first():
    cache = make_cache()
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
    cache = make_cache(4)
    request = make_request(35)
    admit(cache, request)
    cache.free(request, 35)
    request.num_preemptions = 1
    cache.hold(1)
    assert cache.find(request).num_tokens == 30


def test_a_prefix_in_use_is_not_used_again():
    cache = make_cache(4)
    first, second = (make_request(20, prefix="p", prefix_tokens=20) for _ in range(2))
    assert [admit(cache, first), admit(cache, second)] == [0, 10]
    cache.free(first, 20)
    assert cache.num_free == 2
    cache.hold(2)
    assert cache.find(make_request(25, prefix="p", prefix_tokens=20)).num_tokens == 20


def test_v1_waits_for_room_for_the_whole_prompt():
    settings = {"kv_tokens": 60, "max_num_batched_tokens": 20}
    for reserves, admitted_ts in ((True, 4.0), (False, 1.0)):
        engine = mixed(**settings, scheduler_reserve_full_isl=reserves)
        running, long = engine.submit(0, 15, 4, 0.0), engine.submit(1, 55, 1, 1.0)
        engine.advance_to(inf)
        assert (running.finished_ts, long.admitted_ts) == (4.0, admitted_ts)


def test_prefixes_must_be_part_of_a_prompt():
    engine = mixed()
    with pytest.raises(ValueError, match="prefix_tokens must be at most prompt_tokens=10"):
        engine.submit(0, 10, 1, 0.0, prefix="p", prefix_tokens=11)
    with pytest.raises(ValueError, match="0 without a prefix, got 5"):
        engine.submit(0, 10, 1, 0.0, prefix_tokens=5)


def test_the_orders_differ_in_what_they_do_by_default():
    assert EngineOptions(order=Order.MIXED).caches_prefixes
    assert not EngineOptions(order=Order.CHUNKED).caches_prefixes
    assert not EngineOptions(order=Order.MIXED, enable_prefix_caching=False).caches_prefixes
    assert not EngineOptions(order=Order.PREFILL_FIRST).caches_prefixes
    with pytest.raises(ValueError, match="enable_prefix_caching must be false unless order is mixed, got True"):
        make_engine(order="prefill_first", enable_prefix_caching=True)

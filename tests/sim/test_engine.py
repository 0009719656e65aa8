"""Scenarios small enough to check by hand: every iteration takes one second, a block has 10 tokens.

Aborts, cuts, preemptions and stops under all settings are compared with the oracle in tests/properties.
"""

from math import inf

import pytest

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.workload import Prefix
from sim.engine.engine import Engine
from tests.sim.oracle import LinearTime

ONE_SECOND = LinearTime(base_s=1.0, per_seq_s=0.0, per_kv_token_s=0.0, per_prefill_token_s=0.0, per_prefill_pair_s=0.0)
MIXED = {"order": "mixed", "max_num_seqs": 4}
TWENTY = Prefix(("p",), 20)


def make_engine(*, order="prefill_first", kv_tokens=10_000, start_ts=0.0, **settings) -> Engine:
    options = EngineOptions(order=order, **{"block_size": 10, "watermark_frac": 0.0, **settings})
    return Engine(
        iteration_time=ONE_SECOND, settings=options, kv_tokens=kv_tokens, context_tokens=1000, start_ts=start_ts
    )


def times(request):
    return (request.queued_ts, request.admitted_ts, request.first_token_ts, request.finished_ts)


@pytest.mark.parametrize("order", list(Order))
def test_a_lone_request_prefills_once_and_decodes_the_rest(order):
    engine = make_engine(order=order, start_ts=5.0)
    request = engine.submit(7, 10, 4, 5.0)
    assert engine.advance_to(9.0) == [request]
    assert times(request) == (5.0, 5.0, 6.0, 9.0)
    assert (request.id, request.num_generated, request.wasted_tokens) == (7, 4, 0)
    one = engine.submit(8, 10, 1, 9.0)
    engine.advance_to(inf)
    assert times(one) == (9.0, 9.0, 10.0, 10.0), "one token comes out of the prefill"


SMALL = {**MIXED, "max_num_batched_tokens": 8}
ON_THE_CLOCK = {
    # Iterations: prefill 0, decode, prefill 1, decode both, decode both (1 ends), decode.
    "prefill first makes decodes wait": (
        {}, [(10, 5, 0.0), (10, 3, 1.5)], [(0.0, 0.0, 1.0, 6.0), (1.5, 2.0, 3.0, 5.0)],
    ),
    "mixed lets decodes go on beside a prefill": (
        MIXED, [(10, 5, 0.0), (10, 3, 1.5)], [(0.0, 0.0, 1.0, 5.0), (1.5, 2.0, 3.0, 5.0)],
    ),
    # Tokens: 8 | 2 + 6 | 1 decode + 4 (the second is through) | 1 decode.
    "mixed cuts prompts at the token budget": (
        SMALL, [(10, 3, 0.0), (10, 1, 0.0)], [(0.0, 0.0, 2.0, 4.0), (0.0, 1.0, 3.0, 3.0)],
    ),
    "in order of arrival, whatever the order of submission": (
        {"max_num_seqs": 1}, [(1, 2, 0.5), (1, 2, 0.25)], [(0.5, 2.25, 3.25, 4.25), (0.25, 0.25, 1.25, 2.25)],
    ),
    "who would fit does not overtake the head of the queue": (
        {"kv_tokens": 100}, [(60, 2, 0.0), (50, 2, 0.0), (10, 2, 0.0)],
        [(0.0, 0.0, 1.0, 2.0), (0.0, 2.0, 3.0, 4.0), (0.0, 2.0, 3.0, 4.0)],
    ),
    # After one decode both hold 20 tokens and all 4 blocks. The step from 2 to 3 needs 2 blocks more: the second goes,
    # waits for the first to finish at 5, and prefills 19 + 2 tokens, which yields its third.
    "who was admitted last is preempted and computed anew": (
        {"kv_tokens": 40}, [(19, 5, 0.0), (19, 5, 0.0)], [(0.0, 0.0, 1.0, 5.0), (0.0, 0.0, 1.0, 8.0)],
    ),
    # Four blocks: two shared and one of each; without sharing the second would have to wait.
    "shared blocks take room once": (
        {**MIXED, "kv_tokens": 40}, [(25, 3, 0.0, TWENTY), (25, 3, 0.0, TWENTY)], [(0.0, 0.0, 1.0, 3.0)] * 2,
    ),
    "vLLM waits for room for the whole prompt": (
        {**MIXED, "kv_tokens": 60, "max_num_batched_tokens": 20}, [(15, 4, 0.0), (55, 1, 1.0)],
        [(0.0, 0.0, 1.0, 4.0), (1.0, 4.0, 7.0, 7.0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "requests", "expected"), ON_THE_CLOCK.values(), ids=ON_THE_CLOCK)
def test_requests_are_where_they_should_be_on_the_clock(settings, requests, expected):
    engine = make_engine(**settings)
    submitted = [
        engine.submit(i, prompt, output, ready, **dict(zip(("prefix",), prefix, strict=False)))
        for i, (prompt, output, ready, *prefix) in enumerate(requests)
    ]
    finished = engine.advance_to(inf)
    assert [times(request) for request in submitted] == expected
    assert finished == sorted(submitted, key=lambda request: request.finished_ts)


@pytest.mark.parametrize(
    ("blocks", "block_tokens", "prompt_tokens", "cached_tokens"),
    [
        ("ab", 20, 45, 40),
        ("ac", 20, 45, 20),
        ("ab", 20, 40, 30),  # the last token is always computed
        ("ab", 20, 35, 30),  # it ends inside its second block
        ("ab", 20, 15, 10),
        ("xb", 20, 45, 0),  # nothing is looked up behind a miss
        ("abcdefghij", 4, 45, 40),
        ("abcdefg", 4, 45, 20),
        ("abcdefxyz", 4, 45, 20),  # the third block of ten ends in the eighth of four
    ],
)
def test_cached_blocks_need_not_be_of_the_size_of_a_prefixs(blocks, block_tokens, prompt_tokens, cached_tokens):
    engine = make_engine(**MIXED)
    engine.submit(0, 45, 1, 0.0, prefix=Prefix(tuple("abcdefghij"[: 40 // block_tokens]), block_tokens))
    engine.advance_to(3.0)
    request = engine.submit(1, prompt_tokens, 1, 3.0, prefix=Prefix(tuple(blocks), block_tokens))
    engine.advance_to(inf)
    assert request.cached_tokens == cached_tokens


def test_the_next_event_is_a_batch_change_or_an_arrival():
    engine = make_engine()
    engine.submit(0, 10, 6, 2.0)
    events = []
    while (ts := engine.next_event_ts()) < inf:
        events.append(ts)
        engine.advance_to(ts)
    assert events == [2.0, 3.0, 8.0]


def test_a_submission_shortens_a_jump_that_was_planned_already():
    engine = make_engine()
    engine.submit(0, 10, 100, 0.0)
    engine.advance_to(1.0)
    assert engine.next_event_ts() == 100.0
    late = engine.submit(1, 10, 2, 10.5)
    assert engine.next_event_ts() == 11.0
    engine.advance_to(inf)
    assert late.admitted_ts == 11.0


def test_a_submission_at_the_present_instant_is_admitted_at_once_when_idle():
    engine = make_engine()
    engine.advance_to(3.0)
    request = engine.submit(0, 10, 1, 3.0)
    assert engine.next_event_ts() == 4.0
    engine.advance_to(4.0)
    assert times(request) == (3.0, 3.0, 4.0, 4.0)


NINE = {"prompt_tokens": 10, "output_tokens": 5, "ready_ts": 9.0}


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({}, {"prompt_tokens": 0}, "^prompt_tokens must be at least 1, got 0"),
        ({}, {"output_tokens": 0}, "^output_tokens must be at least 1, got 0"),
        (
            {"kv_tokens": 105},
            {"prompt_tokens": 60, "output_tokens": 42},
            r"prompt_tokens \+ output_tokens - 1 must be at most 100 .*, got 101",
        ),
        ({}, {"ready_ts": 8.0}, "^ready_ts must be at least 9.0, which has passed, got 8.0"),
        # Preempted just before its last token it would have to be prefilled whole.
        ({"max_num_batched_tokens": 50}, {"prompt_tokens": 40, "output_tokens": 12}, "must be at most 50 .*, got 51"),
    ],
)
def test_what_can_never_be_served_is_refused(settings, changes, message):
    engine = make_engine(**settings)
    engine.advance_to(9.0)
    engine.submit(2, **NINE)
    with pytest.raises(ValueError, match=message):
        engine.submit(3, **{**NINE, **changes})


def test_where_prompts_are_cut_more_than_an_iteration_is_served():
    make_engine(order="mixed", max_num_seqs=50, max_num_batched_tokens=50).submit(1, 40, 12, 0.0)


def test_a_request_that_ends_at_the_very_instant_is_not_aborted():
    engine = make_engine()
    request = engine.submit(0, 10, 4, 0.0)
    assert not engine.abort(request, 4.0)
    assert engine.advance_to(4.0) == [request]


def test_going_back_in_time_is_refused():
    engine = make_engine()
    engine.advance_to(9.0)
    with pytest.raises(ValueError, match=r"ts must be at least 9.0, which has passed, got 8.5"):
        engine.advance_to(8.5)


def test_the_orders_differ_in_what_they_do_by_default():
    assert EngineOptions(order=Order.MIXED).caches_prefixes
    assert not EngineOptions(order=Order.CHUNKED).caches_prefixes
    assert not EngineOptions(order=Order.MIXED, enable_prefix_caching=False).caches_prefixes
    assert not EngineOptions(order=Order.PREFILL_FIRST).caches_prefixes
    with pytest.raises(ValueError, match="enable_prefix_caching must be false unless order is mixed, got True"):
        make_engine(order="prefill_first", enable_prefix_caching=True)

"""Scenarios small enough to check by hand: every iteration takes one second unless a test says otherwise."""

from math import inf

import pytest

from mosaic.core.engine_options import EngineOptions
from sim.engine.engine import Engine
from tests.sim.oracle import LinearTime

ONE_SECOND = LinearTime(base_s=1.0, per_seq_s=0.0, per_kv_token_s=0.0, per_prefill_token_s=0.0, per_prefill_pair_s=0.0)


def make_engine(*, order="prefill_first", kv_tokens=10_000, time=ONE_SECOND, start_ts=0.0, **settings) -> Engine:
    return Engine(
        iteration_time=time,
        settings=EngineOptions(order=order, **settings),
        kv_tokens=kv_tokens,
        context_tokens=1000,
        start_ts=start_ts,
    )


def times(request):
    return (request.queued_ts, request.admitted_ts, request.first_token_ts, request.finished_ts)


@pytest.mark.parametrize("order", ["prefill_first", "chunked", "mixed"])
def test_a_lone_request_prefills_once_and_decodes_the_rest(order):
    engine = make_engine(order=order, start_ts=5.0)
    request = engine.submit(7, 10, 4, 5.0)
    assert engine.advance_to(inf) == [request]
    assert times(request) == (5.0, 5.0, 6.0, 9.0)
    assert (request.id, request.num_generated, request.wasted_tokens) == (7, 4, 0)


@pytest.mark.parametrize("order", ["prefill_first", "chunked", "mixed"])
def test_one_token_comes_out_of_the_prefill(order):
    engine = make_engine(order=order)
    request = engine.submit(0, 10, 1, 0.0)
    engine.advance_to(inf)
    assert times(request) == (0.0, 0.0, 1.0, 1.0)


def test_prefill_first_makes_decodes_wait():
    engine = make_engine()
    early, late = engine.submit(0, 10, 5, 0.0), engine.submit(1, 10, 3, 1.5)
    engine.advance_to(inf)
    # Iterations: prefill 0, decode, prefill 1, decode both, decode both (1 ends), decode.
    assert times(early) == (0.0, 0.0, 1.0, 6.0)
    assert times(late) == (1.5, 2.0, 3.0, 5.0)


def test_mixed_lets_decodes_go_on_beside_a_prefill():
    engine = make_engine(order="mixed")
    early, late = engine.submit(0, 10, 5, 0.0), engine.submit(1, 10, 3, 1.5)
    engine.advance_to(inf)
    assert times(early) == (0.0, 0.0, 1.0, 5.0)
    assert times(late) == (1.5, 2.0, 3.0, 5.0)


def test_mixed_cuts_prompts_at_the_token_budget():
    engine = make_engine(order="mixed", max_num_seqs=4, max_num_batched_tokens=8)
    first, second = engine.submit(0, 10, 3, 0.0), engine.submit(1, 10, 1, 0.0)
    engine.advance_to(inf)
    # Tokens: 8 | 2 + 6 | 1 decode + 4 (the second is through) | 1 decode.
    assert times(first) == (0.0, 0.0, 2.0, 4.0)
    assert times(second) == (0.0, 1.0, 3.0, 3.0)


def test_requests_are_served_in_order_of_arrival_whatever_the_order_of_submission():
    engine = make_engine(max_num_seqs=1)
    late, early = engine.submit(0, 1, 2, 0.5), engine.submit(1, 1, 2, 0.25)
    assert engine.advance_to(inf) == [early, late]
    assert (early.admitted_ts, late.admitted_ts) == (0.25, 2.25)


def test_the_head_of_the_queue_is_not_overtaken_by_one_that_would_fit():
    engine = make_engine(kv_tokens=100, block_size=10, watermark_frac=0.0)
    running, big, small = (engine.submit(i, prompt, 2, 0.0) for i, prompt in enumerate((60, 50, 10)))
    engine.advance_to(inf)
    assert running.finished_ts == 2.0
    assert big.admitted_ts == small.admitted_ts == 2.0


def test_the_request_admitted_last_is_preempted_and_computed_anew():
    engine = make_engine(kv_tokens=40, block_size=10, watermark_frac=0.0)
    first, last = engine.submit(0, 19, 5, 0.0), engine.submit(1, 19, 5, 0.0)
    engine.advance_to(inf)
    # After one decode both hold 20 tokens and all 4 blocks. The step from 2 to 3 needs 2 blocks more: the second
    # goes, waits for the first to finish at 5, and prefills 19 + 2 tokens, which yields its third.
    assert times(first) == (0.0, 0.0, 1.0, 5.0)
    assert times(last) == (0.0, 0.0, 1.0, 8.0)
    assert (first.num_preemptions, last.num_preemptions, last.wasted_tokens) == (0, 1, 20)


def test_a_half_prefilled_prompt_is_preempted_first():
    engine = make_engine(
        order="mixed",
        kv_tokens=40,
        block_size=10,
        max_num_seqs=2,
        max_num_batched_tokens=20,
        scheduler_reserve_full_isl=False,
        enable_prefix_caching=False,
    )
    first, last = engine.submit(0, 10, 12, 0.0), engine.submit(1, 35, 1, 0.0)
    engine.advance_to(inf)
    # 10 + 10 tokens, then one decode (2 blocks) leaves one block for the next 19: the second starts over.
    assert last.num_preemptions >= 1
    assert last.wasted_tokens >= 10
    assert first.num_preemptions == 0
    assert last.finished_ts > first.finished_ts == 12.0


def test_advancing_stops_at_the_last_iteration_that_has_ended():
    engine = make_engine()
    request = engine.submit(0, 10, 10, 0.0)
    assert engine.advance_to(4.5) == []
    assert engine.boundary_ts == 4.0
    assert engine.advance_to(10.0) == [request]
    assert engine.next_event_ts() == inf


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


class TestAbort:
    def test_between_iterations_it_is_immediate(self):
        engine = make_engine(max_num_seqs=1)
        running, waiting = engine.submit(0, 10, 10, 0.0), engine.submit(1, 10, 2, 0.0)
        engine.advance_to(3.0)
        assert engine.abort(running, 3.0)
        assert (running.num_generated, running.wasted_tokens, running.finished_ts) == (3, 12, 3.0)
        engine.advance_to(inf)
        assert times(waiting) == (0.0, 3.0, 4.0, 5.0)

    def test_the_iteration_under_way_completes(self):
        engine = make_engine(max_num_seqs=1)
        running, waiting = engine.submit(0, 10, 10, 0.0), engine.submit(1, 10, 2, 0.0)
        assert engine.abort(running, 3.5)
        assert engine.next_event_ts() == 4.0
        engine.advance_to(inf)
        assert (running.finished_ts, waiting.admitted_ts) == (3.5, 4.0)

    def test_who_finishes_in_the_iteration_under_way_is_heard_of_when_it_ends(self):
        engine = make_engine()
        aborted, other = engine.submit(0, 10, 4, 0.0), engine.submit(1, 10, 4, 0.0)
        assert engine.abort(aborted, 3.5)
        assert engine.advance_to(3.75) == []
        assert engine.advance_to(4.0) == [other]
        assert (aborted.finished_ts, aborted.wasted_tokens) == (3.5, 13)

    def test_nothing_is_left_to_abort_once_it_has_finished(self):
        engine = make_engine()
        request = engine.submit(0, 10, 4, 0.0)
        assert not engine.abort(request, 4.0)
        assert engine.advance_to(4.0) == [request]

    def test_a_second_abort_changes_nothing(self):
        engine = make_engine()
        request = engine.submit(0, 10, 4, 0.0)
        assert engine.abort(request, 2.0)
        assert not engine.abort(request, 3.0)
        assert request.finished_ts == 2.0

    def test_a_request_that_has_not_arrived_costs_nothing(self):
        engine = make_engine()
        request = engine.submit(0, 10, 4, 100.0)
        kept = engine.submit(1, 10, 4, 50.0)
        assert engine.abort(request, 2.0)
        assert engine.advance_to(inf) == [kept]
        assert request.admitted_ts is None

    def test_a_half_prefilled_prompt_frees_its_blocks(self):
        engine = make_engine(
            order="mixed", kv_tokens=40, block_size=10, watermark_frac=0.0, max_num_seqs=2, max_num_batched_tokens=20
        )
        partial, waiting = engine.submit(0, 40, 1, 0.0), engine.submit(1, 40, 1, 0.0)
        engine.advance_to(1.0)
        assert engine.abort(partial, 1.0)
        assert partial.wasted_tokens == 20
        engine.advance_to(inf)
        assert times(waiting) == (0.0, 1.0, 3.0, 3.0)


class TestCut:
    def test_it_ends_with_its_last_token_and_makes_room(self):
        engine = make_engine(max_num_seqs=1)
        running, waiting = engine.submit(0, 10, 100, 0.0), engine.submit(1, 10, 2, 0.0)
        assert engine.cut(running, 5, 3.0)
        engine.advance_to(inf)
        assert (running.finished_ts, running.num_generated, running.wasted_tokens) == (5.0, 5, 0)
        assert times(waiting) == (0.0, 5.0, 6.0, 7.0)

    def test_what_it_has_stays_and_the_token_under_way_comes(self):
        engine = make_engine()
        request = engine.submit(0, 10, 100, 0.0)
        assert engine.cut(request, 2, 7.5)
        assert engine.num_generated(request) == 7
        assert engine.advance_to(inf) == [request]
        assert (request.finished_ts, request.num_generated) == (8.0, 8)

    def test_more_than_it_would_write_changes_nothing_and_after_the_end_there_is_nothing_to_cut(self):
        engine = make_engine()
        request = engine.submit(0, 10, 4, 0.0)
        assert engine.cut(request, 9, 1.0)
        assert engine.advance_to(4.0) == [request]
        assert not engine.cut(request, 1, 4.0)
        assert request.num_generated == 4

    def test_what_is_written_elsewhere_is_read_like_the_prompt(self):
        engine = make_engine(order="mixed", max_num_seqs=4, max_num_batched_tokens=8)
        request = engine.submit(0, 10, 9, 0.0, 6)
        assert engine.num_generated(request) == 6
        engine.advance_to(inf)
        # Two iterations read 16 tokens, the second of them yields the seventh.
        assert (times(request), request.num_generated) == ((0.0, 0.0, 2.0, 4.0), 9)


class TestRefuses:
    @pytest.mark.parametrize(
        ("prompt", "output", "ready", "message"),
        [
            (0, 5, 9.0, "^prompt_tokens must be at least 1, got 0"),
            (5, 0, 9.0, "^output_tokens must be at least 1, got 0"),
            (60, 42, 9.0, r"prompt_tokens \+ output_tokens - 1 must be at most 100 .*, got 101"),
            (5, 5, 8.0, "^ready_ts must be at least 9.0, which has passed, got 8.0"),
        ],
    )
    def test_what_can_never_be_served(self, prompt, output, ready, message):
        engine = make_engine(kv_tokens=105, block_size=10, watermark_frac=0.0)
        engine.advance_to(9.0)
        with pytest.raises(ValueError, match=message):
            engine.submit(3, prompt, output, ready)

    def test_what_outgrows_one_iteration_where_prompts_stay_whole(self):
        # Preempted just before its last token it would have to be prefilled whole.
        engine = make_engine(max_num_batched_tokens=50)
        engine.submit(0, 40, 11, 0.0)
        with pytest.raises(ValueError, match=r"must be at most 50 .*, got 51"):
            engine.submit(1, 40, 12, 0.0)
        make_engine(order="mixed", max_num_seqs=50, max_num_batched_tokens=50).submit(1, 40, 12, 0.0)

    def test_going_back_in_time(self):
        engine = make_engine()
        engine.advance_to(9.0)
        with pytest.raises(ValueError, match=r"ts must be at least 9.0, which has passed, got 8.5"):
            engine.advance_to(8.5)

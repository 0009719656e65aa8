"""The jumping engine against the naive one, over random sessions."""

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions, Order
from sim.engine.engine import Engine
from tests.sim.oracle import LinearTime, Oracle
from tests.sim.random_runs import committed_times

# Two tensor-parallel degrees: all-reduces on top, weights and KV reads divided.
TIMES = {
    1: LinearTime(),
    4: LinearTime(base_s=0.0049717, per_seq_s=2.1171e-5, per_kv_token_s=2.1317e-8, per_prefill_token_s=2.1313e-5),
}
FIELDS = ("admitted_ts", "first_token_ts", "finished_ts", "num_generated", "num_preemptions", "wasted_tokens")


@st.composite
def sessions(draw):
    block_size = draw(st.sampled_from([1, 3, 16]))
    max_num_seqs = draw(st.integers(1, 12))
    order = draw(st.sampled_from(list(Order)))
    low = max_num_seqs if order.chunks_prompts else 150
    engine_settings = EngineOptions(
        order=order,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.one_of(st.none(), st.integers(low, 400))),
        block_size=block_size,
        watermark_frac=draw(st.sampled_from([None, 0.0, 0.01, 0.1])),
    )
    longest = draw(st.integers(2, 90))
    lengths = st.integers(1, longest)
    late = draw(st.sampled_from([0.0, 0.0137, 0.37]))
    arrival = st.integers(0, 12).map(lambda n: n * late) if late else st.just(0.0)
    requests = draw(st.lists(st.tuples(lengths.map(lambda n: min(n, 60)), lengths, arrival), min_size=1, max_size=40))
    longest_call = max(prompt + output for prompt, output, _ in requests)
    tight = draw(st.integers(longest_call + 2 * block_size, longest_call * 4 + 2 * block_size))
    return engine_settings, requests, int(tight / 0.89) + block_size, draw(st.sampled_from([1, 4]))


def run_oracle(engine_settings, requests, kv_tokens, tp_degree, aborts=(), cuts=()):
    oracle = Oracle(TIMES[tp_degree], engine_settings, kv_tokens, 200)
    return oracle, oracle.run(requests, aborts, cuts)


def make_engine(engine_settings, kv_tokens, tp_degree):
    return Engine(iteration_time=TIMES[tp_degree], settings=engine_settings, kv_tokens=kv_tokens, context_tokens=200)


def assert_same(submitted, seqs):
    names = ("admitted", "first", "finished", "generated", "preemptions", "wasted")
    for request, seq in zip(submitted, seqs, strict=True):
        for field, name in zip(FIELDS, names, strict=True):
            ours, theirs = getattr(request, field), getattr(seq, name)
            same = ours is None if theirs is None else ours == pytest.approx(theirs, rel=1e-6)
            assert same, (field, ours, theirs, seq)


@settings(max_examples=150, deadline=None)
@given(sessions())
def test_a_session_drained_at_once_agrees_with_the_oracle(session):
    oracle, seqs = run_oracle(*session)
    engine = make_engine(session[0], *session[2:])
    submitted = [engine.submit(i, *request) for i, request in enumerate(session[1])]
    finished = engine.advance_to(float("inf"))
    assert sorted(request.id for request in finished) == list(range(len(seqs)))
    assert_same(submitted, seqs)
    assert finished[-1].finished_ts == pytest.approx(oracle.now, rel=1e-6)
    event(f"preempts: {any(seq.preemptions for seq in seqs)}, {session[0].order}")


@settings(max_examples=75, deadline=None)
@given(sessions(), st.lists(st.floats(0.0, 3.0), max_size=12))
def test_stops_on_the_way_change_nothing(session, stops):
    _, seqs = run_oracle(*session)
    engine = make_engine(session[0], *session[2:])
    submitted = [engine.submit(i, *request) for i, request in enumerate(session[1])]
    for stop in sorted(stops):
        finished = engine.advance_to(stop)
        assert all(request.finished_ts <= stop for request in finished)
    engine.advance_to(float("inf"))
    assert_same(submitted, seqs)


@settings(max_examples=75, deadline=None)
@given(sessions())
def test_stepping_by_events_gives_the_same_floats_as_draining_at_once(session):
    engines = [make_engine(session[0], *session[2:]) for _ in range(2)]
    for engine in engines:
        for i, request in enumerate(session[1]):
            engine.submit(i, *request)
    at_once = [(request.id, request.finished_ts) for request in engines[0].advance_to(float("inf"))]
    stepped = []
    while (ts := engines[1].next_event_ts()) < float("inf"):
        finished = engines[1].advance_to(ts)
        assert all(request.finished_ts == ts for request in finished)
        stepped += [(request.id, request.finished_ts) for request in finished]
    assert stepped == at_once


@settings(max_examples=100, deadline=None)
@given(sessions(), st.data())
def test_aborts_agree_with_the_oracle(session, data):
    moments = st.tuples(st.floats(0.0001, 2.0), st.integers(0, len(session[1]) - 1))
    aborts = sorted(data.draw(st.lists(moments, max_size=8, unique_by=lambda abort: abort[1])))
    _, seqs = run_oracle(*session, aborts)
    engine = make_engine(session[0], *session[2:])
    submitted = [engine.submit(i, *request) for i, request in enumerate(session[1])]
    finished = []
    for ts, index in aborts:
        finished += engine.advance_to(ts)
        aborted = engine.abort(submitted[index], ts)
        assert aborted == (index not in {request.id for request in finished})
        if aborted:
            request = submitted[index]
            assert request.first_token_ts is None or request.first_token_ts <= request.finished_ts == ts
            assert request.num_generated < request.output_tokens, "one that goes on elsewhere has tokens to write"
    finished += engine.advance_to(float("inf"))
    assert [request.finished_ts for request in finished] == sorted(request.finished_ts for request in finished)
    assert_same(submitted, seqs)


@settings(max_examples=100, deadline=None)
@given(sessions(), st.data())
def test_cuts_and_requests_that_are_partly_written_agree_with_the_oracle(session, data):
    engine_settings, requests, *rest = session
    requests = [(*request, data.draw(st.integers(0, request[1] - 1))) for request in requests]
    moments = st.tuples(st.floats(0.0001, 2.0), st.integers(0, len(requests) - 1), st.integers(0, 90))
    cuts = sorted(data.draw(st.lists(moments, max_size=8)))
    _, seqs = run_oracle(engine_settings, requests, *rest, cuts=cuts)
    engine = make_engine(engine_settings, *rest)
    submitted = [engine.submit(i, *request) for i, request in enumerate(requests)]
    finished = []
    for ts, index, tokens in cuts:
        finished += engine.advance_to(ts)
        written = engine.num_generated(submitted[index])
        assert engine.cut(submitted[index], tokens, ts) == (submitted[index] not in finished)
        assert written <= submitted[index].output_tokens
    finished += engine.advance_to(float("inf"))
    assert [request.finished_ts for request in finished] == sorted(request.finished_ts for request in finished)
    assert_same(submitted, seqs)
    assert all(request.num_generated == request.output_tokens for request in submitted)
    event(f"cuts: {any(request.output_tokens < given[1] for request, given in zip(submitted, requests, strict=True))}")


@pytest.mark.parametrize(("name", "time"), committed_times())
@settings(max_examples=10, deadline=None)
@given(session=sessions())
def test_measured_tables_agree_with_the_oracle(name, time, session):
    engine_settings, requests, kv_tokens, _ = session
    seqs = Oracle(time, engine_settings, kv_tokens, 200).run(requests)
    engine = Engine(iteration_time=time, settings=engine_settings, kv_tokens=kv_tokens, context_tokens=200)
    submitted = [engine.submit(i, *request) for i, request in enumerate(requests)]
    engine.advance_to(float("inf"))
    assert_same(submitted, seqs)

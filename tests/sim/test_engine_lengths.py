"""The jumping engine against the naive one with all that depends on lengths, prefixes and whole sequences."""

from math import inf
from pathlib import Path

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions, Order
from sim.engine.engine import Engine
from sim.hardware.hardware import hardware_from_config
from sim.hardware.iteration_time import iteration_time
from sim.hardware.skew_time import AttentionSkew, EagerDecode, SkewAwareIterationTime
from tests.factories import make_shape
from tests.sim.oracle import LinearTime, Oracle

CONF = Path(__file__).resolve().parents[2] / "conf" / "hardware"
TIME = LinearTime(per_kv_token_s=5.1713e-5)
FIELDS = {
    "admitted_ts": "admitted", "first_token_ts": "first", "finished_ts": "finished", "num_generated": "generated",
    "num_preemptions": "preemptions", "wasted_tokens": "wasted", "cached_tokens": "cached",
}  # fmt: skip


@st.composite
def lengths_matter(draw):
    skew = st.tuples(st.floats(1e-6, 1e-3), st.integers(1, 40), st.integers(1, 8), st.integers(1, 6))
    eager = st.tuples(st.integers(1, 120), st.floats(0.005, 0.04))
    host = draw(st.sampled_from([(0.0, 0.0), (1.1e-4, 3.7e-6)]))
    return draw(st.none() | skew), draw(st.none() | eager), host


@st.composite
def sessions(draw):
    block_size = draw(st.sampled_from([1, 3, 16]))
    max_num_seqs = draw(st.integers(1, 12))
    order = draw(st.sampled_from([*Order, Order.MIXED]))
    low = max_num_seqs if order.chunks_prompts else 150
    engine_settings = EngineOptions(
        order=order,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.one_of(st.none(), st.integers(low, 400))),
        block_size=block_size,
        watermark_frac=draw(st.sampled_from([None, 0.0, 0.1])),
        enable_prefix_caching=draw(st.sampled_from([None, False])),
        scheduler_reserve_full_isl=draw(st.booleans()),
    )
    longest = draw(st.integers(2, 90))
    late = draw(st.sampled_from([0.0, 0.0137, 0.37]))
    requests = []
    for _ in range(draw(st.integers(1, 25))):
        prompt = min(draw(st.integers(1, longest)), 60)
        prefix_tokens = draw(st.sampled_from([0, prompt // 2, prompt]))
        prefix = draw(st.integers(0, 1)) if prefix_tokens else None
        ready = draw(st.integers(0, 12)) * late
        output = draw(st.integers(1, longest))
        generated = draw(st.sampled_from([0, 0, output // 2]))
        requests.append((prompt, output, ready, generated, prefix, prefix_tokens))
    longest_call = max(prompt + output for prompt, output, *_ in requests)
    tight = draw(st.integers(longest_call + 2 * block_size, longest_call * 4 + 2 * block_size))
    return engine_settings, requests, int(tight / 0.89) + block_size


def make_engine(session, lengths):
    engine_settings, requests, kv_tokens = session
    skew, eager, host = lengths
    time = SkewAwareIterationTime(
        TIME,
        host_per_seq_s=host[0],
        host_per_kv_token_s=host[1],
        skew=skew and AttentionSkew(block_s=skew[0], num_sms=skew[1], num_heads=skew[2], min_seqs=skew[3]),
        eager=eager and EagerDecode(max_graph_tokens=eager[0], launch_s=eager[1]),
    )
    engine = Engine(iteration_time=time, settings=engine_settings, kv_tokens=kv_tokens, context_tokens=200)
    submitted = [
        engine.submit(i, *request[:4], prefix=request[4], prefix_tokens=request[5])
        for i, request in enumerate(requests)
    ]
    return engine, submitted


def run_oracle(session, lengths, aborts=()):
    skew, eager, host = lengths
    return Oracle(TIME, session[0], session[2], 200, skew=skew, eager=eager, host=host).run(session[1], aborts)


def assert_same(submitted, seqs):
    for request, seq in zip(submitted, seqs, strict=True):
        for ours, theirs in FIELDS.items():
            mine, real = getattr(request, ours), getattr(seq, theirs)
            same = mine is None if real is None else mine == pytest.approx(real, rel=1e-6)
            assert same, (ours, mine, real, seq)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(sessions(), lengths_matter())
def test_a_session_drained_at_once_agrees_with_the_oracle(session, lengths):
    seqs = run_oracle(session, lengths)
    engine, submitted = make_engine(session, lengths)
    finished = engine.advance_to(inf)
    assert len(finished) == len(seqs)
    assert_same(submitted, seqs)
    event(f"cached: {any(s.cached for s in seqs)}, preempts: {any(s.preemptions for s in seqs)}, {session[0].order}")


@settings(max_examples=75, deadline=None)
@given(sessions(), lengths_matter(), st.lists(st.floats(0.0, 3.0), max_size=12))
def test_stops_on_the_way_change_nothing(session, lengths, stops):
    engine, submitted = make_engine(session, lengths)
    for stop in sorted(stops):
        assert all(request.finished_ts <= stop for request in engine.advance_to(stop))
    engine.advance_to(inf)
    assert_same(submitted, run_oracle(session, lengths))


@settings(max_examples=100, deadline=None)
@given(sessions(), lengths_matter(), st.data())
def test_aborts_agree_with_the_oracle(session, lengths, data):
    moments = st.tuples(st.floats(0.0001, 2.0), st.integers(0, len(session[1]) - 1))
    aborts = sorted(data.draw(st.lists(moments, max_size=8, unique_by=lambda abort: abort[1])))
    engine, submitted = make_engine(session, lengths)
    for ts, index in aborts:
        engine.advance_to(ts)
        engine.abort(submitted[index], ts)
    engine.advance_to(inf)
    assert_same(submitted, run_oracle(session, lengths, aborts))


@pytest.mark.parametrize("stem", ["rtxpro6000", "rtx4090"])
@settings(max_examples=15, deadline=None)
@given(session=sessions())
def test_measured_gpus_agree_with_the_oracle(stem, session):
    config = yaml.safe_load((CONF / f"{stem}.yaml").read_text(encoding="utf-8"))
    del config["_target_"]
    # Some batches of these small sessions are split, others are not.
    time = iteration_time(hardware_from_config(**{**config, "num_sms": 24}), make_shape(), 1)
    assert time.num_longest == 3
    engine_settings, requests, kv_tokens = session
    seqs = Oracle(time, engine_settings, kv_tokens, 200).run(requests)
    engine = Engine(iteration_time=time, settings=engine_settings, kv_tokens=kv_tokens, context_tokens=200)
    submitted = [
        engine.submit(i, *request[:4], prefix=request[4], prefix_tokens=request[5])
        for i, request in enumerate(requests)
    ]
    engine.advance_to(inf)
    assert_same(submitted, seqs)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
    st.integers(0, 200),
    st.integers(0, 200),
    lengths_matter(),
)
def test_spans_add_up_as_lengths_grow(tokens, first, second, lengths):
    engine, _ = make_engine((EngineOptions(), [], 1000), lengths)
    time = engine._skew_time
    longest = sorted(tokens)[-time.num_longest :] if time.num_longest else []
    later = [length + first for length in longest]
    whole = time.decode_span_s(len(tokens), sum(tokens), first + second, longest)
    parts = time.decode_span_s(len(tokens), sum(tokens), first, longest)
    parts += time.decode_span_s(len(tokens), sum(tokens) + first * len(tokens), second, later)
    assert whole == pytest.approx(parts, rel=1e-9)
    assert whole >= time.decode_span_s(len(tokens), sum(tokens), first + second) - 1e-12

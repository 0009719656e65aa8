"""The jumping engine against the naive one, over random sessions."""

from dataclasses import dataclass, replace
from math import inf
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.workload import Prefix
from sim.engine.engine import Engine
from sim.hardware.iteration_time import SkewAwareIterationTime, iteration_time
from sim.hardware.skew_time import AttentionSkew
from tests.factories import make_shape
from tests.sim.oracle import LinearTime, Oracle, assert_same, disturb, disturbances
from tests.sim.random_runs import committed_hardware, committed_times

CONTEXT = 200
# Two tensor-parallel degrees: all-reduces on top, weights and KV reads divided; and one where reads are dear.
TIMES = (
    LinearTime(),
    LinearTime(base_s=0.0049717, per_seq_s=2.1171e-5, per_kv_token_s=2.1317e-8, per_prefill_token_s=2.1313e-5),
    LinearTime(per_kv_token_s=5.1713e-5),
)


@dataclass(frozen=True)
class Drawn:
    """A session: requests are (prompt, output, ready, generated, prefix)."""

    options: EngineOptions
    requests: list[tuple]
    kv_tokens: int
    time: Any
    lengths: tuple = (None, None, (0.0, 0.0))
    """What lengths add to the time by totals: of the longest in a batch, of steps without graphs, of the host."""

    def iteration_time(self) -> Any:
        skew, eager, host = self.lengths
        if self.lengths == Drawn.lengths:
            return self.time
        return SkewAwareIterationTime(
            self.time,
            host_per_seq_s=host[0],
            host_per_kv_token_s=host[1],
            skew=skew and AttentionSkew(block_s=skew[0], min_seqs=skew[1]),
            max_graph_tokens=eager and eager[0],
            launch_s=eager[1] if eager else 0.0,
        )

    def engine(self) -> tuple[Engine, list]:
        engine = Engine(
            iteration_time=self.iteration_time(),
            settings=self.options,
            kv_tokens=self.kv_tokens,
            context_tokens=CONTEXT,
        )
        submitted = [engine.submit(i, *request[:4], prefix=request[4]) for i, request in enumerate(self.requests)]
        return engine, submitted

    def oracle(self) -> Oracle:
        skew, eager, host = self.lengths
        return Oracle(self.time, self.options, self.kv_tokens, CONTEXT, skew=skew, eager=eager, host=host)


@st.composite
def lengths_matter(draw):
    skew = st.tuples(st.floats(1e-6, 1e-3), st.integers(1, 6))
    eager = st.tuples(st.integers(1, 120), st.floats(0.005, 0.04))
    host = draw(st.sampled_from([(0.0, 0.0), (1.1e-4, 3.7e-6)]))
    return draw(st.none() | skew), draw(st.none() | eager), host


@st.composite
def prefixes(draw, prompt: int, block_tokens: int):
    """Prompts begin with a path through a tree: the name of a block is the way there."""
    way = draw(st.lists(st.integers(0, 1), max_size=-(-prompt // block_tokens)))
    return Prefix(tuple(tuple(way[: i + 1]) for i in range(len(way))), block_tokens) if way else None


@st.composite
def sessions(draw, time=None):
    block_size = draw(st.sampled_from([1, 3, 16]))
    max_num_seqs = draw(st.integers(1, 12))
    order = draw(st.sampled_from([*Order, Order.MIXED]))
    low = max_num_seqs if order.chunks_prompts else 150
    options = EngineOptions(
        order=order,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.none() | st.integers(low, 400)),
        block_size=block_size,
        watermark_frac=draw(st.sampled_from([None, 0.0, 0.01, 0.1])),
        enable_prefix_caching=draw(st.sampled_from([None, False])),
        scheduler_reserve_full_isl=draw(st.booleans()),
    )
    block_tokens = draw(st.sampled_from([1, 2, 3, 7, 16, 32]))
    longest, late = draw(st.integers(2, 90)), draw(st.sampled_from([0.0, 0.0137, 0.37]))
    requests = []
    for _ in range(draw(st.integers(1, 30))):
        prompt, output = min(draw(st.integers(1, longest)), 60), draw(st.integers(1, longest))
        prefix = draw(prefixes(prompt, block_tokens))
        ready = draw(st.integers(0, 12)) * late
        requests.append((prompt, output, ready, draw(st.sampled_from([0, 0, output // 2])), prefix))
    longest_call = max(prompt + output for prompt, output, *_ in requests)
    tight = draw(st.integers(longest_call + 2 * block_size, longest_call * 4 + 2 * block_size))
    kv_tokens = int(tight / 0.89) + block_size
    if time is not None:
        return Drawn(options, requests, kv_tokens, time)
    lengths = draw(st.just(Drawn.lengths) | lengths_matter())
    return Drawn(options, requests, kv_tokens, draw(st.sampled_from(TIMES)), lengths)


def assert_agrees(session: Any) -> None:
    """Compare a session, or one of ranks, drained at once with the oracle."""
    oracle = session.oracle()
    seqs = oracle.run(session.requests)
    engine, submitted = session.engine()
    finished = engine.advance_to(inf)
    assert sorted(request.id for request in finished) == list(range(len(seqs)))
    assert_same(submitted, seqs)
    assert finished[-1].finished_ts == pytest.approx(oracle.now, rel=1e-6)
    event(f"preempts: {any(s.preemptions for s in seqs)}, cached: {any(s.cached for s in seqs)}")


@settings(max_examples=150, deadline=None)
@given(sessions())
def test_a_session_drained_at_once_agrees_with_the_oracle(session):
    assert_agrees(session)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(sessions())
def test_a_session_drained_at_once_agrees_with_the_oracle_at_length(session):
    assert_agrees(session)


@pytest.mark.parametrize(("name", "time"), committed_times())
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_measured_tables_agree_with_the_oracle(name, time, data):
    assert_agrees(data.draw(sessions(time)))


@pytest.mark.parametrize("stem", ["rtxpro6000", "rtx4090"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_measured_gpus_agree_where_only_some_batches_are_split(stem, data):
    time = iteration_time(replace(committed_hardware(stem), num_sms=24), make_shape(), 1)
    assert time.needs_longest
    assert_agrees(data.draw(sessions(time)))


@settings(max_examples=150, deadline=None)
@given(sessions(), st.data())
def test_stops_aborts_and_cuts_on_the_way_agree_with_the_oracle(session, data):
    planned = data.draw(disturbances(len(session.requests)))
    seqs = session.oracle().run(session.requests, planned.aborts, planned.cuts)
    engine, submitted = session.engine()
    finished = disturb(engine, submitted, planned)
    assert [request.finished_ts for request in finished] == sorted(request.finished_ts for request in finished)
    assert_same(submitted, seqs)
    event(f"aborts: {bool(planned.aborts)}, cuts: {bool(planned.cuts)}")


@settings(max_examples=75, deadline=None)
@given(sessions())
def test_stepping_by_events_gives_the_same_floats_as_draining_at_once(session):
    (engine, _), (stepping, _) = session.engine(), session.engine()
    at_once = [(request.id, request.finished_ts) for request in engine.advance_to(inf)]
    stepped = []
    while (ts := stepping.next_event_ts()) < inf:
        finished = stepping.advance_to(ts)
        assert all(request.finished_ts == ts for request in finished)
        stepped += [(request.id, request.finished_ts) for request in finished]
    assert stepped == at_once


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=20), st.integers(0, 200), st.integers(0, 200), lengths_matter()
)
def test_spans_add_up_as_lengths_grow(tokens, first, second, lengths):
    time = Drawn(EngineOptions(), [], 1000, TIMES[2], lengths).iteration_time()
    longest = max(tokens) if time.needs_longest else 0
    whole = time.decode_span_s(len(tokens), sum(tokens), first + second, longest)
    parts = time.decode_span_s(len(tokens), sum(tokens), first, longest)
    parts += time.decode_span_s(len(tokens), sum(tokens) + first * len(tokens), second, longest and longest + first)
    assert whole == pytest.approx(parts, rel=1e-9)
    assert whole >= time.decode_span_s(len(tokens), sum(tokens), first + second) - 1e-12

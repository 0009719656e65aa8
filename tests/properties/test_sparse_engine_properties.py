"""The jumping engine with a sparse KV cache against the naive one, over random sessions."""

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.workload import SparseKv
from sim.engine.engine import Engine
from sim.engine.sparse_engine import PageSizes, SparseEngine
from sim.hardware.sparse_time import SparseTime
from tests.sim.oracle import LinearTime, assert_same, disturb, disturbances
from tests.sim.sparse_oracle import SparseOracle

KV_BYTES = 1000


@st.composite
def sessions(draw):
    max_num_seqs = draw(st.integers(1, 12))
    order = draw(st.sampled_from(list(Order)))
    engine_settings = EngineOptions(
        order=order,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.one_of(st.none(), st.integers(260, 400))),
        watermark_frac=draw(st.sampled_from([None, 0.0, 0.1])),
        enable_prefix_caching=False,
    )
    kv = SparseKv(
        budget_pages=draw(st.integers(1, 3)),
        rerank_every=draw(st.sampled_from([1, 4, 16, 20])),
        unstable_frac=draw(st.sampled_from([0.0, 0.25, 1.0])),
        promoted_frac=draw(st.sampled_from([0.0, 0.3])),
    )
    lengths, late = st.integers(1, 120), draw(st.sampled_from([0.0, 0.0137, 0.37]))
    arrival = st.integers(0, 12).map(lambda n: n * late)
    requests = draw(st.lists(st.tuples(lengths, lengths, arrival), min_size=1, max_size=25))
    longest_call = max(prompt + output for prompt, output, _ in requests)
    tight = draw(st.integers(longest_call + 16, longest_call * 4 + 16))
    # Slow enough to set the pace of every step, or of none: a change within a jump is beside the point.
    link_s = draw(st.sampled_from([0.0, 0.01]))
    return engine_settings, kv, requests, int(tight * 17 / 16 / 0.89) + 16, link_s


def make_engine(engine_settings, kv, kv_tokens, link_s):
    time = SparseTime(LinearTime(), kv, kv_bytes=KV_BYTES, context_tokens=256, link_s=link_s)
    sizes = PageSizes.of(kv, 4)
    return SparseEngine(
        iteration_time=time, settings=engine_settings, kv_tokens=kv_tokens, context_tokens=256, sizes=sizes
    )


def make_oracle(engine_settings, kv, kv_tokens, link_s):
    return SparseOracle(LinearTime(), engine_settings, kv_tokens, 256, kv=kv, kv_bytes=KV_BYTES, link_s=link_s)


@settings(max_examples=120, deadline=None)
@given(sessions(), st.data())
def test_the_engine_agrees_with_the_oracle_whatever_happens_on_the_way(session, data):
    engine_settings, kv, requests, *rest = session
    planned = data.draw(disturbances(len(requests)))
    seqs = make_oracle(engine_settings, kv, *rest).run(requests, planned.aborts, planned.cuts)
    engine = make_engine(engine_settings, kv, *rest)
    submitted = [engine.submit(i, *request) for i, request in enumerate(requests)]
    disturb(engine, submitted, planned)
    assert_same(submitted, seqs)
    cache = engine._batcher.kv
    assert cache.num_free == cache.num_blocks
    assert engine._decoding.batch() == (0, 0, 0, 0, 0)
    turns = any(prompt <= kv.dense_tokens < prompt + output for prompt, output, _ in requests)
    event(f"preempts: {any(seq.preemptions for seq in seqs)}, turns long: {turns}, link: {rest[-1] > 0}")


def test_the_watermark_is_a_share_of_units_and_not_of_blocks():
    """15 blocks have none at 1%, their 960 units have 9: the third prompt waits longer for its admission."""
    options = EngineOptions(max_num_seqs=3, enable_prefix_caching=False)
    kv = SparseKv(budget_pages=1, rerank_every=1, unstable_frac=1.0)
    requests = [(1, 84, 0.0411), (40, 75, 0.1507), (40, 42, 0.1507)]
    seqs = make_oracle(options, kv, 240, 0.0).run(requests)
    engine = make_engine(options, kv, 240, 0.0)
    submitted = [engine.submit(i, *request) for i, request in enumerate(requests)]
    engine.advance_to(float("inf"))
    assert_same(submitted, seqs)


@pytest.mark.parametrize("order", list(Order))
def test_a_budget_that_holds_everything_reads_everything(order):
    """Unstable heads alone and a budget above all lengths: the summaries are all that is left of it."""
    options = EngineOptions(order=order, max_num_batched_tokens=300, enable_prefix_caching=False)
    kv = SparseKv(budget_pages=1000, unstable_frac=1.0)
    sparse = make_engine(options, kv, 100_000, 0.0)
    dense = Engine(iteration_time=LinearTime(), settings=options, kv_tokens=100_000, context_tokens=256)
    for i in range(20):
        sparse.submit(i, 100 + i, 50 + 3 * i, 0.0)
        dense.submit(i, 100 + i, 50 + 3 * i, 0.0)
    ours, theirs = sparse.advance_to(float("inf")), dense.advance_to(float("inf"))
    assert [request.id for request in ours] == [request.id for request in theirs]
    assert [r.finished_ts for r in ours] == pytest.approx([r.finished_ts for r in theirs], rel=1e-9)

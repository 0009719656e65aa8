"""Prefills ahead of calls on the simulated cluster, worked out by hand: a token of a prompt takes 10 ms."""

import pytest

from mosaic.core.commands import Close, Open, Prefill, Submit
from mosaic.core.engine_options import EngineOptions
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.workload import AGGREGATE, Call, CallKey
from mosaic.runtime.loop import drive
from tests.controllers import Answers
from tests.factories import make_call
from tests.sim.cluster_runs import LinearHardware, make_backend
from tests.sim.oracle import LinearTime

FIRST = make_call("q", expert="B", slot=0, prompt_tokens=16)
SECOND = make_call("q", expert="B", slot=1, prompt_tokens=16)
BOTH = (FIRST.key, SECOND.key)
MERGED = Call(CallKey("q", AGGREGATE, 0), "A", 416, after=BOTH)
PER_TOKEN = LinearHardware(
    time=LinearTime(base_s=0.0, per_seq_s=1.0, per_kv_token_s=0.0, per_prefill_token_s=0.01, per_prefill_pair_s=0.0)
)
OPENED = [Open(Session(id=0, expert="A", workers=(0,))), Open(Session(id=1, expert="B", workers=(1,)))]


def begun(tokens: int, num_read: int, after=BOTH) -> Prefill:
    return Prefill(Call(MERGED.key, "A", tokens, after=after), 0, num_read)


def run(table, *, lengths=(3, 30), merged=MERGED, **settings):
    """B answers twice, and A reads both answers; gives A's record and what was prefilled."""
    backend = make_backend(
        lambda call, inputs: Outcome(2 if call.key.node == AGGREGATE else lengths[call.key.slot]),
        hardware=PER_TOKEN,
        settings=EngineOptions(**{"order": "mixed", "max_num_batched_tokens": 512, **settings}),
    )
    table = {"started": [*OPENED, Submit(FIRST, 1), Submit(SECOND, 1)]} | table
    if merged is not None:
        table[f"finished {SECOND.key}"] = [Submit(merged, 0)]
    result = drive(backend, [Answers(table)], num_workers=2)
    return next((record for record in result.calls if record.key == MERGED.key), None), result.prefills


def test_a_call_starts_where_its_prefilled_beginning_ends():
    record, (done,) = run({f"finished {FIRST.key}": [begun(320, 1)]})
    assert (done.prompt_tokens, done.cached_tokens, done.computed_tokens) == (320, 0, 320)
    assert done.finished_ts - done.queued_ts == pytest.approx(3.2)
    assert record.cached_tokens == 320
    assert record.first_token_ts - record.queued_ts == pytest.approx(0.96)


def test_without_a_prefill_all_of_it_is_computed():
    record, none = run({})
    assert none == ()
    assert (record.cached_tokens, record.first_token_ts - record.queued_ts) == (0, pytest.approx(4.16))


def test_a_longer_beginning_goes_on_where_the_last_one_ended():
    _, (short, long) = run({"ready 0": [begun(160, 0)], f"finished {FIRST.key}": [begun(320, 1)]}, lengths=(8, 30))
    assert (short.computed_tokens, long.cached_tokens, long.computed_tokens) == (160, 160, 160)


def test_the_call_takes_the_place_of_a_prefill_under_way_and_keeps_its_whole_blocks():
    # SECOND ends 4 s after FIRST: four iterations of 96 tokens are done, and the one under way is completed.
    table = {f"finished {FIRST.key}": [begun(400, 1)], f"finished {SECOND.key}": []}
    record, (done,) = run(table, lengths=(3, 4), max_num_batched_tokens=96, max_num_seqs=8)
    assert 0 < done.computed_tokens < 400
    assert record.cached_tokens == done.computed_tokens // 16 * 16


def test_a_longer_prefill_takes_the_place_of_a_shorter_one():
    table = {"ready 1": [begun(300, 0)], f"finished {FIRST.key}": [begun(400, 1)]}
    record, (dropped, done) = run(table, lengths=(2, 30), max_num_batched_tokens=32, max_num_seqs=8)
    assert dropped.computed_tokens < 300
    assert dropped.computed_tokens // 16 * 16 == done.cached_tokens
    assert record.cached_tokens == 400


def test_a_call_that_reads_something_else_finds_nothing():
    other = Call(MERGED.key, "A", 416, after=(SECOND.key, FIRST.key))
    record, (done,) = run({f"finished {FIRST.key}": [begun(320, 1)]}, merged=other)
    assert done.computed_tokens == 320
    assert record.cached_tokens == 0


def test_an_engine_that_caches_nothing_has_worked_in_vain():
    record, (done,) = run({f"finished {FIRST.key}": [begun(320, 1)]}, enable_prefix_caching=False)
    assert (done.computed_tokens, record.cached_tokens) == (320, 0)


def test_a_session_that_is_closed_drops_its_prefills():
    table = {"ready 0": [begun(400, 0), Close(0)], f"finished {FIRST.key}": [begun(400, 1)]}
    _, (done,) = run(table, merged=None, max_num_batched_tokens=32, max_num_seqs=8)
    assert done.finished_ts == done.queued_ts
    assert done.computed_tokens < 400

"""Moves, cuts, queues and prefills on the simulated cluster, by hand: loads take 10 s, iterations one second each."""

import pytest

from mosaic.core.commands import Cancel, Close, Cut, Move, Open, Prefill, Submit
from mosaic.core.engine_options import EngineOptions
from mosaic.core.events import Finished, Progress, Tick
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.core.workload import AGGREGATE, Call, CallKey
from mosaic.runtime.loop import drive
from tests.controllers import Answers, Watcher
from tests.factories import make_call, some_calls
from tests.sim.cluster_runs import LinearHardware, make_backend
from tests.sim.oracle import LinearTime
from tests.sim.test_backend import ONE_SECOND

A0, A1, A2, A3 = CALLS = some_calls("A", 4)
(B0,) = some_calls("B", 1)


def opened(number: int, expert: str = "A", *workers: int) -> Open:
    return Open(Session(id=number, expert=expert, workers=workers or (number,)))


def run(lengths, table, *, controllers=(), tick_s=None, **settings):
    """Run the commands of a table; calls write as many tokens as their question says."""
    backend = make_backend(
        lambda call, inputs: Outcome(lengths[call.key.question], "B", 3), hardware=ONE_SECOND,
        settings=EngineOptions(**settings),
    )  # fmt: skip
    result = drive(backend, [Answers(table), *controllers], num_workers=2, tick_s=tick_s)
    return result, {record.key.question: record for record in result.calls}


def marks(record):
    return (record.queued_ts, record.admitted_ts, record.first_token_ts, record.finished_ts)


class TestMove:
    def test_a_running_call_keeps_its_tokens_and_what_is_read_again_is_wasted(self):
        # Worker 1 is up at 10 too, and B0 finishes there at 14: A0 has 4 tokens then, reads 104 at once and has its
        # fifth at 15 on worker 1, where A loads until 24.
        started = [opened(0), Submit(A0, 0), opened(1, "B"), Submit(B0, 1), Close(1), opened(2, "A", 1)]
        result, records = run({"A0": 9, "B0": 4}, {"started": started, f"finished {B0.key}": [Move(A0.key, 2)]})
        record = records["A0"]
        assert marks(record) == (10.0, 10.0, 11.0, 29.0)
        assert (record.session, record.workers, record.attempt) == (2, (1,), 1)
        assert (record.output_tokens, record.answer, record.visible_tokens) == (9, "B", 3)
        assert record.wasted_tokens == 100 + 4 - 1
        assert {session.session: (session.num_calls, session.output_tokens) for session in result.sessions} == {
            0: (0, 0), 1: (1, 4), 2: (1, 9),
        }  # fmt: skip

    def test_a_call_that_waits_in_an_engine_wastes_nothing(self):
        started = [opened(0), opened(1), Submit(A0, 0), Submit(A1, 0), Submit(A2, 1)]
        _, records = run(
            {"A0": 9, "A1": 2, "A2": 3}, {"started": started, f"finished {A2.key}": [Move(A1.key, 1)]}, max_num_seqs=1
        )
        assert marks(records["A1"]) == (10.0, 13.0, 14.0, 15.0)
        assert (records["A1"].session, records["A1"].attempt, records["A1"].wasted_tokens) == (1, 1, 0)

    def test_a_call_leaves_its_experts_queue_and_one_whose_session_loads_goes_along(self):
        started = [opened(0), opened(1), Submit(A0, "A"), Move(A0.key, 1), Submit(A1, 0), Move(A1.key, 1)]
        result, records = run({"A0": 3, "A1": 5}, {"started": started})
        assert [(record.session, record.finished_ts) for record in result.calls] == [(1, 13.0), (1, 15.0)]
        assert (records["A0"].attempt, records["A1"].attempt) == (0, 1)

    def test_what_a_moved_call_has_is_counted_when_it_is_cancelled(self):
        started = [opened(0), opened(1), Submit(A0, 0), Submit(A1, 1), Submit(A2, 1)]
        table = {"started": started, f"finished {A1.key}": [Move(A0.key, 1)], f"finished {A2.key}": [Cancel(A0.key)]}
        _, records = run({"A0": 90, "A1": 4, "A2": 8}, table)
        record = records["A0"]
        # Four tokens by 14, then a prefill that A2 waits for and 4 steps beside it.
        assert (record.status, record.finished_ts, record.output_tokens, record.attempt) == (
            CallStatus.CANCELLED, 19.0, 9, 1,
        )  # fmt: skip
        assert record.wasted_tokens == (100 + 4 - 1) + (100 + 9 - 1)

    def test_a_call_whose_prompt_is_being_read_leaves_without_its_first_token(self):
        """Alone it is read sooner than beside three others, whose iteration goes on until after its end."""
        submits = [opened(0), opened(1), *(Submit(call, 0) for call in CALLS)]
        leave = Answers({"tick": [Cancel(A0.key), Cancel(A1.key), Move(A2.key, 1)]})
        backend = make_backend(lambda call, inputs: Outcome(1))
        result = drive(backend, [Answers({"started": submits}), leave], num_workers=2, tick_s=10.001)
        moved, stayed = (next(r for r in result.calls if r.key == call.key) for call in (A2, A3))
        assert (moved.status, moved.session, moved.output_tokens) == (CallStatus.FINISHED, 1, 1)
        assert 10.001 < moved.first_token_ts == moved.finished_ts < stayed.first_token_ts

    @pytest.mark.parametrize("tick_s", [11.5, 12.5])
    def test_a_call_whose_last_token_is_under_way_has_yet_to_write_it(self, tick_s):
        """With all of its tokens it would be too long for an iteration of the other session."""
        table = {"started": [opened(0), opened(1), Submit(A0, 0)], "tick": [Move(A0.key, 1)]}
        _, records = run({"A0": int(tick_s) - 9}, table, tick_s=tick_s, max_num_batched_tokens=100 + int(tick_s) - 10)
        assert (records["A0"].output_tokens, records["A0"].finished_ts) == (int(tick_s) - 9, tick_s + 1)

    def test_to_its_own_session_or_after_its_end_nothing_happens(self):
        table = {
            "started": [opened(0), opened(1), Submit(A0, 0), Move(A0.key, 0)],
            f"finished {A0.key}": [Move(A0.key, 1)],
        }
        _, records = run({"A0": 3}, table)
        assert (marks(records["A0"]), records["A0"].attempt) == ((10.0, 10.0, 11.0, 13.0), 0)


UNANSWERED, ANSWERED = (CallStatus.CUT, None, 0), (CallStatus.FINISHED, "B", 3)


class TestCut:
    @pytest.mark.parametrize(
        ("tokens", "is_running", "length", "written", "said"),
        [
            *((tokens, False, 9, tokens, UNANSWERED) for tokens in (1, 5, 8)),
            # One that would write no more keeps its answer.
            *((tokens, False, 9, 9, ANSWERED) for tokens in (9, 90)),
            # With four tokens when it is cut, it writes one more at least.
            *((tokens, True, 9, max(5, tokens), UNANSWERED) for tokens in (2, 4, 7)),
            # The last token under way completes the answer.
            (2, True, 5, 5, ANSWERED),
        ],
    )
    def test_it_writes_no_more_and_never_comes_to_its_answer(self, tokens, is_running, length, written, said):
        started = [opened(0), opened(1), Submit(A0, 0), Submit(A1, 1)]
        table = {"started": started}
        when = f"finished {A1.key}" if is_running else "started"
        table[when] = [*table.get(when, ()), Cut(A0.key, tokens)]
        record = run({"A0": length, "A1": 4}, table)[1]["A0"]
        assert (record.output_tokens, record.finished_ts) == (written, 10.0 + written)
        assert (record.status, record.answer, record.visible_tokens) == said

    def test_after_a_move_it_is_cut_to_what_it_has(self):
        started = [opened(0), Submit(A0, 0), opened(1, "B"), Submit(B0, 1), Close(1), opened(2, "A", 1)]
        table = {"started": started, f"finished {B0.key}": [Move(A0.key, 2), Cut(A0.key, 2)]}
        record = run({"A0": 9, "B0": 4}, table)[1]["A0"]
        assert (record.output_tokens, record.finished_ts, record.answer) == (5, 25.0, None)


class TestQueue:
    def test_a_session_takes_what_came_first_while_it_has_room(self):
        submits = [Submit(CALLS[number], "A") for number in (3, 1, 0, 2)]
        result, records = run(
            dict.fromkeys(("A0", "A1", "A2", "A3"), 3), {"started": [opened(0), *submits]}, max_num_seqs=1
        )
        assert [record.key.question for record in result.calls] == ["A3", "A1", "A0", "A2"]
        assert [record.admitted_ts for record in result.calls] == [10.0, 13.0, 16.0, 19.0]
        assert records["A0"].queued_ts == 16.0, "when its engine gets it"

    def test_who_has_room_first_takes_the_next(self):
        table = {"started": [opened(0), opened(1), *(Submit(call, "A") for call in CALLS[:3])]}
        _, records = run({"A0": 9, "A1": 2, "A2": 3}, table, max_num_seqs=1)
        assert {name: (record.session, record.admitted_ts) for name, record in records.items()} == {
            "A0": (0, 10.0), "A1": (1, 10.0), "A2": (1, 12.0),
        }  # fmt: skip

    def test_a_session_that_is_closed_leaves_the_queue_to_others(self):
        started = [opened(0), opened(1, "A", 1), *(Submit(call, "A") for call in CALLS[:2])]
        _, records = run({"A0": 3, "A1": 3}, {"started": started, "ready 0": [Close(0)]}, max_num_seqs=1)
        assert {record.session for record in records.values()} == {1}

    def test_a_call_that_comes_late_wakes_a_session_that_waits(self):
        table = {"started": [opened(0), opened(1, "B"), Submit(B0, 1)], f"finished {B0.key}": [Submit(A0, "A")]}
        _, records = run({"A0": 3, "B0": 30}, table)
        assert marks(records["A0"]) == (40.0, 40.0, 41.0, 43.0)


def test_ticks_tell_how_far_running_calls_are() -> None:
    watcher = Watcher()
    late = make_call("A1", ready_s=500.0)
    table = {"started": [opened(0), Submit(A0, 0), Submit(late, 0)]}
    run({"A0": 20, "A1": 1}, table, controllers=[watcher], tick_s=6.0)
    reported = [event.tokens for event in watcher.events if isinstance(event, Progress)]
    assert reported[:4] == [
        {A0.key: 2, late.key: 0},
        {A0.key: 8, late.key: 0},
        {A0.key: 14, late.key: 0},
        {late.key: 0},
    ]
    ticks = [event.ts for event in watcher.events if isinstance(event, Tick)]
    assert ticks == [6.0 * n for n in range(1, len(ticks) + 1)]
    assert [event.ts for event in watcher.events if isinstance(event, Finished)] == [30.0, 501.0]


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


def run_prefills(table, *, lengths=(3, 30), merged=MERGED, **settings):
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


AHEAD = {f"finished {FIRST.key}": [begun(320, 1)]}
LONGER = {"ready 0": [begun(160, 0)], **AHEAD}


@pytest.mark.parametrize(
    ("table", "options", "prefilled", "cached", "reading_s"),
    [
        pytest.param(AHEAD, {}, [(320, 0, 320)], 320, 0.96, id="a call starts where its prefilled beginning ends"),
        pytest.param({}, {}, [], 0, 4.16, id="without a prefill all of it is computed"),
        pytest.param(
            LONGER, {"lengths": (8, 30)}, [(160, 0, 160), (320, 160, 160)], 320, 0.96,
            id="a longer beginning goes on where the last one ended",
        ),
        pytest.param(
            AHEAD, {"merged": Call(MERGED.key, "A", 416, after=BOTH[::-1])}, [(320, 0, 320)], 0, 4.16,
            id="a call that reads something else finds nothing",
        ),
        pytest.param(
            AHEAD, {"enable_prefix_caching": False}, [(320, 0, 320)], 0, 4.16,
            id="an engine that caches nothing has worked in vain",
        ),
    ],
)  # fmt: skip
def test_what_was_prefilled_is_not_read_again(table, options, prefilled, cached, reading_s):
    record, done = run_prefills(table, **options)
    assert [(one.prompt_tokens, one.cached_tokens, one.computed_tokens) for one in done] == prefilled
    for one in done:
        assert one.finished_ts - one.queued_ts == pytest.approx(one.computed_tokens / 100)
    assert (record.cached_tokens, record.first_token_ts - record.queued_ts) == (cached, pytest.approx(reading_s))


def test_the_call_takes_the_place_of_a_prefill_under_way_and_keeps_its_whole_blocks():
    # SECOND ends 4 s after FIRST: four iterations of 96 tokens are done, and the one under way is completed.
    table = {f"finished {FIRST.key}": [begun(400, 1)], f"finished {SECOND.key}": []}
    record, (done,) = run_prefills(table, lengths=(3, 4), max_num_batched_tokens=96, max_num_seqs=8)
    assert 0 < done.computed_tokens < 400
    assert record.cached_tokens == done.computed_tokens // 16 * 16


def test_a_longer_prefill_takes_the_place_of_a_shorter_one():
    table = {"ready 1": [begun(300, 0)], f"finished {FIRST.key}": [begun(400, 1)]}
    record, (dropped, done) = run_prefills(table, lengths=(2, 30), max_num_batched_tokens=32, max_num_seqs=8)
    assert dropped.computed_tokens < 300
    assert dropped.computed_tokens // 16 * 16 == done.cached_tokens
    assert record.cached_tokens == 400


def test_a_session_that_is_closed_drops_its_prefills():
    table = {"ready 0": [begun(400, 0), Close(0)], f"finished {FIRST.key}": [begun(400, 1)]}
    _, (done,) = run_prefills(table, merged=None, max_num_batched_tokens=32, max_num_seqs=8)
    assert done.finished_ts == done.queued_ts
    assert done.computed_tokens < 400

"""Moves, cuts and queues on the simulated cluster, worked out by hand: loads take 10 s, iterations one second each."""

import pytest

from mosaic.core.commands import Cancel, Close, Cut, Move, Open, Submit
from mosaic.core.engine_options import EngineOptions
from mosaic.core.events import Finished, Progress, Tick
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.runtime.loop import drive
from tests.controllers import Answers, Watcher
from tests.factories import make_call, some_calls
from tests.sim.cluster_runs import make_backend
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

"""Controllers that open sessions, share queues, move, cut and cancel while a run goes on; the engine has no model."""

from itertools import count

import pytest
from msgspec import structs

from mosaic.core.commands import Close, Cut, Open, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Closed, Finished, Idle, Lost, Ready
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.engines.launcher import Patience
from tests.engines.executor_runs import (
    IMPATIENT,
    MoveAll,
    Runs,
    finished_once,
    make_checkpoint,
)
from tests.factories import make_plan, make_session, some_calls

A, B = some_calls("A", 30), some_calls("B", 10)


class Script:
    """Answers the first event of each kind that it has an answer for."""

    reacts = True

    def __init__(self, *, again=(), **answers) -> None:
        self.answers = answers
        self.again = again

    def on(self, event, view):
        name = type(event).__name__.lower()
        answer = self.answers.get(name, ()) if name in self.again else self.answers.pop(name, ())
        return answer(event, view) if callable(answer) else answer


def slow(tmp_path, host, tokens: int = 40, **changes) -> Runs:
    changes.setdefault("prompts", lambda call, inputs: "slow")
    changes.setdefault("outcomes", lambda call, inputs: Outcome(tokens, "B"))
    return Runs(tmp_path, host, **changes)


@pytest.mark.slow
def test_a_session_that_is_opened_for_an_idle_worker_keeps_the_expert_that_is_there(tmp_path, host):
    started = [Open(make_session(0, expert="A")), *(Submit(call, 0) for call in A[:3]), Close(0), *hold_open()]
    again = make_session(7, expert="A")
    script = Script(
        started=started,
        idle=lambda event, view: [Open(again), *(Submit(call, 7) for call in A[3:6]), Close(7), Close(1)],
    )
    result = Runs(tmp_path, host).drive(script)
    finished_once(tmp_path, [*A[:6], *B[:1]])
    by_number = {session.session: session for session in result.sessions}
    assert (by_number[0].load_s > 0, by_number[7].load_s) == (True, 0)
    assert by_number[7].start_ts >= by_number[0].end_ts


def hold_open():
    """A session on the other worker, so that the run does not end."""
    return [Open(make_session(1, expert="B", workers=(1,))), Submit(structs.replace(B[0], ready_s=1.0), 1)]


@pytest.mark.slow
def test_running_and_waiting_calls_move_and_go_on_where_they_were(tmp_path, host):
    calls = A[:16]
    stayed = slow(tmp_path, host, journal=tmp_path / "stayed")
    stayed.execute(make_plan(make_session(0, calls)), calls)
    executor = slow(tmp_path, host, prompts=lambda call, inputs: "slow" * 9)
    result = executor.drive(MoveAll(expert="A", target=3, calls=calls))
    finished_once(tmp_path, calls)
    assert {key: record.response.token_ids for key, record in executor.records.items()} == stayed.tokens
    moved = [record for record in result.calls if record.session == 3]
    carried = [record for record in moved if record.wasted_tokens]
    assert len(moved) > 8
    assert 0 < len(carried) <= 8
    assert all(36 <= record.wasted_tokens < 36 + 40 for record in carried), "prompt and what was written"
    assert {record.attempt for record in moved} <= {0, 1}
    assert all(record.attempt == 1 for record in carried)
    target = next(session for session in result.sessions if session.session == 3)
    assert all(record.queued_ts >= target.start_ts for record in moved)
    repeated = executor.drive(MoveAll(expert="A", target=3, calls=calls))
    assert repeated.calls == result.calls


def test_calls_are_cut_wherever_they_are(tmp_path, host):
    def cut(event, view):
        return [Cut(call.key, 12) for call in A] if any(event.tokens.values()) else ()

    started = [Open(make_session(0, expert="A")), Cut(A[29].key, 3)]
    started[1:1] = [Submit(call, 0) for call in A]
    executor = slow(tmp_path, host)
    executor.drive(Script(started=started, progress=cut, again=("progress",)))
    assert executor.records[A[29].key].output_tokens == 3
    written = [executor.records[call.key].output_tokens for call in A[:29]]
    assert min(written) == 12
    assert max(written) < 40
    for record in executor.records.values():
        assert (record.status, record.response.finish_reason) == (CallStatus.CUT, "cut")
        assert record.answer is None, "it did not come to its answer"
    finished_once(tmp_path, A)


def test_a_call_that_failed_may_be_submitted_again_and_one_that_finished_is_told_again(tmp_path, host):
    words = ["refuse"]

    def again(event, view):
        words[0] = "fine"
        return [Submit(A[0], 0)] if event.record.key == A[0].key and next(times) < 2 else ()

    times = count()
    started = [Open(make_session(0, expert="A")), Submit(A[0], 0), Submit(structs.replace(A[1], ready_s=0.5), 0)]
    executor = Runs(tmp_path, host, prompts=lambda call, inputs: words[0] if call.key == A[0].key else "x")
    executor.drive(Script(started=started, finished=again, again=("finished",)))
    told = [event.record.status for event in executor.watcher.all(Finished) if event.record.key == A[0].key]
    assert told == [CallStatus.FAILED, CallStatus.FINISHED, CallStatus.FINISHED]
    finished_once(tmp_path, A[:2])


def test_calls_of_the_queue_go_back_to_it_when_a_worker_is_lost(tmp_path, host):
    (make_checkpoint(tmp_path, "A") / "behave").write_text("lose once")
    sessions = [make_session(0, expert="A"), make_session(1, expert="A", workers=(1,))]
    executor = Runs(tmp_path, host, patience=Patience(max_restarts=0))
    result = executor.drive(Script(started=[*map(Open, sessions), *(Submit(call, "A") for call in A)]))
    finished_once(tmp_path, A)
    (lost,) = executor.watcher.all(Lost)
    assert {record.workers for record in result.calls} == {(1 - lost.worker,)}
    assert [event.worker for event in executor.watcher.all(Idle)] == [1 - lost.worker]


@pytest.mark.slow
def test_what_only_lost_workers_could_serve_is_left(tmp_path, host):
    (make_checkpoint(tmp_path, "A") / "behave").write_text("lose")
    executor = Runs(tmp_path, host, patience=Patience(max_restarts=0))
    started = [Open(make_session(0, expert="A")), *(Submit(call, "A") for call in A), *hold_open()]
    result = executor.drive(Script(started=started))
    assert [record.key for record in result.calls] == [B[0].key]
    assert [event.record.session for event in executor.watcher.all(Closed)] == [1]
    events = [type(event) for event in executor.watcher.events if isinstance(event, Lost | Closed | Ready)]
    assert sorted(kind.__name__ for kind in events) == ["Closed", "Lost", "Ready"]


def test_calls_of_a_queue_whose_sessions_break_fail_with_the_cause(tmp_path, host):
    executor = Runs(tmp_path, host, patience=Patience(max_retries=0), prompts=lambda call, inputs: "raise")
    result = executor.drive(Script(started=[Open(make_session(0, expert="A")), *(Submit(call, "A") for call in A)]))
    assert {record.status for record in result.calls} == {CallStatus.FAILED}
    assert len(result.calls) == len(A)
    assert {executor.error(call).split(";")[0] for call in A} == {"A failed: RuntimeError: the engine broke"}


def test_a_session_whose_process_dies_serves_its_queue_on(tmp_path, host):
    bad = A[5].key
    executor = Runs(
        tmp_path, host, patience=IMPATIENT, prompts=lambda call, inputs: "die once slow" if call.key == bad else "x"
    )
    executor.drive(Script(started=[Open(make_session(0, expert="A")), *(Submit(call, "A") for call in A)]))
    finished_once(tmp_path, A)


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([Submit(A[0], 0), Cut(A[0].key, 0)], "Cut A0/propose/0: tokens must be at least 1, got 0"),
        (
            [Open(make_session(1, expert="A")), Submit(A[0], 1)],
            r"sessions \[1\] wait for sessions \[0\], which have no calls and are not closed, and can never start",
        ),
    ],
)
def test_commands_that_make_no_sense_are_refused(tmp_path, host, commands, message):
    with pytest.raises(BackendError, match=message):
        Runs(tmp_path, host).drive(Script(started=[Open(make_session(0, expert="A")), *commands]))

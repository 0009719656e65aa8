"""What is held back because a call's inputs have not ended, and what happens to it meanwhile."""

from mosaic.core.commands import Cancel, Close, Command, Cut, Move, Open, Submit
from mosaic.core.events import Finished
from mosaic.core.plan import Session
from mosaic.core.results import CallStatus
from mosaic.core.view import View
from mosaic.runtime.dependencies import Dependencies
from tests.factories import make_call
from tests.run_records import make_record

FIRST = make_call("first")
LATER = make_call("later", after=(FIRST.key,))
LAST = make_call("last", after=(LATER.key,))


class Waiting:
    """A run of two sessions in which a call runs; the others wait for it."""

    def __init__(self, *given: Command) -> None:
        self.view = View(2)
        self.dependencies = Dependencies(self.view)
        opened = (Open(Session(id=number, expert="A", workers=(number,))) for number in range(2))
        self.admitted = [command for one in (*opened, Submit(FIRST, 0)) for command in self.give(one)]
        self.passed = [command for one in given for command in self.give(one)]
        """What was let through of the commands that the test is about."""

    def give(self, command: Command) -> list[Command]:
        self.view.expect(command)
        return list(self.dependencies.admit(command))

    def finish(self, call) -> list[Command]:
        self.view.observe(Finished(9.0, make_record(key=call.key)))
        return list(self.dependencies.release())


def test_a_call_is_held_until_all_that_it_comes_after_has_ended() -> None:
    other = make_call("other")
    both = make_call("both", after=(FIRST.key, other.key))
    run = Waiting(Submit(other, 1), Submit(LATER, 1), Submit(both, "A"), Submit(LAST, 0))
    assert run.passed == [Submit(other, 1)]
    assert run.finish(FIRST) == [Submit(LATER, 1)]
    assert run.finish(other) == [Submit(both, "A")]
    assert run.finish(LATER) == [Submit(LAST, 0)]
    assert run.finish(LAST) == []


def test_a_call_after_others_that_are_not_of_the_run_or_have_ended_is_let_through() -> None:
    strange = make_call("strange", after=(make_call("elsewhere").key,))
    run = Waiting(Submit(strange, 0))
    assert run.passed == [Submit(strange, 0)]
    run.finish(FIRST)
    assert run.give(Submit(LATER, 1)) == [Submit(LATER, 1)]


def test_a_session_is_closed_behind_the_calls_that_are_bound_for_it() -> None:
    run = Waiting(Submit(LATER, 1), Submit(LAST, 1), Close(1), Close(0))
    assert run.passed == [Close(0)]
    assert run.finish(FIRST) == [Submit(LATER, 1)]
    assert run.finish(LATER) == [Submit(LAST, 1), Close(1)]


def test_a_held_call_that_moves_is_submitted_elsewhere_and_its_session_closed_all_the_same() -> None:
    run = Waiting(Submit(LATER, 1), Close(1), Move(LATER.key, 0))
    assert run.passed == []
    assert run.finish(FIRST) == [Submit(LATER, 0), Close(1)]


def test_a_held_call_is_cut_when_it_is_submitted_to_the_least_that_was_said() -> None:
    run = Waiting(Submit(LATER, 1), Cut(LATER.key, 9), Cut(LATER.key, 5), Cut(LATER.key, 7), Cut(FIRST.key, 3))
    assert run.passed == [Cut(FIRST.key, 3)]
    assert run.finish(FIRST) == [Submit(LATER, 1), Cut(LATER.key, 5)]


def test_a_held_call_that_is_cancelled_ends_there_and_nobody_else_hears_of_it() -> None:
    run = Waiting(Submit(LATER, 1), Submit(LAST, "A"), Cut(LATER.key, 5))
    for call, session, workers in ((LATER, 1, (1,)), (LAST, -1, ())):
        record = run.dependencies.cancel(Cancel(call.key), 4.0)
        assert record is not None
        assert (record.key, record.status, record.session, record.workers) == (
            call.key, CallStatus.CANCELLED, session, workers,
        )  # fmt: skip
        assert (record.queued_ts, record.admitted_ts, record.finished_ts, record.output_tokens) == (4.0, None, 4.0, 0)
    assert run.finish(FIRST) == []


def test_a_call_that_a_backend_has_is_cancelled_there() -> None:
    run = Waiting(Cancel(FIRST.key))
    assert run.passed == [Cancel(FIRST.key)]
    assert run.dependencies.cancel(Cancel(FIRST.key), 4.0) is None
    assert run.dependencies.cancel(Close(0), 4.0) is None

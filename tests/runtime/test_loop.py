"""The one loop: who hears what, what is done about it, and how an interrupted run goes on."""

import time

from mosaic.core.commands import Action, Cancel, Close, Cut, Move, Open, Submit
from mosaic.core.events import Started, Tick, cause_of
from mosaic.core.plan import Session
from mosaic.core.results import CallStatus, LostWorker, Resumption
from mosaic.core.view import View
from mosaic.runtime.controller import Timed
from mosaic.runtime.journal import Start
from mosaic.runtime.loop import QUOTE, drive
from mosaic.runtime.static_plan import StaticPlan, execute
from tests.controllers import Answers, Watcher
from tests.factories import make_call, make_plan, make_session, some_calls
from tests.runtime.replay import Replay
from tests.runtime.scripted import MemoryLog, Scripted
from tests.sim.cluster_runs import by_key, make_backend

CALLS = some_calls("A", 4)
A0, A1, A2, A3 = CALLS
HOME = Session(id=0, expert="A", workers=(0,))
OTHER = Session(id=1, expert="A", workers=(1,))
OPEN = [Open(HOME), Open(OTHER)]


def run(*controllers, log=None, tokens=50, **options):
    """Run on two simulated workers; A's calls write more the later they are named."""
    backend = make_backend(by_key({call.key: tokens * (n + 1) for n, call in enumerate(CALLS)}))
    return drive(backend, controllers, num_workers=2, log=log, **options)


def statuses(result) -> dict[str, str]:
    return {record.key.question: record.status.value for record in result.calls}


def test_sessions_that_nobody_closed_are_closed_with_the_last_call() -> None:
    result = run(Answers({"started": [*OPEN, Submit(A0, 0), Submit(A1, 1)]}))
    last = result.calls[-1]
    assert result.actions[-2:] == (
        (last.finished_ts, f"finished {A1.key}", Close(0)),
        (last.finished_ts, f"finished {A1.key}", Close(1)),
    )
    assert {session.end_ts for session in result.sessions} == {last.finished_ts}


def test_no_session_is_closed_while_a_controller_still_wants_more() -> None:
    result = run(Answers({"started": [OPEN[0], Submit(A0, 0)], f"finished {A0.key}": [Submit(A1, 0)]}))
    assert statuses(result) == {"A0": "finished", "A1": "finished"}
    assert [command for _, _, command in result.actions] == [OPEN[0], Submit(A0, 0), Submit(A1, 0), Close(0)]


def test_every_controller_hears_every_event_and_sees_what_those_before_it_did() -> None:
    seen = []

    class Second(Watcher):
        def on(self, event, view):
            seen.append((cause_of(event), len(view.opened), len(view.running), len(view.records)))
            return super().on(event, view)

    first, second = Watcher(), Second()
    run(first, Answers({"started": [OPEN[0], Submit(A0, 0)]}), second)
    assert first.events == second.events
    assert isinstance(first.events[0], Started)
    assert [row for row in seen if row[0].startswith(("started", "finished"))] == [
        ("started", 1, 1, 0), (f"finished {A0.key}", 1, 0, 1),
    ]  # fmt: skip


def test_records_come_by_session_as_they_were_opened_and_by_their_end() -> None:
    first, second = make_session(7, [A2, A0]), make_session(3, [A3, A1], workers=(1,))
    result = execute(
        make_plan(first, second), CALLS, make_backend(by_key({c.key: 9 * (n + 1) for n, c in enumerate(CALLS)}))
    )
    assert [record.key.question for record in result.calls] == ["A0", "A2", "A1", "A3"]
    assert [session.session for session in result.sessions] == [7, 3]


def test_a_result_says_which_workers_were_lost_and_when_the_run_went_on() -> None:
    plan = make_plan(make_session(0, [A0]), make_session(1, [A1], workers=(1,)), make_session(2, [A2], workers=(1,)))
    log = MemoryLog(starts=[Start(0.5, 0.0), Start(100.0, 106.5)])
    result = drive(Scripted(losses={1: (1, "unplugged")}), [StaticPlan(plan, CALLS[:3])], num_workers=2, log=log)
    assert [record.key for record in result.calls] == [A0.key, A1.key], "nobody places anew what is left"
    assert result.lost_workers == (LostWorker(1.0, 1, "unplugged"),)
    assert result.resumptions == (Resumption(0.5, None),), "when it was started for the last time all was done"
    undisturbed = execute(plan, CALLS[:3], Scripted())
    assert (undisturbed.lost_workers, undisturbed.resumptions) == ((), ())


def test_ticks_come_where_somebody_wants_them() -> None:
    for tick_s, is_told in ((None, False), (3.0, True)):
        watcher = Watcher()
        run(Answers({"started": [OPEN[0], Submit(A0, 0)]}), watcher, tick_s=tick_s)
        assert any(isinstance(event, Tick) for event in watcher.events) == is_told


class Slow:
    reacts = True

    def on(self, event, view):
        time.sleep(0.02)
        yield Close(1)  # a generator: its seconds are those in which it is gone through
        time.sleep(0.02)
        yield Close(2)


def test_the_seconds_of_a_controller_are_counted():
    timed = Timed(Slow())
    assert timed.reacts
    assert timed.total_s == 0
    assert timed.on(Started(0.0), View(1)) == [Close(1), Close(2)]
    once_s = timed.total_s
    assert once_s >= 0.04
    timed.on(Started(0.0), View(1))
    assert timed.total_s >= once_s + 0.04


# A run that was interrupted goes on

PLAN = make_plan(make_session(0, [A0, A1]), make_session(1, [A2], workers=(1,)))


def planned() -> list:
    return [*StaticPlan(PLAN, CALLS).on(Started(0.0), None)]


def earlier(*commands, cause: str = "tick") -> list[Action]:
    """The log of the interrupted run: what the plan gave, and what something did that does not come again."""
    return [Action(0.0, "started", command) for command in planned()] + [Action(5.0, cause, c) for c in commands]


def test_commands_are_written_before_they_take_effect() -> None:
    log = MemoryLog()

    class Checking(Scripted):
        def apply(self, command) -> None:
            assert command in [action.command for action in log.written]
            super().apply(command)

    result = drive(Checking(), [StaticPlan(PLAN, CALLS)], num_workers=2, log=log)
    assert tuple(log.written) == result.actions


def test_what_controllers_give_again_is_not_written_twice_and_what_they_do_not_is_given_as_it_was() -> None:
    extra = Session(id=2, expert="A", workers=(1,))
    log = MemoryLog(earlier(Cancel(A1.key), Open(extra), Submit(A3, 2), Close(2)), ended=frozenset({A0.key}))
    result = run(StaticPlan(PLAN, CALLS), Answers({f"finished {A2.key}": [Cancel(A3.key)]}), log=log)
    assert statuses(result) == {"A0": "finished", "A1": "cancelled", "A2": "finished", "A3": "cancelled"}
    assert [action.command for action in log.written] == [Cancel(A3.key)], "what is new"
    folded = [action for action in result.actions if action.cause == "tick"]
    assert [action.command for action in folded] == [Cancel(A1.key), Open(extra), Submit(A3, 2), Close(2)]
    heard_ts = next(record.finished_ts for record in result.calls if record.key == A0.key)
    assert {action.ts for action in folded} == {heard_ts}, "controllers first hear of all that had ended"


def test_what_means_nothing_any_more_is_left_out() -> None:
    gone = Cancel(make_call("gone").key)
    past = [
        Cancel(A0.key),
        Cut(A0.key, 1),
        Move(A0.key, 1),
        Move(A1.key, 0),
        Submit(A2, 0),
        Open(OTHER),
        Close(1),
        gone,
    ]
    log = MemoryLog(earlier(*past), ended=frozenset({A0.key}))
    result = run(StaticPlan(PLAN, CALLS), log=log)
    assert statuses(result) == {"A0": "finished", "A1": "finished", "A2": "finished"}
    assert (log.written, [action.command for action in result.actions]) == ([], planned())


def test_a_call_whose_input_is_run_again_waits_for_who_submits_it_then() -> None:
    later = make_call("A3", after=(A1.key,))
    begun = [OPEN[0], Submit(A0, 0), Submit(A1, 0)]
    past = [Action(5.0, "started", command) for command in [*begun, Submit(later, 0)]]
    table = {"started": begun, f"finished {A1.key}": [Submit(later, 0)]}
    result = run(Answers(table), log=MemoryLog(past, ended=frozenset({A0.key})))
    assert statuses(result) == {"A0": "finished", "A1": "finished", "A3": "finished"}
    first = next(record.finished_ts for record in result.calls if record.key == A1.key)
    assert [action.ts for action in result.actions if action.command == Submit(later, 0)] == [first]


def test_moves_and_cuts_of_the_interrupted_run_are_done_again() -> None:
    kept = Session(id=2, expert="A", workers=(1,))
    log = MemoryLog(earlier(Open(kept), Move(A1.key, 2), Cut(A1.key, 60)))
    result = run(StaticPlan(PLAN, CALLS), log=log)
    record = next(record for record in result.calls if record.key == A1.key)
    assert (record.session, record.output_tokens, record.status) == (2, 60, CallStatus.CUT)
    assert [action.command for action in log.written] == [Close(2)], "nobody had closed it"


def test_what_a_quote_left_open_is_not_done_by_the_batch() -> None:
    """It may have been of other experts or questions."""
    left = [Open(Session(id=2, expert="of the quote", workers=(1,))), Submit(make_call("edited away"), 2)]
    log = MemoryLog(earlier(*left, cause=f"{QUOTE}idle 1"))
    result = run(StaticPlan(PLAN, CALLS), log=log)
    assert [action.command for action in result.actions] == planned()


def test_a_number_that_now_names_another_session_takes_nothing_from_the_log() -> None:
    log = MemoryLog(earlier(Open(Session(id=2, expert="B", workers=(1,))), Move(A1.key, 2), Close(2)))
    now = Session(id=2, expert="A", workers=(0,))
    result = run(StaticPlan(PLAN, CALLS), Answers({"started": [Open(now), Submit(A3, 2)]}), log=log)
    placed = {record.key: record.session for record in result.calls}
    assert (placed[A1.key], placed[A3.key]) == (0, 2)
    assert [action.command for action in result.actions].count(Move(A1.key, 2)) == 0


# Replay


class SecondTime:
    """Gives commands when an event comes for the second time."""

    reacts = True

    def __init__(self, cause: str, *commands) -> None:
        self.cause, self.commands, self.num_heard = cause, commands, 0

    def on(self, event, view):
        self.num_heard += cause_of(event) == self.cause
        return self.commands if cause_of(event) == self.cause and self.num_heard == 2 else []


def serve(number: int, call, *workers: int) -> list:
    return [Open(Session(id=number, expert="A", workers=workers)), Submit(call, number), Close(number)]


def test_what_a_tick_caused_is_done_again_when_its_time_has_come() -> None:
    started = Answers({"started": [OPEN[0], *(Submit(call, 0) for call in CALLS)]})
    result = run(started, SecondTime("tick", Cancel(A3.key)), tokens=900, tick_s=11.0)
    assert statuses(result)["A3"] == "cancelled"
    assert run(Replay(result.actions), tokens=900, tick_s=11.0) == result


def test_what_an_idle_worker_caused_is_done_again_when_it_is_idle_at_that_time() -> None:
    given = {"started": [*serve(0, A0, 0), *serve(1, A1, 1)], f"finished {A1.key}": serve(2, A2, 0)}
    result = run(Answers(given), SecondTime("idle 0", *serve(3, A3, 0)))
    assert [session.session for session in result.sessions] == [0, 1, 2, 3]
    assert run(Replay(result.actions)) == result

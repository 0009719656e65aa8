"""Whatever controllers do: every call ends once, no worker overlaps, and the log gives the run again."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.commands import Cancel, Close, Command, Cut, Move, Open, Submit
from mosaic.core.events import Finished, Progress, Started
from mosaic.core.plan import Session
from mosaic.core.results import SERVED, CallStatus
from mosaic.core.view import View
from mosaic.core.workload import CallKey
from mosaic.runtime.loop import drive
from mosaic.runtime.static_plan import StaticPlan, execute
from tests.controllers import Watcher
from tests.factories import make_call
from tests.run_records import assert_no_worker_overlaps
from tests.runtime.replay import Replay
from tests.sim.random_runs import runs

KINDS = ("cancel", "cut", "move", "open", "close", "submit", "queue", "after", *["nothing"] * 8)
REACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 99)), max_size=40)
NUM_SPARE = 6
TICKS = st.sampled_from([None, None, 0.7, 13.0])


class Drawn:
    """Does the next thing of a list at every event, as far as it is allowed then.

    Beside the plan's sessions it keeps one open for each expert on spare workers, so that queues are always served, and
    opens others one after the other, so that none waits behind one that is never closed.
    """

    reacts = True

    def __init__(self, reactions) -> None:
        self.left = deque(reactions)
        self.kept: list[Session] = []

    def on(self, event, view: View) -> list[Command]:
        if isinstance(event, Started):
            degrees = {session.expert: len(session.workers) for session in view.opened.values()}
            spare = iter(range(view.num_workers - NUM_SPARE, view.num_workers))
            for number, (name, degree) in enumerate(degrees.items(), start=view.next_session()):
                self.kept.append(Session(id=number, expert=name, workers=tuple(islice(spare, degree))))
            return [Open(session) for session in self.kept]
        return list(self.react(*self.left.popleft(), view)) if self.left else []

    def react(self, kind: str, one: int, other: int, view: View) -> Iterator[Command]:
        keys = list(view.calls)
        call = view.calls[keys[one % len(keys)]]
        alive = [number for number in view.opened if number not in view.closing | view.ended.keys()]
        places = [number for number in alive if view.opened[number].expert == call.expert]
        passing = [number for number in alive if number not in [session.id for session in self.kept]]
        extra = make_call(f"x{len(self.left)}", expert=call.expert, prompt_tokens=1 + other)
        if kind == "cancel":
            yield Cancel(call.key)
        elif kind == "cut":
            yield Cut(call.key, other)
        elif kind == "open" and not passing:
            session = next(session for session in view.opened.values() if session.expert == call.expert)
            yield Open(Session(id=view.next_session(), expert=session.expert, workers=session.workers))
        elif kind == "close":
            yield from map(Close, passing)
        elif places and kind == "move":
            yield Move(call.key, places[other % len(places)])
        elif places and kind == "submit":
            yield Submit(extra, places[other % len(places)])
        elif places and kind == "queue":
            yield Submit(extra, call.expert)
        elif places and kind == "after":
            ended = {key: None for key in (call.key, keys[other % len(keys)]) if key not in view.running}
            yield Submit(make_call(f"y{len(self.left)}", expert=call.expert, after=tuple(ended)), places[0])


def assert_whole(result) -> None:
    submits = {a.command.call.key: a for a in result.actions if isinstance(a.command, Submit)}
    assert sorted(record.key for record in result.calls) == sorted(submits)
    for record in result.calls:
        moments = [record.queued_ts, record.admitted_ts, record.first_token_ts, record.finished_ts]
        moments = [moment for moment in moments if moment is not None]
        assert moments == sorted(moments)
        assert (record.first_token_ts is None) == (record.output_tokens == 0)
        assert record.finished_ts >= submits[record.key].ts
        assert record.status is not CallStatus.FAILED
    assert_no_worker_overlaps(result)
    times = [action.ts for action in result.actions]
    assert times == sorted(times)
    opened: set[int] = set()
    for command in (action.command for action in result.actions):
        if isinstance(command, Open):
            opened.add(command.session.id)
        elif isinstance(command, Submit) and isinstance(command.to, int):
            assert command.to in opened
    finished = {record.session: 0 for record in result.sessions}
    for record in result.calls:
        if record.status in SERVED:
            finished[record.session] += 1
    assert {record.session: record.num_calls for record in result.sessions} == finished


@settings(max_examples=80, deadline=None)
@given(runs(num_spare=NUM_SPARE), REACTIONS, TICKS)
def test_whatever_is_done_the_records_stay_whole_and_the_log_gives_them_again(run, reactions, tick_s) -> None:
    make, plan, calls = run
    num_workers = plan.num_workers + NUM_SPARE

    watcher = Watcher()
    controllers = [StaticPlan(plan, calls), Drawn(reactions), watcher]
    result = drive(make(), controllers, num_workers=num_workers, tick_s=tick_s)
    assert_whole(result)
    assert sorted(watcher.records, key=str) == sorted(result.calls, key=str)
    again = drive(make(), [Replay(result.actions)], num_workers=num_workers, tick_s=tick_s)
    assert repr(again) == repr(result)


@settings(max_examples=40, deadline=None)
@given(runs(), TICKS)
def test_a_controller_that_receives_everything_and_does_nothing_changes_nothing(run, tick_s) -> None:
    """Sessions are drained in one jump where no controller reacts, and stepped through where one might."""
    make, plan, calls = run
    watcher = Watcher()
    num_workers, planned = plan.num_workers, StaticPlan(plan, calls)
    heard = drive(make(), [planned, watcher], num_workers=num_workers, tick_s=tick_s)
    alone = execute(plan, calls, make())
    assert drive(make(), [planned, Watcher(reacts=False)], num_workers=num_workers, tick_s=tick_s) == alone
    if tick_s is None:
        assert heard == alone
    else:  # Sums of seconds with stops between them are equal up to rounding.
        assert [session.end_ts for session in heard.sessions] == pytest.approx(
            [session.end_ts for session in alone.sessions]
        )
        instants = ({record.key: record.finished_ts for record in result.calls} for result in (heard, alone))
        assert next(instants) == pytest.approx(next(instants))
    instants = [event.ts for event in watcher.events]
    assert instants == sorted(instants)
    written: dict[CallKey, int] = {}
    lengths = {record.key: record.output_tokens for record in heard.calls}
    ended = set()
    for event in watcher.events:
        if isinstance(event, Finished):
            ended.add(event.record.key)
        if isinstance(event, Progress):
            assert not ended & event.tokens.keys()
            for key, tokens in event.tokens.items():
                assert written.get(key, 0) <= tokens < lengths[key]
                written[key] = tokens

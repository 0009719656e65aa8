"""Engines that run ahead of the clock: nobody can tell it from the records."""

from collections.abc import Iterable
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.commands import Cancel, Command, Cut, Move, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Event, Finished, Ready, Started, Tick
from mosaic.core.realization import Outcome
from mosaic.runtime.controller import View
from mosaic.runtime.loop import drive
from mosaic.runtime.no_barrier import Keeping
from mosaic.runtime.static_plan import execute, plan_commands
from sim.cluster.session import Lookahead, SimSession
from tests.controllers import Watcher, cancel_on
from tests.factories import make_call, make_plan, make_session, some_calls
from tests.sim.cluster_runs import make_backend
from tests.sim.random_runs import runs

kinds = st.sampled_from(["cancel", "cut", "move", "queue", "submit"])
steps = st.dictionaries(st.integers(1, 40), st.tuples(kinds, st.floats(0, 1)), max_size=8)
"""What is told at which event."""


class Steering:
    """Runs a plan without closing its sessions, and tells some call something at some of the events."""

    reacts = True

    def __init__(self, plan, calls, steps) -> None:
        self._plan, self._calls = plan, {call.key: call for call in calls}
        self._steps = steps
        self._num_heard = 0

    def on(self, event: Event, view: View) -> Iterable[Command]:
        if isinstance(event, Started):
            return list(plan_commands(self._plan, self._calls, closes=False))
        if not isinstance(event, Finished | Ready | Tick):
            return ()
        self._num_heard += 1
        if self._num_heard not in self._steps or not view.running:
            return ()
        return list(self._command(*self._steps[self._num_heard], view))

    def _command(self, kind: str, where: float, view: View) -> Iterable[Command]:
        key = list(view.running)[int(where * (len(view.running) - 1))]
        call = view.calls[key]
        sessions = [n for n, session in view.opened.items() if session.expert == call.expert and view.is_open(n)]
        to = sessions[int(where * len(sessions)) - 1]
        match kind:
            case "submit" | "queue":
                new = make_call(f"new {len(view.calls)}", expert=call.expert)
                yield Submit(new, to if kind == "submit" else call.expert)
            case "move":
                yield Move(key, to)
            case "cut":
                yield Cut(key, 1 + int(500 * where))
            case "cancel":
                yield Cancel(key)


@given(runs(), steps, st.sampled_from([None, 7.0]))
def test_records_and_events_are_those_of_engines_that_go_with_the_clock(run, steps, tick_s):
    make, plan, calls = run

    def drive_once():
        watcher = Watcher()
        steering = [Steering(plan, calls, steps), Keeping(), watcher]
        try:
            return drive(make(), steering, num_workers=plan.num_workers, tick_s=tick_s), watcher.events
        except BackendError as error:  # its expert's last session was closed before a call could leave the queue
            return str(error), watcher.events

    ahead = drive_once()
    with patch.object(SimSession, "look_ahead", lambda session: None):
        assert drive_once() == ahead


def test_an_engine_that_is_told_something_goes_back_once():
    calls, others = some_calls("A", 200), some_calls("B", 20)
    plan = make_plan(make_session(0, calls), make_session(1, others, workers=(1,)))
    backend = make_backend(lambda call, inputs: Outcome(7 + 13 * int(call.key.question[1:]) % 90))
    told = cancel_on(calls[3].key, calls[100].key, calls[101].key)
    with patch.object(Lookahead, "repeat", autospec=True, side_effect=Lookahead.repeat) as repeat:
        execute(plan, [*calls, *others], backend, [told])
    assert repeat.call_count == 1

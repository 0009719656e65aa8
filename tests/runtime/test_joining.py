"""Workers that join a run: they take calls over, and what was opened for them makes room."""

from dataclasses import replace

import pytest

from mosaic.core.commands import Close, Open, Submit
from mosaic.core.events import Idle, Joined, Lost, Started
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.workload import PROPOSE
from mosaic.runtime.controller import View
from mosaic.runtime.joining import Joining
from mosaic.runtime.loop import drive
from mosaic.runtime.moves import Moves
from mosaic.runtime.prospects import Measured, Prospects
from mosaic.runtime.static_plan import StaticPlan
from tests.factories import make_call, make_cluster, make_entry, make_expert, make_plan, make_profile, make_session
from tests.sim.cluster_runs import make_backend

JOIN_TS = 20.0


class Late:
    """A simulator whose worker 1 is not there from the start."""

    name = "sim"

    def __init__(self, backend, *, joins: bool) -> None:
        self.backend, self.joins = backend, joins
        self.apply = backend.apply

    def events(self, *, reacts, tick_s=None):
        for event in self.backend.events(reacts=reacts, tick_s=tick_s):
            if self.joins and event.ts >= JOIN_TS:
                self.joins = False
                yield Joined(event.ts, 1)
            yield event
            if isinstance(event, Started):
                yield Lost(0.0, 1, "not there yet")


@pytest.mark.parametrize("joins", [False, True])
def test_a_worker_that_joins_takes_calls_over_and_none_moves_before(joins: bool) -> None:
    calls = [make_call(f"q{i}", expert="A") for i in range(40)]
    plan = make_plan(make_session(0, calls), num_workers=2)
    known = replace(make_entry("A", load_s=10.0), output_tokens=(4000,) * 3)
    runs = []
    for joining in (False, True):
        backend = make_backend(
            lambda call, inputs: Outcome(4000, "A"), experts=[make_expert("A")], cluster=make_cluster(2)
        )
        prospects = Prospects(Measured({PROPOSE: make_profile(known)}, make_cluster(2)))
        steering = [prospects, *([Joining(Moves(prospects))] if joining else ())]
        everybody = [StaticPlan(plan, calls), *steering]
        runs.append(drive(Late(backend, joins=joins and joining), everybody, num_workers=2, tick_s=1.0))
    alone, joined = runs
    assert sorted(record.key for record in joined.calls) == sorted(call.key for call in calls)
    assert {record.workers for record in joined.calls} == ({(0,), (1,)} if joins else {(0,)})
    ends = [max(record.finished_ts for record in result.calls) for result in runs]
    assert ends[1] < 0.95 * ends[0] if joins else joined == alone


class OpensOne:
    """In the place of `Moves`: opens a session without calls."""

    def on(self, event, view):
        return [Open(Session(id=0, expert="A", workers=(1,)))] if isinstance(event, Joined) else ()


def test_what_was_opened_for_a_worker_makes_room_for_what_waits_behind_it() -> None:
    joining, view = Joining(OpensOne()), View(2)
    assert joining.on(Idle(0.0, 1), view) == ()
    opened = joining.on(Joined(1.0, 1), view)
    assert [type(command) for command in opened] == [Open]
    view.expect(opened[0])
    assert joining.on(Idle(2.0, 0), view) == [], "nothing waits"
    call = make_call("q", expert="B")
    view.expect(Open(Session(id=1, expert="B", workers=(1,))))
    view.expect(Submit(call, 1))
    assert joining.on(Idle(3.0, 0), view) == [Close(0)]
    view.expect(Submit(make_call("r", expert="A"), 0))
    assert joining.on(Idle(3.0, 0), view) == [], "it has calls"

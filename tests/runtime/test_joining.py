"""Workers that join a run: they take calls over, and what was opened for them makes room."""

from dataclasses import replace

import pytest

from mosaic.core.commands import Open, Submit
from mosaic.core.events import Joined, Lost, Ready, Started
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.workload import PROPOSE
from mosaic.runtime.loop import drive
from mosaic.runtime.moves import Moves
from mosaic.runtime.prospects import Prospects
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


class WantsWorker1:
    """Has a call of B wait for worker 1, as soon as what was opened there is up."""

    reacts = True

    def on(self, event, view):
        if not isinstance(event, Ready) or view.opened[event.session].workers != (1,) or len(view.opened) > 2:
            return ()
        return [Open(Session(id=2, expert="B", workers=(1,))), Submit(make_call("last", expert="B"), 2)]


@pytest.mark.parametrize("joins", [False, True])
def test_a_worker_that_joins_takes_calls_over_and_none_moves_before(joins: bool) -> None:
    """What was opened there is closed when something else waits for the worker: else its call would never run."""
    calls = [make_call(f"q{i}", expert="A") for i in range(40)]
    plan = make_plan(make_session(0, calls), num_workers=2)
    entries = [replace(make_entry(name, load_s=10.0), output_tokens=(4000,) * 3) for name in "AB"]
    runs = []
    for reacts in (False, True):
        backend = make_backend(
            lambda call, inputs: Outcome(4000, "A"), experts=[*map(make_expert, "AB")], cluster=make_cluster(2)
        )
        prospects = Prospects({PROPOSE: make_profile(*entries)}, make_cluster(2))
        steering = [prospects, Moves(prospects, waits_for_join=True), WantsWorker1()] if reacts else []
        controllers = [StaticPlan(plan, calls), *steering]
        runs.append(drive(Late(backend, joins=joins and reacts), controllers, num_workers=2, tick_s=1.0))
    alone, joined = runs
    served = {record.key: record for record in joined.calls}
    assert {record.workers for record in joined.calls} == ({(0,), (1,)} if joins else {(0,)})
    assert served.keys() - {call.key for call in calls} == ({make_call("last", expert="B").key} if joins else set())
    ends = [max(record.finished_ts for record in result.calls if record.expert == "A") for result in runs]
    assert ends[1] < 0.95 * ends[0] if joins else joined == alone

"""What lost workers leave is planned anew on the others, while the run goes on."""

from dataclasses import replace

import pytest

from mosaic.core.commands import Close, Open, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Lost
from mosaic.core.view import View
from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin
from mosaic.planning.program.schedulers import Ilp
from mosaic.planning.wrapped_costs import RunCosts
from mosaic.runtime.replanning import Replanning, describe_new_plan
from mosaic.runtime.static_plan import execute
from tests.factories import make_problem
from tests.runtime.scripted import Scripted

SCHEDULERS = [Ilp(), RoundRobin(), Fifo(), LeastLoaded(), DataParallel()]


def run(problem, scheduler, **losses):
    """Run a problem on workers that are lost after so many sessions; return the result, and each new plan with why."""

    def plan_anew(calls, lost):
        return scheduler.plan(replace(problem, calls=tuple(calls), costs=RunCosts(problem.costs, lost=frozenset(lost))))

    replans = []
    replanning = Replanning(plan_anew, lambda plan, lost: replans.append((plan, dict(lost))))
    backend = Scripted(losses={int(worker[1:]): loss for worker, loss in losses.items()})
    return execute(scheduler.plan(problem), problem.calls, backend, [replanning]), replans


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.name)
def test_every_call_is_served_once_by_workers_that_live(scheduler):
    problem = make_problem({"A": 9, "B": 6, "C": 3}, num_workers=3)
    result, replans = run(problem, scheduler, w0=(0, "unplugged"), w2=(1, "on fire"))
    assert sorted(record.key for record in result.calls) == sorted(call.key for call in problem.calls)
    assert {record.session for record in result.calls} == {session.session for session in result.sessions}
    assert not any(0 in session.workers for session in result.sessions)
    assert replans[0][1] == {0: "unplugged"}
    assert not any(0 in session.workers for session in replans[0][0].sessions)
    if len(replans) == 2:
        assert replans[1][1] == {0: "unplugged", 2: "on fire"}
        assert {session.workers for session in replans[1][0].sessions} == {(1,)}
    opened = [action.command.session.id for action in result.actions if isinstance(action.command, Open)]
    assert len(opened) == len(set(opened))


def test_a_new_plan_runs_at_once_in_sessions_of_its_own():
    problem = make_problem({"A": 4, "B": 2}, num_workers=2)
    result, ((plan, _),) = run(problem, RoundRobin(), w0=(0, "unplugged"))
    (session,) = plan.sessions
    again = [action.command for action in result.actions if action.cause == "lost 0"]
    assert again == [
        Open(replace(session, id=2, shard=())),
        *(Submit(call, 2) for call in problem.calls if call.expert == "A"),
        Close(2),
    ]
    assert describe_new_plan(plan, {0: "unplugged"}) == (
        "lost worker 0 (unplugged): 4 calls planned anew in 1 sessions on the other workers"
    )


def test_nothing_is_planned_anew_where_nothing_is_left():
    def refuse(calls, lost):
        raise AssertionError("there is nothing to plan")

    assert Replanning(refuse).on(Lost(5.0, 1, "idle, and gone"), View(2)) == ()
    result, replans = run(make_problem({"A": 4, "B": 1}), RoundRobin(), w0=(1, "after its last session"))
    assert (len(result.calls), replans) == (5, [])


def test_when_all_workers_are_lost_the_run_ends_with_the_causes():
    problem = make_problem({"A": 4, "B": 2}, num_workers=2)
    causes = r"\(worker 0: unplugged; worker 1: on fire\)"
    with pytest.raises(BackendError, match=rf"all workers are lost and \d calls are left {causes}"):
        run(problem, Ilp(), w0=(0, "unplugged"), w1=(0, "on fire"))


def test_an_expert_that_needs_more_workers_than_are_left_ends_the_run():
    problem = make_problem({"A": 4}, num_workers=2, tp_degree={"A": 2})
    with pytest.raises(BackendError, match=r"4 calls are left that no plan serves .*worker 1: on fire"):
        run(problem, Ilp(), w1=(0, "on fire"))

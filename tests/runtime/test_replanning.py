"""What lost workers leave is planned anew on the others; servers run what they hold."""

import json
from dataclasses import replace

import pytest

from mosaic.core.errors import BackendError, InfeasibleError
from mosaic.core.results import RunResult
from mosaic.planning.costs import Residency
from mosaic.planning.ilp.ilp import Ilp
from mosaic.planning.plan_file import plan_to_json
from mosaic.planning.restricted_costs import OnServers, WithoutWorkers
from mosaic.planning.schedulers.data_parallel import DataParallel
from mosaic.planning.schedulers.fifo import Fifo
from mosaic.planning.schedulers.least_loaded import LeastLoaded
from mosaic.planning.schedulers.round_robin import RoundRobin
from mosaic.runtime.replanning import describe_replan, execute_to_end, merge, replans_jsonl
from tests.factories import make_problem
from tests.run_records import make_record, make_session

SCHEDULERS = [Ilp(), RoundRobin(), Fifo(), LeastLoaded(), DataParallel()]


class Mortal:
    """Serves calls in a second each, session after session; workers die before the sessions that are told."""

    name = "mortal"

    def __init__(self, *deaths: dict[int, str]) -> None:
        self.deaths = list(deaths)
        self.dead_workers: dict[int, str] = {}
        self.plans = []
        self.now_s = 0.0

    def execute(self, plan, calls, listener=None) -> RunResult:
        assert sorted(call.key for call in calls) == sorted(key for s in plan.sessions for key in s.shard)
        self.plans.append(plan)
        self.dead_workers = self.deaths.pop(0) if self.deaths else {}
        records, sessions = [], []
        for session in plan.sessions:
            if self.dead_workers.keys() & set(session.workers):
                continue
            start = self.now_s
            for key in session.shard:
                self.now_s += 1.0
                records.append(
                    make_record(
                        key=key, expert=session.expert, session=session.id, workers=session.workers,
                        finished_ts=self.now_s,
                    )
                )  # fmt: skip
            sessions.append(
                make_session(
                    session.id, expert=session.expert, workers=session.workers, load=(start, start), end_ts=self.now_s
                )
            )
        return RunResult(calls=tuple(records), sessions=tuple(sessions), num_workers=plan.num_workers)


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.name)
def test_every_call_is_served_once_by_workers_that_live(scheduler):
    problem = make_problem({"A": 9, "B": 6, "C": 3}, num_workers=3)
    plan = scheduler.plan(problem)
    backend = Mortal({0: "unplugged"}, {2: "on fire"})
    told = []
    done = execute_to_end(plan, problem, backend, scheduler, on_plan=told.append)
    assert sorted(record.key for record in done.result.calls) == sorted(call.key for call in problem.calls)
    numbers = [session.session for session in done.result.sessions]
    assert len(numbers) == len(set(numbers))
    assert {record.session for record in done.result.calls} == set(numbers)
    assert list(done.replans) == told
    assert done.replans[0].lost_workers == {0: "unplugged"}
    assert not any(0 in session.workers for session in backend.plans[1].sessions)
    if len(done.replans) == 2:
        assert done.replans[1].lost_workers == {0: "unplugged", 2: "on fire"}
        assert {session.workers for session in backend.plans[2].sessions} == {(1,)}


def test_nothing_is_planned_anew_where_nothing_is_left():
    problem = make_problem({"A": 4}, num_workers=2)
    plan = RoundRobin().plan(problem)
    (session,) = plan.sessions
    done = execute_to_end(plan, problem, Mortal({1 - session.workers[0]: "idle, and gone"}), RoundRobin())
    assert done.replans == ()
    assert len(done.result.calls) == 4


def test_when_all_workers_are_lost_the_run_ends_with_the_causes():
    problem = make_problem({"A": 4, "B": 2}, num_workers=2)
    backend = Mortal({0: "unplugged"}, {1: "on fire"})
    with pytest.raises(
        BackendError, match=r"all workers are lost and \d calls are left \(worker 0: unplugged; worker 1"
    ):
        execute_to_end(Ilp().plan(problem), problem, backend, Ilp())


def test_an_expert_that_needs_more_workers_than_are_left_ends_the_run():
    problem = make_problem({"A": 4}, num_workers=2, tp_degree={"A": 2})
    with pytest.raises(BackendError, match=r"4 calls are left that no plan serves .*worker 1: on fire"):
        execute_to_end(Ilp().plan(problem), problem, Mortal({1: "on fire"}), Ilp())


def test_lines_tell_what_was_lost_and_planned():
    problem = make_problem({"A": 4, "B": 2}, num_workers=2)
    done = execute_to_end(RoundRobin().plan(problem), problem, Mortal({0: "unplugged"}), RoundRobin())
    assert describe_replan(done.replans[0]) == (
        "lost worker 0 (unplugged): 4 calls planned anew in 1 sessions on the other workers"
    )
    (line,) = replans_jsonl(done.replans).decode().splitlines()
    assert json.loads(line) == {
        "lost_workers": {"0": "unplugged"},
        "plan": json.loads(plan_to_json(done.replans[0].plan)),
    }


def test_merged_parts_keep_their_calls_apart():
    problem = make_problem({"A": 4}, num_workers=2)
    plan = RoundRobin().plan(problem)
    backend = Mortal()
    first, then = (backend.execute(plan, problem.calls) for _ in range(2))
    both = merge(first, then)
    assert [session.session for session in both.sessions] == [0, 1]
    assert [record.session for record in both.calls] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler.name)
def test_an_expert_runs_on_its_servers_only_and_is_loaded_there(scheduler):
    problem = make_problem({"A": 9, "B": 6}, num_workers=3)
    held = {0: "B", 1: "A", 2: "A"}
    served = replace(problem, costs=OnServers(problem.costs, held))
    for session in (plan := scheduler.plan(served)).sessions:
        assert {held[worker] for worker in session.workers} == {session.expert}
    assert all(times.load_s == 0 for times in plan.predicted)


def test_an_expert_without_a_server_has_no_place():
    problem = make_problem({"A": 9, "B": 6}, num_workers=2)
    with pytest.raises(InfeasibleError):
        Ilp().plan(replace(problem, costs=OnServers(problem.costs, {0: "A", 1: "A"})))


def test_prices_are_those_of_the_model_below():
    problem = make_problem({"A": 9, "B": 6}, num_workers=2)
    wrapped = WithoutWorkers(problem.costs, {0})
    expert, workers, shard = problem.expert("A"), problem.cluster.select((1,)), problem.summary("A", 5)
    assert wrapped.name == problem.costs.name
    assert wrapped.session_s(expert, shard, workers) == problem.costs.session_s(expert, shard, workers)
    assert wrapped.load_s(expert, workers, Residency.COLD) == problem.costs.load_s(expert, workers, Residency.COLD)
    assert wrapped.linear_terms(expert, workers) == problem.costs.linear_terms(expert, workers)
    assert wrapped.notes() == problem.costs.notes()
    assert wrapped.fits(expert, workers)
    assert not wrapped.fits(expert, problem.cluster.select((0,)))

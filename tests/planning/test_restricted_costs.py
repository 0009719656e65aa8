"""Workers that are gone, and servers that hold one expert each."""

from dataclasses import replace

import pytest

from mosaic.core.errors import InfeasibleError
from mosaic.planning.costs import Residency
from mosaic.planning.ilp.ilp import Ilp
from mosaic.planning.restricted_costs import OnServers, WithoutWorkers
from mosaic.planning.schedulers.data_parallel import DataParallel
from mosaic.planning.schedulers.fifo import Fifo
from mosaic.planning.schedulers.least_loaded import LeastLoaded
from mosaic.planning.schedulers.round_robin import RoundRobin
from tests.factories import make_problem

SCHEDULERS = [Ilp(), RoundRobin(), Fifo(), LeastLoaded(), DataParallel()]


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

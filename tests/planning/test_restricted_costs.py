"""Workers that are gone."""

from mosaic.planning.costs import Residency
from mosaic.planning.restricted_costs import WithoutWorkers
from tests.factories import make_problem


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

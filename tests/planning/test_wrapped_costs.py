"""Prices without workers that are gone, and what loads cost where sessions have left something."""

from dataclasses import replace

import pytest

from mosaic.core.plan import Session
from mosaic.core.view import View
from mosaic.planning.costs import WeightLocation
from mosaic.planning.program import Ilp
from mosaic.planning.program.instance import make_instance
from mosaic.planning.scheduler import predict_times
from mosaic.planning.wrapped_costs import LoadedModels, RunCosts
from mosaic.runtime.layers import loaded_models
from tests.factories import make_problem


def known(expert, workers, location) -> float:
    """From the host 3 s, waking 1 s."""
    return {WeightLocation.HOST: 3.0, WeightLocation.ASLEEP: 1.0}[location]


def test_what_a_wrapper_does_not_change_is_the_price_below() -> None:
    problem = make_problem({"A": 9, "B": 6}, num_workers=2, load_s=10.0, remarks=("A: beyond its sweep",))
    expert, gone, workers = problem.expert("A"), problem.cluster.select((0,)), problem.cluster.select((1,))
    for wrapped in (RunCosts(problem.costs, lost={0}), RunCosts(problem.costs, resident={0: "A", 1: "B"})):
        assert (wrapped.name, wrapped.notes()) == (problem.costs.name, problem.costs.notes())
        assert wrapped.pieces(expert, workers) == problem.costs.pieces(expert, workers)
        assert wrapped.load_s(expert, workers, WeightLocation.COLD) == 10.0
        assert wrapped.fits(expert, workers)
        assert wrapped.fits(expert, gone) is not wrapped.lost
    assert wrapped.load_s(expert, gone, WeightLocation.COLD) == 0.0


def test_an_expert_loads_for_nothing_only_on_the_workers_that_hold_it() -> None:
    problem = make_problem({"A": 30, "B": 12}, num_workers=3, load_s=10.0)
    held = replace(problem, costs=RunCosts(problem.costs, resident={0: "A", 2: "B"}))
    instance = make_instance(held)
    assert [[option.load_s for option in row] for row in instance.options] == [[0.0, 10.0, 10.0], [10.0, 10.0, 0.0]]
    assert instance.max_replicas == make_instance(problem).max_replicas  # a further copy costs what it did
    plan = Ilp().plan(held)
    assert plan.solve.objective_s == plan.predicted_makespan_s == 20.0
    assert {session.workers for session in plan.sessions if session.expert == "B"} == {(2,)}


def test_where_weights_are_depends_on_who_came_since() -> None:
    held = LoadedModels().after("A", (0,)).after("B", (0, 1))
    assert held.location("B", (0, 1)) is WeightLocation.RESIDENT
    assert held.location("A", (0,)) is WeightLocation.ASLEEP
    assert held.location("A", (1,)) is WeightLocation.HOST
    assert held.location("C", (0,)) is WeightLocation.COLD
    assert (held.anywhere("B"), held.anywhere("C")) == (WeightLocation.HOST, WeightLocation.COLD)


def test_a_worker_that_begins_anew_holds_nothing() -> None:
    held = LoadedModels().after("A", (0,)).after("B", (0, 1)).without(0)
    assert {held.location(*home) for home in [("A", (0,)), ("B", (0, 1))]} == {WeightLocation.COLD}
    assert LoadedModels().after("A", (1,)).without(0).location("A", (1,)) is WeightLocation.RESIDENT


def sessions(*places: tuple[str, int]) -> list[Session]:
    return [Session(id=number, expert=name, workers=(worker,)) for number, (name, worker) in enumerate(places)]


def test_plans_price_loads_by_what_their_own_sessions_leave_where_the_host_keeps_it() -> None:
    problem = make_problem({"A": 2, "B": 2}, load_s=10.0)
    stays = sessions(("A", 0), ("A", 1), ("B", 0), ("B", 0), ("A", 0))
    assert [times.load_s for times in predict_times(problem, stays)] == [10, 10, 10, 0, 10]
    kept = replace(problem, costs=RunCosts(problem.costs, host_loads=known))
    assert [times.load_s for times in predict_times(kept, stays)] == [10, 3, 10, 0, 1]


def test_an_expert_that_a_layer_before_has_loaded_costs_no_cold_load() -> None:
    problem = make_problem({"A": 2, "B": 2}, load_s=10.0)
    later = replace(problem, costs=RunCosts(problem.costs, host_loads=known), held=LoadedModels().after("A", (1,)))
    assert make_instance(problem).setup_s == ((10, 10), (10, 10))
    assert make_instance(later).setup_s == ((3, 3), (10, 10))
    assert [times.load_s for times in predict_times(later, sessions(("A", 1), ("A", 0)))] == [0, 3]


@pytest.mark.parametrize(("ended", "left"), [({}, WeightLocation.RESIDENT), ({0: None}, WeightLocation.COLD)])
def test_what_was_lost_with_its_worker_is_not_left(ended: dict[int, None], left: WeightLocation) -> None:
    view = View(2)
    (view.opened[0],) = sessions(("A", 0))
    view.ended.update(ended)
    assert loaded_models(view).location("A", (0,)) is left

"""What sessions have left behind, and what loads cost then."""

from dataclasses import dataclass, replace

import pytest

from mosaic.core.plan import Session
from mosaic.planning.costs import Residency
from mosaic.planning.held import Held, WithHost
from mosaic.planning.schedulers.base import predict_times
from mosaic.planning.schedulers.instance import make_instance
from mosaic.runtime.controller import View
from mosaic.runtime.left import left_behind
from tests.factories import make_problem


@dataclass(frozen=True)
class Known:
    """From the host 3 s, waking 1 s."""

    def load_s(self, expert, workers, residency):
        return {Residency.HOST: 3.0, Residency.ASLEEP: 1.0}.get(residency)


def test_where_weights_are_depends_on_who_came_since() -> None:
    held = Held().after("A", (0,)).after("B", (0, 1))
    assert held.residency("B", (0, 1)) is Residency.RESIDENT
    assert held.residency("A", (0,)) is Residency.ASLEEP
    assert held.residency("A", (1,)) is Residency.HOST
    assert held.residency("C", (0,)) is Residency.COLD
    assert (held.anywhere("B"), held.anywhere("C")) == (Residency.HOST, Residency.COLD)


def test_a_worker_that_begins_anew_holds_nothing() -> None:
    held = Held().after("A", (0,)).after("B", (0, 1)).without(0)
    assert {held.residency(*home) for home in [("A", (0,)), ("B", (0, 1))]} == {Residency.COLD}
    assert Held().after("A", (1,)).without(0).residency("A", (1,)) is Residency.RESIDENT


def sessions(*places: tuple[str, int]) -> list[Session]:
    return [Session(id=number, expert=name, workers=(worker,)) for number, (name, worker) in enumerate(places)]


def test_plans_price_loads_by_what_their_own_sessions_leave_where_the_host_keeps_it() -> None:
    problem = make_problem({"A": 2, "B": 2}, load_s=10.0)
    stays = sessions(("A", 0), ("A", 1), ("B", 0), ("B", 0), ("A", 0))
    assert [times.load_s for times in predict_times(problem, stays)] == [10, 10, 10, 0, 10]
    kept = replace(problem, costs=WithHost(problem.costs, Known()))
    assert [times.load_s for times in predict_times(kept, stays)] == [10, 3, 10, 0, 1]


def test_an_expert_that_a_layer_before_has_loaded_costs_no_cold_load() -> None:
    problem = make_problem({"A": 2, "B": 2}, load_s=10.0)
    later = replace(problem, costs=WithHost(problem.costs, Known()), held=Held().after("A", (1,)))
    assert make_instance(problem).setup_s == ((10, 10), (10, 10))
    assert make_instance(later).setup_s == ((3, 3), (10, 10))
    assert [times.load_s for times in predict_times(later, sessions(("A", 1), ("A", 0)))] == [0, 3]


@pytest.mark.parametrize(("ended", "left"), [({}, Residency.RESIDENT), ({0: None}, Residency.COLD)])
def test_what_was_lost_with_its_worker_is_not_left(ended: dict[int, None], left: Residency) -> None:
    view = View(2)
    (view.opened[0],) = sessions(("A", 0))
    view.ended.update(ended)
    assert left_behind(view).residency("A", (0,)) is left

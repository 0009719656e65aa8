"""The text of backend=none."""

from dataclasses import replace

from mosaic.planning.baselines import Fifo, RoundRobin
from mosaic.planning.explain import explain
from mosaic.planning.program.schedulers import Ilp
from tests.factories import make_problem


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_experts_are_shown_with_prices_cap_and_replicas() -> None:
    problem = make_problem({"A": 100, "B": 2}, max_replicas={"A": 2, "B": 1}, load_s={"A": 10.0, "B": 5.0})
    table = rows(explain(Ilp().plan(problem), problem))
    assert ["A", "100", "10.0", "100.0", "2", "2"] in [row[:6] for row in table]
    assert ["B", "2", "5.0", "2.0", "1", "1"] in [row[:6] for row in table]


def test_costs_are_those_that_the_plan_was_made_under() -> None:
    problem = make_problem()
    plan = RoundRobin().plan(problem)
    assert "of test-x2, costs=table\n" in explain(plan, problem)
    assert "Nothing was solved" in explain(plan, problem)
    assert "costs=paper (load and run s below: costs=table)" in explain(replace(plan, costs="paper"), problem)


def test_workers_are_shown_with_busy_and_idle_seconds() -> None:
    problem = make_problem({"A": 30, "B": 2})
    table = rows(explain(RoundRobin().plan(problem), problem))
    assert ["0", "40.0", "0.0", "A", "10", "+", "30"] in table
    assert ["1", "12.0", "28.0", "B", "10", "+", "2"] in table


def test_solver_outcome_and_reasons_are_shown() -> None:
    problem = make_problem({"A": 100, "B": 2}, max_replicas={"A": 2, "B": 1}, remarks=("B: extrapolated",))
    text = explain(Ilp().plan(problem), problem)
    assert "Predicted makespan 66.0 s; no plan under these prices and caps is below 66.0 s (0.00% above" in text
    assert "Solver: optimal, objective 66.000 s, bound 66.000 s, gap 0.0000%" in text
    assert "- A: 2 of at most 2 replica(s) (the pool's cap)" in text
    assert "- B: extrapolated" in text


def test_unknown_bound_and_missing_notes_are_no_error() -> None:
    problem = make_problem()
    plan = Ilp().plan(problem)
    bare = replace(plan, notes=(), solve=replace(plan.solve, bound_s=None, gap_frac=None))
    text = explain(bare, problem)
    assert "bound unknown, gap unknown" in text
    assert "Why" not in text


def test_idle_worker_and_long_queue_stay_on_one_line() -> None:
    problem = make_problem({"A": 1}, num_workers=2)
    assert ["1", "0.0", "11.0", "none"] in rows(explain(RoundRobin().plan(problem), problem))
    problem = make_problem({"A": 40, "B": 40}, num_workers=1)
    text = explain(Fifo(window_questions=2).plan(problem), problem)
    assert "... 73 more ..." in text


def test_gangs_are_joined_by_plus() -> None:
    problem = make_problem({"A": 4}, tp_degree=2)
    assert "0+1: 4" in explain(Ilp().plan(problem), problem)

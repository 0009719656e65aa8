"""How long planning takes: ``pytest tests/benchmarks/test_solver_speed.py --benchmark-enable``."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mosaic.core.plan import Plan, SolveStatus
from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin
from mosaic.planning.problem import Problem
from mosaic.planning.program.packing import best_packing
from mosaic.planning.program.schedulers import Ilp
from mosaic.planning.scheduler import Scheduler
from tests.factories import SLOTS, make_paper_problem
from tests.planning.placements import drawn_instance

pytestmark = pytest.mark.slow
SCHEDULERS = {scheduler.name: scheduler for scheduler in (RoundRobin(), Fifo(), LeastLoaded(), DataParallel(), Ilp())}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", SLOTS)
def test_plan_a_benchmark(benchmark: BenchmarkFixture, name: str, scheduler: str) -> None:
    problem, policy = make_paper_problem(name), SCHEDULERS[scheduler]
    plan = benchmark(_plan, policy, problem)
    assert plan.lower_bound_s <= plan.predicted_makespan_s * (1 + 1e-9)


@pytest.mark.parametrize("limits", [(None, None), (3, 4)], ids=["paper limits", "K=3 caps N"])
@pytest.mark.parametrize("costs", ["paper", "affine"])
@pytest.mark.parametrize("name", SLOTS)
def test_solve_a_benchmark(
    benchmark: BenchmarkFixture, name: str, costs: str, limits: tuple[int | None, int | None]
) -> None:
    problem = make_paper_problem(name, costs=costs)
    plan = benchmark(_plan, Ilp(max_experts_per_worker=limits[0], max_replicas=limits[1]), problem)
    benchmark.extra_info["solver_s"] = plan.solve.wall_s
    assert plan.solve.status is SolveStatus.OPTIMAL
    assert plan.solve.gap_frac is not None
    assert plan.solve.gap_frac <= 1e-6


@pytest.mark.parametrize(("num_experts", "num_workers"), [(12, 8), (24, 16), (48, 64)])
def test_pack_a_large_placement(benchmark: BenchmarkFixture, num_experts: int, num_workers: int) -> None:
    instance = drawn_instance(0, num_experts, num_workers, reasoning_frac=0.5)
    counts = benchmark.pedantic(best_packing, args=(instance, instance.lower_bound_s(k_applies=True)), rounds=1)
    assert counts is not None
    gap_frac = 1 - instance.lower_bound_s(k_applies=True) / instance.makespan_s(counts)
    benchmark.extra_info["gap_frac"] = gap_frac
    assert 0 <= gap_frac < 0.3


def _plan(scheduler: Scheduler, problem: Problem) -> Plan:
    return scheduler.plan(problem)

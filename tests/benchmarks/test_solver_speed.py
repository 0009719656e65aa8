"""How long planning takes: ``pytest tests/benchmarks/test_solver_speed.py --benchmark-enable``."""

from random import Random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mosaic.core.plan import Plan, SolveStatus
from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin
from mosaic.planning.problem import Problem
from mosaic.planning.program.bounds import lower_bound_s
from mosaic.planning.program.instance import make_instance
from mosaic.planning.program.packing import best_packing
from mosaic.planning.program.schedulers import Ilp
from mosaic.planning.scheduler import Scheduler
from tests.factories import SLOTS, make_paper_problem, make_problem

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
    random = Random(0)
    names = [f"expert{number:03d}" for number in range(num_experts)]
    problem = make_problem(
        {name: random.randint(100, 3000) for name in names},
        num_workers=num_workers,
        load_s={name: random.uniform(38, 47) for name in names},
        per_call_s={name: random.choice([random.uniform(0.05, 0.3), random.uniform(1.0, 2.5)]) for name in names},
    )
    instance = make_instance(problem, max_experts_per_worker=3)
    counts = benchmark.pedantic(best_packing, args=(instance,), rounds=1)
    assert counts is not None
    gap_frac = 1 - lower_bound_s(instance, k_applies=True) / instance.makespan_s(counts)
    benchmark.extra_info["gap_frac"] = gap_frac
    assert 0 <= gap_frac < 0.3


def _plan(scheduler: Scheduler, problem: Problem) -> Plan:
    return scheduler.plan(problem)

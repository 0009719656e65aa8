"""The program: by hand, against brute force, its limits and its outcomes."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import inf
from random import Random
from subprocess import run

import pytest

from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan, SolveStatus
from mosaic.planning.costs import WeightLocation, price_s
from mosaic.planning.problem import Problem
from mosaic.planning.program import model as program_model
from mosaic.planning.program import solve
from mosaic.planning.program.bounds import lower_bound_s, pattern_bound_s, subset_bound_s
from mosaic.planning.program.instance import Instance, identical_workers, make_instance
from mosaic.planning.program.model import Solution, build_model, find_symmetry, order_blocks, solve_model
from mosaic.planning.program.packing import best_packing, drop_needless_replicas, level, pack
from mosaic.planning.program.schedulers import Ilp
from mosaic.planning.program.solve import solve_instance
from tests.factories import (
    assert_plan_valid,
    make_cluster,
    make_gpu,
    make_mixed_cluster,
    make_paper_problem,
    make_problem,
)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def brute_force_s(problem: Problem, caps: dict[str, int], most_per_worker: int) -> float:
    """Try every split of every expert over its places; nothing of the schedulers is used but the prices."""
    num_workers = problem.cluster.num_workers
    options: list[list[tuple[list[float], list[int]]]] = []
    for name, calls in problem.calls_by_expert().items():
        expert = problem.expert(name)
        gangs = problem.gangs(expert)
        rows = []
        for split in compositions(len(calls), len(gangs)):
            if sum(number > 0 for number in split) > caps[name]:
                continue
            busy_s, hosted = [0.0] * num_workers, [0] * num_workers
            for gang, number in zip(gangs, split, strict=True):
                if number:
                    seconds = problem.costs.load_s(expert, gang, WeightLocation.COLD)
                    seconds += price_s(problem.costs.pieces(expert, gang), number)
                    for worker in gang:
                        busy_s[worker.id] += seconds
                        hosted[worker.id] += 1
            rows.append((busy_s, hosted))
        options.append(rows)
    best_s = float("inf")
    workers = range(num_workers)
    for choice in product(*options):
        makespan_s = max(sum(busy_s[worker] for busy_s, _ in choice) for worker in workers)
        if makespan_s < best_s and all(
            sum(hosted[worker] for _, hosted in choice) <= most_per_worker for worker in workers
        ):
            best_s = makespan_s
    return best_s


def random_tiny(random: Random) -> tuple[Problem, dict[str, int], int]:
    """Draw two or three experts on two or three workers (or gangs on four), few calls, odd prices."""
    gangs = random.random() < 0.2
    num_workers = 4 if gangs else random.choice([2, 3])
    names = "AB" if gangs else "ABC"[: random.choice([2, 3])]
    kinds = [make_gpu("fast"), make_gpu("slow")] if random.random() < 0.3 and not gangs else [make_gpu("fast")]
    cluster = make_mixed_cluster(*(random.choice(kinds) for _ in range(num_workers)))
    caps = {name: random.randint(1, num_workers) for name in names}
    problem = make_problem(
        {name: random.randint(1, 4 if len(names) * num_workers < 9 else 3) for name in names},
        cluster=cluster,
        load_s={name: random.uniform(0, 5) for name in names},
        fixed_s={name: random.choice([0.0, random.uniform(0, 3)]) for name in names},
        per_call_s={name: random.uniform(0.2, 4) for name in names},
        max_replicas=caps,
        tp_degree={name: random.choice([1, 2]) if gangs else 1 for name in names},
        slowdown_by_gpu={"slow": 2.5},
    )
    return problem, caps, random.choice([2, 3])


@pytest.mark.parametrize("block", range(4))
def test_equals_brute_force_on_200_tiny_instances(block: int) -> None:
    for seed in range(50 * block, 50 * (block + 1)):
        problem, caps, most_per_worker = random_tiny(Random(seed))
        expected_s = brute_force_s(problem, caps, most_per_worker)
        plan = Ilp(max_experts_per_worker=most_per_worker).plan(problem)
        assert plan.solve.status is SolveStatus.OPTIMAL, seed
        assert plan.predicted_makespan_s == pytest.approx(expected_s, rel=1e-6), seed
        assert plan.solve.objective_s == pytest.approx(expected_s, rel=1e-6), seed
        assert_plan_valid(plan, problem)
        workers = identical_workers(make_instance(problem, max_experts_per_worker=most_per_worker))
        for raise_s in (subset_bound_s, pattern_bound_s) if workers else ():
            assert raise_s(workers, low_s=0.0, high_s=3 * expected_s, until_ts=inf) <= expected_s * (1 + 1e-9), seed


def replicas(plan: Plan) -> dict[str, int]:
    return {name: sum(session.expert == name for session in plan.sessions) for name in plan.lengths}


def test_splits_the_long_expert_and_pins_the_short_one() -> None:
    # A alone takes 110 s; split 56 + 44 it ends at 10 + 56 on one worker and, after B, at 12 + 10 + 44 on the other.
    plan = Ilp().plan(make_problem({"A": 100, "B": 2}, max_replicas={"A": 2, "B": 1}))
    assert replicas(plan) == {"A": 2, "B": 1}
    assert plan.predicted_makespan_s == 66.0
    assert plan.lower_bound_s == pytest.approx(66.0)
    (shared,) = [worker for worker in range(2) if len(plan.worker_queue(worker)) == 2]
    assert [session.expert for session in plan.worker_queue(shared)] == ["B", "A"], "light experts first"


def test_wide_gangs_run_first_so_that_nested_ones_never_wait() -> None:
    problem = make_problem({"A": 9, "B": 9, "C": 1}, num_workers=4, tp_degree={"A": 1, "B": 2, "C": 4})
    plan = Ilp().plan(problem)
    assert len(plan.sessions[0].workers) == 4
    assert plan.predicted_makespan_s == pytest.approx(plan.solve.objective_s)


def test_gangs_that_do_not_nest_are_planned_with_a_warning() -> None:
    problem = make_problem({"A": 9, "B": 9}, num_workers=6, tp_degree={"A": 2, "B": 3})
    plan = Ilp().plan(problem)
    assert_plan_valid(plan, problem)
    assert any("do not divide one another" in note for note in plan.notes)


@pytest.mark.parametrize("costs", ["paper", "affine"])
@pytest.mark.parametrize("benchmark_name", ["mmlu_pro", "medmcqa", "gpqa"])
def test_benchmarks_are_solved_to_optimality(benchmark_name: str, costs: str) -> None:
    problem = make_paper_problem(benchmark_name, costs=costs)
    plan = Ilp().plan(problem)
    assert_plan_valid(plan, problem)
    assert plan.solve.status is SolveStatus.OPTIMAL
    assert plan.solve.gap_frac is not None
    assert plan.solve.gap_frac <= 1e-6
    assert all(replicas(plan)[name] == 1 for name in replicas(plan) if not name.endswith("R1"))
    assert max(len(plan.worker_queue(worker)) for worker in range(4)) <= 2


def test_reasoning_replica_shares_its_worker_with_one_light_expert_at_most() -> None:
    plan = Ilp().plan(make_paper_problem("mmlu_pro"))
    for worker in range(4):
        families = sorted(session.expert.endswith("R1") for session in plan.worker_queue(worker))
        assert families in ([False, True], [True])


def test_looser_limits_never_cost() -> None:
    problem = make_paper_problem("gpqa", costs="affine")
    tight = Ilp().plan(problem).predicted_makespan_s
    loose = Ilp(max_experts_per_worker=4, max_replicas=4).plan(problem).predicted_makespan_s
    assert loose <= tight * (1 + 1e-6)


def test_cap_comes_from_option_then_pool_then_equation_8() -> None:
    # Equation 8: A runs 95 s and loads 10 s, so floor(9.5) = 9 replicas, at most 4 workers; B runs 25: 2; C runs 5: 1.
    problem = make_problem({"A": 95, "B": 25, "C": 5}, num_workers=4)
    assert make_instance(problem).max_replicas == (4, 2, 1)
    pooled = make_problem({"A": 95, "B": 25, "C": 5}, num_workers=4, max_replicas={"A": 3, "B": 9})
    assert make_instance(pooled).max_replicas == (3, 4, 1)
    assert make_instance(pooled, max_replicas=2).max_replicas == (2, 2, 2)
    assert make_instance(pooled, max_replicas={"C": 3}).max_replicas == (3, 4, 3)


def test_default_k_is_the_least_feasible_but_two_at_least() -> None:
    assert make_instance(make_problem({"A": 1}, num_workers=4)).max_experts_per_worker == 2
    assert make_instance(make_problem(dict.fromkeys("ABCDE", 1), num_workers=2)).max_experts_per_worker == 3
    gangs = make_problem(dict.fromkeys("ABC", 1), num_workers=2, tp_degree=2)
    assert make_instance(gangs).max_experts_per_worker == 3


def test_notes_say_replicas_caps_and_why() -> None:
    plan = Ilp(max_replicas={"B": 1}).plan(make_problem({"A": 50, "B": 5}, max_replicas={"A": 2}))
    assert "A: 2 of at most 2 replica(s) (the pool's cap), 50 calls" in plan.notes
    assert "B: 1 of at most 1 replica(s) (scheduler.max_replicas), 5 calls" in plan.notes
    plan = Ilp().plan(make_problem({"A": 25}))
    assert "A: 2 of at most 2 replica(s) (equation 8: runs 25.0 s, loads 10.0 s), 25 calls" in plan.notes


def test_k_too_small_is_refused_with_the_least_that_would_do() -> None:
    with pytest.raises(InfeasibleError, match=r"K=1 is too small: 3 experts need 3 places and 2 workers offer 2; .*2"):
        Ilp(max_experts_per_worker=1).plan(make_problem(dict.fromkeys("ABC", 1)))


def test_k_that_only_the_solver_can_refute_is_refused_with_the_reason() -> None:
    # Three slots for three experts, but B and C fit on one worker only.
    cluster = make_mixed_cluster(make_gpu("small"), make_gpu("small"), make_gpu("large"))
    problem = make_problem({"A": 1, "B": 1, "C": 1}, cluster=cluster, misfits=[("B", "small"), ("C", "small")])
    with pytest.raises(InfeasibleError, match=r"K=1 experts per worker.*'B' has the fewest places, workers \[2\]"):
        Ilp(max_experts_per_worker=1).plan(problem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_experts_per_worker": 0}, "max_experts_per_worker must be at least 1, got 0"),
        ({"max_replicas": 0}, "max_replicas must be at least 1, got 0"),
        ({"max_replicas": {"A": 0}}, "cap of A must be at least 1, got 0"),
        ({"time_limit_s": 0.0}, "time_limit_s must be above 0, got 0.0"),
        ({"time_limit_s": float("nan")}, "time_limit_s must be finite"),
    ],
)
def test_bad_options_name_field_rule_and_value(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ilp(**options)  # type: ignore[arg-type]


def test_option_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"max_experts_per_worker must be a whole number, got 2\.5"):
        Ilp(max_experts_per_worker=2.5)  # type: ignore[arg-type]


def test_cap_of_an_unknown_expert_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^scheduler.max_replicas: expert must be one of \['A', 'B'\], got 'C'$"):
        Ilp(max_replicas={"C": 1}).plan(make_problem())


def test_workers_on_which_nothing_fits_do_not_count_for_k() -> None:
    cluster = make_mixed_cluster(make_gpu("small"), make_gpu("large"))
    misfits = [(name, "small") for name in "ABC"]
    plan = Ilp().plan(make_problem(dict.fromkeys("ABC", 4), cluster=cluster, misfits=misfits))
    assert {session.workers for session in plan.sessions} == {(1,)}
    assert plan.notes[0].startswith("at most K=3 experts per worker")
    others = Ilp().plan(make_problem(dict.fromkeys("ABCD", 4), cluster=cluster, misfits=misfits))
    assert others.notes[0].startswith("at most K=3 experts per worker"), "D fits on both, and helps no other"


def hard_instance(num_experts: int = 24, num_workers: int = 16) -> Instance:
    """Draw a synthetic problem that HiGHS cannot close in milliseconds."""
    random = Random(7)
    names = [f"e{number}" for number in range(num_experts)]
    problem = make_problem(
        {name: random.randint(100, 3000) for name in names},
        num_workers=num_workers,
        load_s={name: random.uniform(38, 47) for name in names},
        per_call_s={name: random.choice([random.uniform(0.05, 0.3), random.uniform(1, 2.5)]) for name in names},
    )
    return make_instance(problem, max_experts_per_worker=3)


def test_time_limit_with_an_incumbent_is_a_plan_with_a_gap() -> None:
    solved = solve_instance(hard_instance(), time_limit_s=1e-4)
    counts, report, bound_s = solved.counts, solved.report, solved.lower_bound_s
    assert solved.notes == ("too little time to build the program: packed, bounded in closed form",)
    assert report.status is SolveStatus.TIME_LIMIT
    assert [sum(row) for row in counts] == list(hard_instance().num_calls)
    assert report.objective_s is not None
    assert report.gap_frac is not None
    assert 0 < report.gap_frac < 0.2
    assert report.bound_s == bound_s < report.objective_s


def test_warm_start_reaches_the_solver() -> None:
    instance = hard_instance()
    start = best_packing(instance)
    assert start is not None
    longest_s = instance.makespan_s(start)
    # In a tenth of a millisecond HiGHS finds nothing itself.
    found = []
    for given in (start, None):
        model = build_model(instance, [instance.prices], [longest_s], is_reached=True)
        limits = {"time_limit_s": 1e-4, "gap_frac": 0.0}
        found.append(solve_model(model, instance, [instance.prices], start=given, **limits).counts)
    assert found == [start, None]


def test_time_limit_without_an_incumbent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "best_packing", lambda _, **__: None)
    with pytest.raises(InfeasibleError, match=r"no placement found in time_limit_s=0\.0001 under K=3"):
        solve_instance(hard_instance(), time_limit_s=1e-4)


def test_incumbent_that_the_solver_does_not_confirm_is_not_called_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Solution(
        counts=None, finished=False, termination="error", bound_s=None, num_vars=1, num_constraints=1, wall_s=0.0
    )
    monkeypatch.setattr("mosaic.planning.program.model.solve_model", lambda *_, **__: nothing)
    instance = make_instance(make_problem({"A": 100, "B": 2}, max_replicas={"A": 2, "B": 1}))
    solved = solve_instance(instance, time_limit_s=0.5)
    assert solved.report.status is SolveStatus.TIME_LIMIT
    assert solved.notes[0] == "the solver stopped early: error"


@pytest.mark.parametrize(("excess_frac", "refuted"), [(0.0, False), (5e-7, False), (2e-6, True), (0.5, True)])
def test_solver_bound_above_the_objective_is_not_used(
    monkeypatch: pytest.MonkeyPatch, excess_frac: float, refuted: bool
) -> None:
    # Three calls of 10 s on two workers take 20 s; the closed form spreads them evenly.
    instance = make_instance(make_problem(dict.fromkeys("ABC", 1), load_s=0.0, per_call_s=10.0))
    closed_form_s = lower_bound_s(instance, k_applies=True)
    assert closed_form_s == pytest.approx(15.0)

    def overstate(*arguments: object, **options: object) -> Solution:
        return replace(solve_model(*arguments, **options), bound_s=20.0 * (1 + excess_frac))  # type: ignore[arg-type]

    monkeypatch.setattr("mosaic.planning.program.model.solve_model", overstate)
    solved = solve_instance(instance, time_limit_s=5.0)
    assert solved.report.objective_s == 20.0
    assert solved.report.bound_s == solved.lower_bound_s == (closed_form_s if refuted else 20.0)
    assert (solved.report.status is SolveStatus.OPTIMAL) is not refuted
    assert [" is above a placement of 20 s" in note for note in solved.notes] == [True] * refuted


def test_model_is_solved_again_when_highs_fails_its_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = make_instance(make_problem({"A": 40, "B": 7}))
    tried = []

    def fail_with_presolve(model: object, *, options: dict[str, object], **limits: object) -> object:
        tried.append(options["presolve"])
        results = run_highs(model, options=options, **limits)
        if options["presolve"] != "off":
            results.termination_condition = program_model.TerminationCondition.error
            results.best_feasible_objective = None
        return results

    run_highs = program_model._run_highs
    monkeypatch.setattr(program_model, "_run_highs", fail_with_presolve)
    assert solve_instance(instance, time_limit_s=5.0).report.status is SolveStatus.OPTIMAL
    assert tried == ["choose", "off"]


def test_solver_without_a_start_agrees() -> None:
    instance = make_instance(make_problem({"A": 40, "B": 7, "C": 3}, num_workers=3))
    scenarios = [instance.prices]
    longest_s = [instance.longest_s(instance.prices)]
    model = build_model(instance, scenarios, longest_s, symmetry=find_symmetry(instance))
    cold = solve_model(model, instance, scenarios, start=None, time_limit_s=10.0, gap_frac=0.0)
    counts = solve_instance(instance, time_limit_s=10.0).counts
    assert cold.finished
    assert cold.counts is not None
    assert instance.makespan_s(cold.counts) == pytest.approx(instance.makespan_s(counts))


def test_packing_gives_up_without_a_slot() -> None:
    instance = replace(make_instance(make_problem(dict.fromkeys("ABC", 1))), max_experts_per_worker=1)
    assert pack(instance, 100.0) is None
    assert best_packing(instance) is None


def test_levelling_evens_out_workers_linked_through_a_third() -> None:
    instance = make_instance(make_problem({"A": 60, "B": 60}, num_workers=3, load_s=0.0, max_replicas=2))
    levelled = level(instance, ((59, 1, 0), (0, 59, 1)))
    assert instance.makespan_s(levelled) <= 41.0  # 40 s, but for one call


def test_levelling_puts_free_calls_on_one_place() -> None:
    instance = make_instance(make_problem({"A": 6, "B": 1}, per_call_s=0.0, max_replicas=2))
    assert instance.makespan_s(level(instance, ((3, 3), (1, 0)))) == 10.0


def test_replicas_that_save_nothing_are_closed() -> None:
    instance = make_instance(make_problem({"A": 100, "B": 4, "C": 1}, num_workers=3, max_replicas=3))
    assert drop_needless_replicas(instance, ((100, 0, 0), (0, 2, 2), (0, 0, 1))) == ((100, 0, 0), (0, 0, 4), (0, 0, 1))
    tight = ((50, 50, 0), (0, 0, 4), (0, 0, 1))
    assert drop_needless_replicas(instance, tight) == tight


def test_symmetry_orders_equal_blocks_only() -> None:
    cluster = make_mixed_cluster(*(make_gpu(kind) for kind in ("fast", "slow", "fast", "slow")))
    instance = make_instance(make_problem({"A": 40, "B": 4}, cluster=cluster, slowdown_by_gpu={"slow": 2.0}))
    symmetry = find_symmetry(instance)
    assert symmetry is not None
    assert symmetry.classes == ((0, 2), (1, 3))
    counts = ((5, 10, 20, 5), (0, 0, 4, 0))
    ordered = order_blocks(counts, symmetry)
    assert ordered == ((20, 10, 5, 5), (4, 0, 0, 0))
    assert instance.makespan_s(ordered) == instance.makespan_s(counts)


def test_symmetry_moves_narrow_gangs_with_the_wide_block() -> None:
    instance = make_instance(make_problem({"A": 4, "B": 4}, num_workers=4, tp_degree={"A": 1, "B": 2}, max_replicas=4))
    symmetry = find_symmetry(instance)
    assert symmetry is not None
    assert order_blocks(((1, 1, 2, 0), (1, 3)), symmetry) == ((2, 0, 1, 1), (3, 1))


def test_unlike_workers_have_no_symmetry() -> None:
    cluster = make_mixed_cluster(make_gpu("fast"), make_gpu("slow"))
    problem = make_problem({"A": 4}, cluster=cluster, slowdown_by_gpu={"slow": 2.0})
    assert find_symmetry(make_instance(problem)) is None
    assert find_symmetry(make_instance(make_problem({"A": 0}, cluster=make_cluster(2)))) is None


def test_baselines_do_not_import_pyomo() -> None:
    code = (
        "import sys, mosaic.planning.baselines, mosaic.planning.program.schedulers, mosaic.planning.explain;"
        "sys.exit(any(name.startswith('pyomo') for name in sys.modules))"
    )
    assert run([sys.executable, "-c", code], check=False).returncode == 0

"""The placement program: by hand, against brute force, its limits, its outcomes, and what may be left to choose."""

from dataclasses import replace
from itertools import product
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import InfeasibleError, PlanError, ProfileError
from mosaic.core.plan import Plan, SolveStatus
from mosaic.planning.baselines import Fifo, LeastLoaded
from mosaic.planning.costs import LinearTerms, price_s
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem
from mosaic.planning.program import Flexible, Ilp, solve
from mosaic.planning.program import model as program_model
from mosaic.planning.program.bounds import pattern_bound_s, subset_bound_s
from mosaic.planning.program.instance import identical_workers, make_free_instance, make_instance
from mosaic.planning.program.model import Solution, build_model, find_symmetry, order_blocks, solve_model
from mosaic.planning.program.packing import best_packing, drop_needless_replicas, level, pack
from mosaic.planning.program.schedulers import PriceSource
from mosaic.planning.program.solve import risk_s, solve_instance
from tests.factories import (
    SlottedSessions,
    assert_plan_valid,
    make_cluster,
    make_expert,
    make_gpu,
    make_mixed_cluster,
    make_paper_problem,
    make_problem,
    worker_queue,
)
from tests.planning.placements import bent_problem, brute_force_s, drawn_instance, random_bent, random_tiny

EXACT = Flexible(gap_frac=0.0)
HARD = drawn_instance(7, 24, 16)
"""HiGHS cannot close it in milliseconds."""
SHORT = {"time_limit_s": 1e-4, "gap_frac": 0.0}


@pytest.mark.parametrize("block", range(2))
def test_equals_brute_force_on_100_tiny_instances(block: int) -> None:
    for seed in range(50 * block, 50 * (block + 1)):
        problem, caps, most_per_worker = random_tiny(Random(seed))
        expected_s = brute_force_s(problem, caps=caps, most_per_worker=most_per_worker)
        plan = Ilp(max_experts_per_worker=most_per_worker).plan(problem)
        assert plan.solve.status is SolveStatus.OPTIMAL, seed
        assert plan.predicted_makespan_s == pytest.approx(expected_s, rel=1e-6), seed
        assert plan.solve.objective_s == pytest.approx(expected_s, rel=1e-6), seed
        assert_plan_valid(plan, problem)
        workers = identical_workers(make_instance(problem, max_experts_per_worker=most_per_worker))
        for raise_s in (subset_bound_s, pattern_bound_s) if workers else ():
            assert raise_s(workers, low_s=0.0, high_s=3 * expected_s, until_ts=inf) <= expected_s * (1 + 1e-9), seed


@pytest.mark.parametrize("block", range(4))
def test_free_degrees_and_bent_prices_equal_brute_force(block: int) -> None:
    for number in range(10):
        problem = random_bent(Random(100 * block + number))
        plan, expected_s = EXACT.plan(problem), brute_force_s(problem)
        assert_flexible_plan_valid(plan, problem)
        assert plan.solve.status is SolveStatus.OPTIMAL
        assert plan.solve.objective_s == pytest.approx(expected_s, rel=1e-6, abs=1e-5)
        assert plan.predicted_makespan_s == pytest.approx(expected_s, rel=1e-6, abs=1e-5)
        assert make_free_instance(problem).lower_bound_s() <= expected_s * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("quantile", [None, 0.5, 0.8])
@pytest.mark.parametrize("prices", list(PriceSource))
def test_scenarios_equal_brute_force(quantile: float | None, prices: PriceSource) -> None:
    for number in range(5):
        problem = replace(random_bent(Random(number)), session_model=SlottedSessions(num_slots=1, token_s=0.01))
        scheduler = Flexible(
            gap_frac=0.0, num_scenarios=5, length_error=2.0, quantile=quantile, prices=prices, seed=number
        )
        plan = scheduler.plan(problem)
        assert_flexible_plan_valid(plan, problem)
        scenarios = scheduler.scenarios(problem, make_free_instance(problem))
        assert len(set(scenarios)) > 1
        expected_s = brute_force_s(problem, scenarios=scenarios, quantile=quantile)
        assert plan.solve.objective_s == pytest.approx(expected_s, rel=1e-6, abs=1e-5)


def assert_flexible_plan_valid(plan: Plan, problem: Problem) -> None:
    """What every plan promises; gangs may have any of an expert's degrees."""
    check_plan(plan, problem)
    assert plan.lower_bound_s <= plan.predicted_makespan_s * (1 + 1e-6) + 1e-6
    for session in plan.sessions:
        shaped = replace(problem.expert(session.expert), tp_degree=len(session.workers))
        assert session.workers in {tuple(worker.id for worker in gang) for gang in problem.gangs(shaped)}


def replicas(plan: Plan) -> dict[str, int]:
    return {name: sum(session.expert == name for session in plan.sessions) for name in plan.lengths}


def test_splits_the_long_expert_and_pins_the_short_one() -> None:
    # A alone takes 110 s; split 56 + 44 it ends at 10 + 56 on one worker and, after B, at 12 + 10 + 44 on the other.
    plan = Ilp().plan(make_problem({"A": 100, "B": 2}, max_replicas={"A": 2, "B": 1}))
    assert replicas(plan) == {"A": 2, "B": 1}
    assert plan.predicted_makespan_s == 66.0
    assert plan.lower_bound_s == pytest.approx(66.0)
    (shared,) = [worker for worker in range(2) if len(worker_queue(plan, worker)) == 2]
    assert [session.expert for session in worker_queue(plan, shared)] == ["B", "A"], "light experts first"


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


@pytest.mark.parametrize(
    ("benchmark_name", "costs"),
    [("mmlu_pro", "paper"), ("mmlu_pro", "affine"), ("medmcqa", "affine"), ("gpqa", "paper")],
)
def test_benchmarks_are_solved_to_optimality(benchmark_name: str, costs: str) -> None:
    problem = make_paper_problem(benchmark_name, costs=costs)
    plan = Ilp().plan(problem)
    assert_plan_valid(plan, problem)
    assert plan.solve.status is SolveStatus.OPTIMAL
    assert plan.solve.gap_frac is not None
    assert plan.solve.gap_frac <= 1e-6
    assert all(replicas(plan)[name] == 1 for name in replicas(plan) if not name.endswith("R1"))
    assert max(len(worker_queue(plan, worker)) for worker in range(4)) <= 2
    for worker in range(4):
        families = sorted(session.expert.endswith("R1") for session in worker_queue(plan, worker))
        assert families in ([False, True], [True]) or benchmark_name != "mmlu_pro" or costs != "paper"


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


def test_workers_on_which_nothing_fits_do_not_count_for_k() -> None:
    cluster = make_mixed_cluster(make_gpu("small"), make_gpu("large"))
    misfits = [(name, "small") for name in "ABC"]
    plan = Ilp().plan(make_problem(dict.fromkeys("ABC", 4), cluster=cluster, misfits=misfits))
    assert {session.workers for session in plan.sessions} == {(1,)}
    assert plan.notes[0].startswith("at most K=3 experts per worker")
    others = Ilp().plan(make_problem(dict.fromkeys("ABCD", 4), cluster=cluster, misfits=misfits))
    assert others.notes[0].startswith("at most K=3 experts per worker"), "D fits on both, and helps no other"


@pytest.mark.parametrize(
    ("options", "problem", "message"),
    [
        (
            {}, make_problem(dict.fromkeys("ABC", 1)),
            r"K=1 is too small: 3 experts need 3 places and 2 workers offer 2; .*2",
        ),
        # Three slots for three experts, but B and C fit on one worker only: the solver alone can refute it.
        (
            {},
            make_problem(
                dict.fromkeys("ABC", 1),
                cluster=make_mixed_cluster(make_gpu("small"), make_gpu("small"), make_gpu("large")),
                misfits=[("B", "small"), ("C", "small")],
            ),
            r"K=1 experts per worker.*'B' has the fewest places, workers \[2\]",
        ),
        ({"free": True}, make_problem(dict.fromkeys("ABC", 1)), "K=1 experts per worker"),
        ({"free": True}, make_problem({"A": 2}, misfits=[("A", "gpu")]), "expert 'A' fits on no"),
    ],
    ids=["closed form", "solver", "free", "fits nowhere"],
)  # fmt: skip
def test_problems_without_a_placement_say_why(options: dict[str, bool], problem: Problem, message: str) -> None:
    scheduler = Flexible if options else Ilp
    with pytest.raises(InfeasibleError, match=message):
        scheduler(max_experts_per_worker=1).plan(problem)


SHARED_LIMITS = [
    ({"max_experts_per_worker": 0}, "scheduler.max_experts_per_worker must be at least 1, got 0"),
    ({"max_experts_per_worker": 2.5}, r"scheduler.max_experts_per_worker must be a whole number, got 2\.5"),
    ({"max_replicas": 0}, "scheduler.max_replicas must be at least 1, got 0"),
    ({"max_replicas": {"A": 0}}, "scheduler.max_replicas: cap of A must be at least 1, got 0"),
    ({"time_limit_s": 0.0}, "scheduler.time_limit_s must be above 0, got 0.0"),
    ({"time_limit_s": float("nan")}, "scheduler.time_limit_s must be finite"),
]
FREE_LIMITS = [
    ({"num_scenarios": 0}, "scheduler.num_scenarios must be"),
    ({"length_error": 2.0}, "scheduler.num_scenarios must be above 1 where"),
    ({"quantile": 0.9}, "scheduler.num_scenarios must be above 1 where"),
    ({"num_scenarios": 5, "quantile": 1.0}, "scheduler.quantile must be .*below 1"),
    ({"num_scenarios": 5, "length_error": 0.5}, "scheduler.length_error must be at least 1"),
    ({"prices": "wishes"}, "scheduler.prices must be one of"),
    ({"gap_frac": -1.0}, "scheduler.gap_frac must be"),
]


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        *((Ilp, *row) for row in SHARED_LIMITS),
        *((Flexible, *row) for row in (*SHARED_LIMITS, *FREE_LIMITS)),
        (Fifo, {"window_questions": 0}, "scheduler.window_questions must be at least 1, got 0"),
        (Fifo, {"window_questions": -1}, "scheduler.window_questions must be at least 1, got -1"),
        (LeastLoaded, {"longest_first": "yes"}, "scheduler.longest_first must be true or false, got 'yes'"),
    ],
)
def test_bad_options_name_field_rule_and_value(scheduler: type, options: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        scheduler(**options)


@pytest.mark.parametrize("scheduler", [Ilp, Flexible])
def test_cap_of_an_unknown_expert_is_refused(scheduler: type) -> None:
    with pytest.raises(ValueError, match=r"^scheduler.max_replicas: expert must be one of \['A', 'B'\], got 'C'$"):
        scheduler(max_replicas={"C": 1}).plan(make_problem())


def test_iterations_need_a_model_and_lengths() -> None:
    by_iterations = Flexible(prices=PriceSource.ITERATIONS)
    with pytest.raises(ValueError, match="session model must be one that steps iterations"):
        by_iterations.plan(replace(make_problem(), session_model=None))
    with pytest.raises(ProfileError, match="must keep lengths of 'A', got none"):
        by_iterations.plan(replace(make_problem(), length_samples={}))
    with pytest.raises(TypeError, match="tp_degrees must be a list"):
        replace(make_expert("A"), tp_degrees="12")


def test_a_tail_is_spread_over_more_workers() -> None:
    # One call takes 10 s on one worker and 10 / 1.6 on two: nothing else shortens the only expert's only call.
    problem = bent_problem({"A": 1}, {"A": (LinearTerms(10.0, 0.0),)}, degrees={"A": (2,)})
    plan = EXACT.plan(problem)
    assert [session.workers for session in plan.sessions] == [(0, 1)]
    assert plan.predicted_makespan_s == pytest.approx(1 + 10 / 1.6)
    narrow = replace(problem, experts=(make_expert("A"),))
    assert EXACT.plan(narrow).predicted_makespan_s == pytest.approx(11.0)
    with pytest.raises(PlanError, match=r"A spans 1 workers, got \(0, 1\)"):
        check_plan(plan, narrow)


def test_limits_that_are_given_hold() -> None:
    problem = make_problem({"A": 40, "B": 40, "C": 40}, num_workers=3, load_s=0.0)
    free = EXACT.plan(problem)
    assert free.predicted_makespan_s == pytest.approx(40.0)
    capped = Flexible(max_replicas=1, max_experts_per_worker=1).plan(problem)
    assert len(capped.sessions) == 3
    assert {len(worker_queue(capped, n)) for n in range(3)} == {1}
    by_name = Flexible(max_replicas={"A": 1}).plan(problem)
    assert sum(session.expert == "A" for session in by_name.sessions) == 1
    with pytest.raises(InfeasibleError, match="K=1"):
        Flexible(max_experts_per_worker=1).plan(make_problem({"A": 1, "B": 1, "C": 1}, num_workers=2))


def test_a_plan_against_wrong_means_does_not_bet_on_one_expert() -> None:
    """Right means: an expert a worker. Means that may be off: each expert on both, for a second load each."""
    problem = make_problem({"A": 100, "B": 100}, load_s=5.0, max_replicas=2)
    assert len(EXACT.plan(problem).sessions) == 2
    robust = Flexible(num_scenarios=15, length_error=2.0, quantile=0.8).plan(problem)
    assert {(session.expert, session.workers[0]) for session in robust.sessions} == {*product("AB", (0, 1))}


def test_levels_are_spread_evenly_between_the_extremes() -> None:
    problem = make_problem({"A": 3, "B": 3})
    instance = make_free_instance(problem)
    drawn = Flexible(num_scenarios=14, length_error=2.0).scenarios(problem, instance)
    factors = sorted(one.options[0][0].pieces[0].per_call_s for one in drawn)
    assert factors[0] == factors[1] == pytest.approx(2 ** (1 / 7 - 1))
    assert factors[-1] == pytest.approx(2 ** (1 - 1 / 7))
    assert len(set(factors)) == 7
    assert Flexible().scenarios(problem, instance) == (instance,)


def test_iterations_price_the_longest_answer_in_every_session() -> None:
    problem = replace(
        make_problem({"A": 40}, load_s=0.0),
        length_samples={"A": (1,) * 39 + (1000,)},
        session_model=SlottedSessions(num_slots=40, token_s=1.0),
    )
    instance = make_free_instance(problem)
    (drawn,) = Flexible(prices=PriceSource.ITERATIONS, seed=1).scenarios(problem, instance)
    pieces = drawn.options[0][0].pieces
    assert price_s(pieces, 5) == price_s(pieces, 40) == pytest.approx(1000.0)


@given(
    makespans_s=st.lists(st.floats(0, 1000), min_size=1, max_size=12),
    quantile=st.one_of(st.none(), st.floats(0.05, 0.95)),
)
def test_risk_lies_between_the_mean_and_the_worst(makespans_s: list[float], quantile: float | None) -> None:
    risk = risk_s(makespans_s, quantile)
    assert sum(makespans_s) / len(makespans_s) <= risk * (1 + 1e-9) + 1e-9
    assert risk <= max(makespans_s) * (1 + 1e-9)
    if quantile is not None:
        # The program's form: least over t of t + E[max(0, makespan - t)] / (1 - quantile), at one of the makespans.
        form = min(
            t + sum(max(0.0, s - t) for s in makespans_s) / ((1 - quantile) * len(makespans_s)) for t in makespans_s
        )
        assert risk == pytest.approx(form, abs=1e-6)


def test_time_limit_with_an_incumbent_is_a_plan_with_a_gap() -> None:
    solved = solve_instance(HARD, time_limit_s=1e-4)
    counts, report, bound_s = solved.counts, solved.report, solved.lower_bound_s
    assert solved.notes == ("too little time to build the program: packed, bounded in closed form",)
    assert report.status is SolveStatus.TIME_LIMIT
    assert [sum(row) for row in counts] == list(HARD.num_calls)
    assert report.objective_s is not None
    assert report.gap_frac is not None
    assert 0 < report.gap_frac < 0.2
    assert report.bound_s == bound_s < report.objective_s


def test_warm_start_reaches_the_solver() -> None:
    start = best_packing(HARD, HARD.lower_bound_s(k_applies=True))
    assert start is not None
    # In a tenth of a millisecond HiGHS finds nothing itself.
    found = []
    for known in (start, None):
        model = build_model([HARD], [HARD.makespan_s(start)], is_reached=True)
        found.append(solve_model(model, [HARD], start=known, **SHORT).counts)
    assert found == [start, None]


def test_time_limit_without_an_incumbent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "best_packing", lambda *_, **__: None)
    with pytest.raises(InfeasibleError, match=r"no placement found in time_limit_s=0\.0001 under K=3"):
        solve_instance(HARD, time_limit_s=1e-4)


def test_incumbent_that_the_solver_does_not_confirm_is_not_called_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Solution(counts=None, finished=False, termination="error", bound_s=None, num_vars=1, num_constraints=1)
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
    closed_form_s = instance.lower_bound_s(k_applies=True)
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
    scenarios = [instance]
    longest_s = [instance.longest_s()]
    model = build_model(scenarios, longest_s, symmetry=find_symmetry(instance))
    cold = solve_model(model, scenarios, start=None, time_limit_s=10.0, gap_frac=0.0)
    counts = solve_instance(instance, time_limit_s=10.0).counts
    assert cold.finished
    assert cold.counts is not None
    assert instance.makespan_s(cold.counts) == pytest.approx(instance.makespan_s(counts))


def test_packing_gives_up_without_a_slot() -> None:
    instance = replace(make_instance(make_problem(dict.fromkeys("ABC", 1))), max_experts_per_worker=1)
    assert pack(instance, 100.0) is None
    assert best_packing(instance, instance.lower_bound_s(k_applies=True)) is None


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

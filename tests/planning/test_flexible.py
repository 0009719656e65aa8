"""The flexible program: against brute force, what it may choose, and scenarios of lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.cluster import Worker
from mosaic.core.errors import InfeasibleError, PlanError, ProfileError
from mosaic.core.plan import Plan, SolveStatus
from mosaic.core.workload import Expert
from mosaic.planning.costs import LinearTerms, WeightLocation, price_s
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem
from mosaic.planning.program import Flexible, Ilp
from mosaic.planning.program.bounds import work_bound_s
from mosaic.planning.program.instance import Instance, Pieces, Prices, make_free_instance
from mosaic.planning.program.scenarios import PriceSource, Uncertainty
from mosaic.planning.program.solve import risk_s
from mosaic.planning.wrapped_costs import WrappedCosts
from tests.factories import SlottedSessions, assert_plan_valid, make_calls, make_cluster, make_expert, make_problem

EXACT = Flexible(gap_frac=0.0)


@dataclass(frozen=True)
class BentCosts(WrappedCosts):
    """Piecewise prices by expert, halved on every doubling of the degree but for the fixed part."""

    pieces_by_expert: dict[str, Pieces]
    load_s_by_expert: dict[str, float]

    def load_s(self, expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        return 0.0 if location is WeightLocation.RESIDENT else self.load_s_by_expert[expert.name]

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        speed = {1: 1.0, 2: 1.6, 4: 2.2}[len(workers)]
        return tuple(LinearTerms(fixed / speed, call / speed) for fixed, call in self.pieces_by_expert[expert.name])


def bent_problem(
    num_calls: dict[str, int],
    *,
    pieces: dict[str, Pieces],
    load_s: float = 1.0,
    num_workers: int = 2,
    degrees: dict[str, tuple[int, ...]] | None = None,
) -> Problem:
    plain = make_problem(num_calls, num_workers=num_workers)
    experts = tuple(
        replace(make_expert(name), tp_degrees=(degrees or {}).get(name, ())) for name in dict.fromkeys(num_calls)
    )
    costs = BentCosts(plain.costs, pieces, dict.fromkeys(num_calls, load_s))
    return replace(plain, experts=experts, costs=costs)


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def least_risk_s(instance: Instance, scenarios: Sequence[Prices], quantile: float | None) -> float:
    """Try every split of every expert over its options."""
    splits = [
        list(compositions(number, len(options)))
        for number, options in zip(instance.num_calls, instance.options, strict=True)
    ]
    best_s = float("inf")
    for counts in product(*splits):
        makespans_s = []
        for prices in scenarios:
            busy_s = [0.0] * instance.num_workers
            for row, options, pieces in zip(counts, instance.options, prices, strict=True):
                for o, number in enumerate(row):
                    for worker in options[o].workers if number else ():
                        busy_s[worker] += options[o].load_s + max(a + b * number for a, b in pieces[o])
            makespans_s.append(max(busy_s))
        best_s = min(best_s, risk_s(makespans_s, quantile))
    return best_s


def random_problem(rng: Random) -> Problem:
    names = ["A", "B", "C"][: rng.randint(1, 2)]
    num_workers = rng.choice([1, 2, 2, 4]) if len(names) == 1 else rng.choice([1, 2])
    pieces = {
        name: (
            LinearTerms(rng.uniform(0, 5), rng.uniform(0, 1)),
            *([LinearTerms(rng.uniform(-5, 2), rng.uniform(1, 3))] if rng.random() < 0.6 else []),
        )
        for name in names
    }
    degrees = {name: rng.choice([(), (2,), (2, 4)]) for name in names}
    num_calls = {name: rng.randint(1, 5) for name in names}
    return bent_problem(num_calls, pieces=pieces, load_s=rng.uniform(0, 3), num_workers=num_workers, degrees=degrees)


@pytest.mark.parametrize("block", range(4))
def test_equals_brute_force_on_tiny_instances(block: int) -> None:
    for number in range(10):
        problem = random_problem(Random(100 * block + number))
        plan = EXACT.plan(problem)
        assert_flexible_plan_valid(plan, problem)
        instance = make_free_instance(problem)
        expected_s = least_risk_s(instance, [instance.prices], None)
        assert plan.solve.status is SolveStatus.OPTIMAL
        assert plan.solve.objective_s == pytest.approx(expected_s, rel=1e-6, abs=1e-5)
        assert plan.predicted_makespan_s == pytest.approx(expected_s, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("quantile", [None, 0.5, 0.8])
@pytest.mark.parametrize("prices", list(PriceSource))
def test_scenarios_equal_brute_force_on_tiny_instances(quantile: float | None, prices: PriceSource) -> None:
    for number in range(5):
        problem = random_problem(Random(number))
        problem = replace(problem, session_model=SlottedSessions(num_slots=1, token_s=0.01))
        scheduler = Flexible(
            gap_frac=0.0, num_scenarios=5, length_error=2.0, quantile=quantile, prices=prices, seed=number
        )
        plan = scheduler.plan(problem)
        assert_flexible_plan_valid(plan, problem)
        instance = make_free_instance(problem)
        scenarios = scheduler.scenarios(problem, instance)
        assert len(set(scenarios)) > 1
        expected_s = least_risk_s(instance, scenarios, quantile)
        assert plan.solve.objective_s == pytest.approx(expected_s, rel=1e-6, abs=1e-5)


def assert_flexible_plan_valid(plan: Plan, problem: Problem) -> None:
    """What every plan promises; gangs may have any of an expert's degrees."""
    check_plan(plan, problem)
    assert plan.lower_bound_s <= plan.predicted_makespan_s * (1 + 1e-6) + 1e-6
    for session in plan.sessions:
        shaped = replace(problem.expert(session.expert), tp_degree=len(session.workers))
        assert session.workers in {tuple(worker.id for worker in gang) for gang in problem.gangs(shaped)}


def test_it_is_never_worse_than_the_papers_program() -> None:
    for number in range(10):
        rng = Random(number)
        problem = make_problem(
            {name: rng.randint(1, 40) for name in "ABCDE"},
            num_workers=3,
            load_s=rng.uniform(0, 20),
            fixed_s=rng.uniform(0, 10),
            max_replicas={name: rng.choice([None, 1, 2]) for name in "ABCDE"},
        )
        plan = EXACT.plan(problem)
        assert_plan_valid(plan, problem)
        assert plan.predicted_makespan_s <= Ilp().plan(problem).predicted_makespan_s * (1 + 1e-6)


def test_a_tail_is_spread_over_more_workers() -> None:
    # One call takes 10 s on one worker and 10 / 1.6 on two: nothing else shortens the only expert's only call.
    problem = bent_problem({"A": 1}, pieces={"A": (LinearTerms(10.0, 0.0),)}, degrees={"A": (2,)})
    plan = EXACT.plan(problem)
    assert [session.workers for session in plan.sessions] == [(0, 1)]
    assert plan.predicted_makespan_s == pytest.approx(1 + 10 / 1.6)
    narrow = replace(problem, experts=(make_expert("A"),))
    assert EXACT.plan(narrow).predicted_makespan_s == pytest.approx(11.0)
    with pytest.raises(PlanError, match=r"A spans 1 workers, got \(0, 1\)"):
        check_plan(plan, narrow)


def test_work_that_splits_well_stays_on_single_workers() -> None:
    problem = bent_problem({"A": 20}, pieces={"A": (LinearTerms(0.0, 1.0),)}, degrees={"A": (2,)})
    assert sorted(session.workers for session in EXACT.plan(problem).sessions) == [(0,), (1,)]


def test_limits_that_are_given_hold() -> None:
    problem = make_problem({"A": 40, "B": 40, "C": 40}, num_workers=3, load_s=0.0)
    free = EXACT.plan(problem)
    assert free.predicted_makespan_s == pytest.approx(40.0)
    capped = Flexible(max_replicas=1, max_experts_per_worker=1).plan(problem)
    assert len(capped.sessions) == 3
    assert {len(capped.worker_queue(n)) for n in range(3)} == {1}
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
    drawn = Uncertainty(num_scenarios=14, length_error=2.0).scenarios(problem, instance)
    factors = sorted(prices[0][0][0].per_call_s for prices in drawn)
    assert factors[0] == factors[1] == pytest.approx(2 ** (1 / 7 - 1))
    assert factors[-1] == pytest.approx(2 ** (1 - 1 / 7))
    assert len(set(factors)) == 7
    assert Uncertainty().scenarios(problem, instance) == (instance.prices,)


def test_iterations_price_the_longest_answer_in_every_session() -> None:
    problem = replace(
        make_problem({"A": 40}, load_s=0.0),
        length_samples={"A": (1,) * 39 + (1000,)},
        session_model=SlottedSessions(num_slots=40, token_s=1.0),
    )
    instance = make_free_instance(problem)
    (prices,) = Uncertainty(prices=PriceSource.ITERATIONS, seed=1).scenarios(problem, instance)
    assert price_s(prices[0][0], 5) == price_s(prices[0][0], 40) == pytest.approx(1000.0)


def test_what_makes_no_sense_is_refused() -> None:
    for wrong, message in (
        ({"num_scenarios": 0}, "scheduler.num_scenarios must be"),
        ({"length_error": 2.0}, "scheduler.num_scenarios must be above 1 where"),
        ({"quantile": 0.9}, "scheduler.num_scenarios must be above 1 where"),
        ({"num_scenarios": 5, "quantile": 1.0}, "scheduler.quantile must be below 1"),
        ({"num_scenarios": 5, "length_error": 0.5}, "scheduler.length_error must be at least 1"),
        ({"prices": "wishes"}, "scheduler.prices must be one of"),
        ({"gap_frac": -1.0}, "scheduler.gap_frac must be"),
        ({"time_limit_s": 0.0}, "scheduler.time_limit_s must be"),
        ({"max_replicas": 0}, "scheduler.max_replicas must be"),
        ({"max_replicas": {"A": 0}}, "scheduler.max_replicas: cap of A must be"),
        ({"max_experts_per_worker": 0}, "scheduler.max_experts_per_worker must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Flexible(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="session model must be one that steps iterations"):
        Flexible(prices=PriceSource.ITERATIONS).plan(replace(make_problem(), session_model=None))
    with pytest.raises(ProfileError, match="must keep lengths of 'A', got none"):
        Flexible(prices=PriceSource.ITERATIONS).plan(replace(make_problem(), length_samples={}))
    with pytest.raises(TypeError, match="tp_degrees must be a list"):
        replace(make_expert("A"), tp_degrees="12")


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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_more_to_choose_never_hurts(seed: int) -> None:
    problem = random_problem(Random(seed))
    narrow = replace(problem, experts=tuple(replace(expert, tp_degrees=()) for expert in problem.experts))
    wide_s, narrow_s = (EXACT.plan(p).predicted_makespan_s for p in (problem, narrow))
    assert wide_s <= narrow_s * (1 + 1e-6) + 1e-5
    assert work_bound_s(make_free_instance(problem)) <= wide_s * (1 + 1e-9) + 1e-9


def test_experts_that_fit_nowhere_are_named() -> None:
    calls = make_calls({"A": 2})
    problem = make_problem({"A": 2}, calls=calls, cluster=make_cluster(2), misfits=[("A", "gpu")])
    with pytest.raises(InfeasibleError, match="expert 'A' fits on no"):
        EXACT.plan(problem)

"""Plans that choose KV caches: against brute force, within the accepted loss, as today where none is accepted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.cluster import Worker
from mosaic.core.errors import InfeasibleError, PlanError
from mosaic.core.plan import Plan
from mosaic.core.workload import Expert
from mosaic.planning.costs import LinearTerms
from mosaic.planning.ilp import Flexible
from mosaic.planning.ilp.choices import Choices, make_choices
from mosaic.planning.plan_check import check_plan
from mosaic.planning.plan_file import load_plans, plans_to_json, save_plans
from mosaic.planning.problem import Problem
from mosaic.planning.restricted_costs import Wrapped
from mosaic.planning.schedulers.base import predict_times
from mosaic.planning.session_model import Served
from tests.factories import SlottedSessions, make_problem
from tests.planning.test_flexible import compositions

COST = {1024: 0.1, 512: 0.2}
"""Share of right answers lost, by budget."""
SPEED = {None: 1.0, 1024: 1.5, 512: 2.0}


@dataclass(frozen=True)
class SparseCosts(Wrapped):
    """Prices in which smaller budgets are faster."""

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        speed = SPEED[expert.kv_budget_tokens]
        return LinearTerms(*(term / speed for term in self.costs.linear_terms(expert, workers)))

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        return (self.linear_terms(expert, workers),)

    def session_s(self, expert: Expert, shard, workers: Sequence[Worker]) -> float:
        terms = self.linear_terms(expert, workers)
        return terms.fixed_s + terms.per_call_s * shard.num_calls if shard.num_calls else 0.0


def sparse_problem(num_calls: dict[str, int], *, variants: dict[str, Sequence[int]], **changes) -> Problem:
    plain = make_problem(num_calls, **changes)
    experts = tuple(
        replace(expert, kv_variants={budget: cost_of(budget) for budget in variants.get(expert.name, ())})
        for expert in plain.experts
    )
    return replace(plain, experts=experts, costs=SparseCosts(plain.costs))


def cost_of(budget: int) -> dict[str, float]:
    return {"accuracy_cost_frac": COST[budget], "low_frac": 0.0, "high_frac": 2 * COST[budget]}


def random_problem(rng: Random) -> Problem:
    names = ["A", "B"][: rng.randint(1, 2)]
    return sparse_problem(
        {name: rng.randint(1, 4) for name in names},
        variants={name: rng.choice([(), (512,), (1024, 512)]) for name in names},
        num_workers=rng.randint(1, 2) if len(names) == 1 else 1,
        load_s=rng.uniform(0, 3),
        fixed_s={name: rng.uniform(0, 3) for name in names},
        per_call_s={name: rng.uniform(0.5, 3) for name in names},
    )


def least_s(choices: Choices, accepted: float) -> float:
    """Try every split of every expert over its options; those that lose too much do not count."""
    splits = [list(compositions(number, len(choices.of_expert[m]))) for m, number in enumerate(choices.num_calls)]
    best_s = float("inf")
    for chosen in product(*splits):
        busy_s, lost = [0.0] * choices.num_workers, 0.0
        for mine, split in zip(choices.of_expert, chosen, strict=True):
            for o, number in zip(mine, split, strict=True):
                option = choices.options[o]
                if number:
                    (terms,) = option.pieces
                    lost += number * (0.0 if option.variant is None else COST[option.variant.budget_tokens])
                    for worker in option.workers:
                        busy_s[worker] += option.load_s + terms.fixed_s + terms.per_call_s * number
        if lost <= accepted * sum(choices.num_calls) + 1e-9:
            best_s = min(best_s, max(busy_s))
    return best_s


def lost_frac(plan: Plan) -> float:
    lost = sum(COST[s.kv_budget_tokens] * len(s.shard) for s in plan.sessions if s.kv_budget_tokens is not None)
    return lost / sum(len(session.shard) for session in plan.sessions)


@pytest.mark.parametrize("accepted", [0.0, 0.04, 0.11, 0.5])
def test_equals_brute_force_on_tiny_instances(accepted: float) -> None:
    num_sparse = 0
    for number in range(20):
        problem = random_problem(Random(number))
        plan = Flexible(gap_frac=0.0, accepted_kv_loss_frac=accepted).plan(problem)
        check_plan(plan, problem)
        assert plan.predicted == predict_times(problem, plan.sessions)
        assert lost_frac(plan) <= accepted + 1e-9
        expected_s = least_s(make_choices(problem, accepted_kv_loss_frac=accepted), accepted)
        assert plan.predicted_makespan_s == pytest.approx(expected_s, rel=1e-6, abs=1e-5)
        assert plan.lower_bound_s <= plan.predicted_makespan_s * (1 + 1e-6)
        num_sparse += any(session.kv_budget_tokens for session in plan.sessions)
    assert (num_sparse > 0) == (accepted > 0)


def test_without_an_accepted_loss_or_without_variants_the_plan_is_todays() -> None:
    for number in range(10):
        problem = random_problem(Random(number))
        plain = replace(problem, experts=tuple(replace(expert, kv_variants=()) for expert in problem.experts))
        today = Flexible(gap_frac=0.0).plan(plain)
        assert Flexible(gap_frac=0.0).plan(problem) == today
        assert Flexible(gap_frac=0.0, accepted_kv_loss_frac=0.3).plan(plain) == today


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.3), st.floats(0, 0.3))
def test_accepting_more_never_hurts(seed: int, one: float, other: float) -> None:
    problem = random_problem(Random(seed))
    less, more = (
        Flexible(gap_frac=0.0, accepted_kv_loss_frac=accepted).plan(problem) for accepted in sorted((one, other))
    )
    assert more.predicted_makespan_s <= less.predicted_makespan_s * (1 + 1e-6) + 1e-5


def test_the_loss_goes_to_the_expert_that_saves_most_by_it() -> None:
    """One worker, and a loss that one of two experts can use: the one with the dearer calls gets it."""
    problem = sparse_problem({"A": 5, "B": 5}, variants={"A": (512,), "B": (512,)}, num_workers=1,
                             load_s=0.0, per_call_s={"A": 1.0, "B": 3.0})  # fmt: skip
    plan = Flexible(gap_frac=0.0, accepted_kv_loss_frac=0.1).plan(problem)
    assert {(session.expert, session.kv_budget_tokens) for session in plan.sessions} == {("A", None), ("B", 512)}
    assert plan.predicted_makespan_s == pytest.approx(5 * 1.0 + 5 * 3.0 / 2)
    assert "B: 5 calls with a KV budget of 512 tokens, of 5" in plan.notes
    said = "10.00% of the right answers accepted, 10.00% expected, 0.00% to 20.00% at the bounds (assumed)"
    assert f"sparse KV caches: {said}" in plan.notes


def test_an_expert_that_changes_its_cache_is_loaded_again() -> None:
    problem = sparse_problem({"A": 4}, variants={"A": (512,)}, num_workers=1, load_s=0.5, per_call_s=10.0)
    plan = Flexible(gap_frac=0.0, accepted_kv_loss_frac=0.1).plan(problem)
    assert sorted(session.kv_budget_tokens or 0 for session in plan.sessions) == [0, 512]
    assert [times.load_s for times in plan.predicted] == [0.5, 0.5]
    assert plan.predicted_makespan_s == pytest.approx(1.0 + 2 * 10.0 + 2 * 5.0)


def test_with_iterations_the_session_model_sees_the_cache() -> None:
    class Sparse(SlottedSessions):
        def serve(self, expert, requests, workers):
            plain, speed = SlottedSessions.serve(self, expert, requests, workers), SPEED[expert.kv_budget_tokens]
            return tuple(Served(one.admitted_s / speed, one.finished_s / speed) for one in plain)

    problem = sparse_problem({"A": 8}, variants={"A": (512,)}, num_workers=1, load_s=0.0)
    problem = replace(problem, session_model=Sparse(num_slots=1, token_s=0.01))
    plans = [Flexible(prices="iterations", accepted_kv_loss_frac=loss).plan(problem) for loss in (0.0, 0.2)]
    assert plans[1].solve.objective_s == pytest.approx(plans[0].solve.objective_s / 2)


def test_what_cannot_be_says_why() -> None:
    crowded = sparse_problem({"A": 1, "B": 1, "C": 1}, variants={"A": (512,)}, num_workers=2)
    with pytest.raises(InfeasibleError, match=r"K=1 and accepted_kv_loss_frac=0\.1 \(infeasible\)"):
        Flexible(max_experts_per_worker=1, accepted_kv_loss_frac=0.1).plan(crowded)
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"scheduler\.accepted_kv_loss_frac must be"):
            Flexible(accepted_kv_loss_frac=wrong)


def test_a_plan_file_keeps_the_choice_and_says_nothing_where_there_was_none(tmp_path: Path) -> None:
    problem = sparse_problem({"A": 4}, variants={"A": (512,)}, num_workers=1, load_s=0.5, per_call_s=10.0)
    sparse, full = (Flexible(accepted_kv_loss_frac=loss).plan(problem) for loss in (0.1, 0.0))
    save_plans(tmp_path / "plan.json", [sparse])
    (read,) = load_plans(tmp_path / "plan.json")
    assert read.sessions == sparse.sessions
    assert "kv_budget_tokens" not in plans_to_json([full])
    check_plan(read, problem)
    plain = replace(problem, experts=tuple(replace(expert, kv_variants=()) for expert in problem.experts))
    with pytest.raises(PlanError, match=r"kv_budget_tokens must be one of its kv_variants \[\], got 512"):
        check_plan(read, plain)

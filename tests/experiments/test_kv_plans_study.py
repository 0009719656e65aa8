"""The study of plans that choose KV caches: how it sums up, and that the committed page is that of its tables."""

from pathlib import Path

import pytest

from experiments.studies.kv_monitor import Seen, fall, sights, watch
from experiments.studies.kv_plans import (
    PAPER,
    POLICIES,
    ExpertRun,
    PlanRun,
    PlanShape,
    prepare,
    run_plans,
    shape_of_plan,
)
from experiments.studies.kv_plans_report import (
    WATCHED,
    Tables,
    against,
    experts_table,
    figure,
    plans_table,
    read_tables,
    report,
)

COMMITTED = Path(__file__).parents[2] / "results" / "kv_plans"


def made_tables() -> Tables:
    """A policy that takes nine tenths of the paper's seconds, and loses a point of accuracy."""
    shapes = [PlanShape(PAPER, 100.0, "A: 1 full", 0.0, 0.0, 0.0), PlanShape("mine", 80.0, "A: 1 at 64", 0.01, 0, 0.05)]
    runs, experts = [], []
    for seed in range(4):
        full_s = 100.0 + seed
        runs += [
            PlanRun(PAPER, seed, full_s, 2 * full_s, 0.8, 0.6, 10),
            PlanRun("mine", seed, 0.9 * full_s, 1.9 * full_s, 0.79, 0.59, 0),
        ]
        experts += [
            ExpertRun(PAPER, seed, "A", full_s, full_s, 10),
            ExpertRun("mine", seed, "A", full_s / 2, full_s, 0),
        ]
    return Tables(shapes, runs, experts, made_monitor())


def made_monitor() -> list[Seen]:
    """Shares that fall by half the loss, on top of luck that the seeds differ in."""
    return [
        Seen(loss, seed, 0.8 + 0.01 * seed - loss / 2, 0.5 + 0.01 * seed - loss, 0.6 - loss / 4, 0.55 - loss)
        for seed in range(3)
        for loss in (0.0, 0.1, 0.2)
    ]


def test_policies_are_compared_with_the_papers_plan_seed_by_seed() -> None:
    tables = made_tables()
    ratio = against(tables, "mine", "expert_stage_s")
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((0.9, 0.9, 0.9))
    head, paper, mine = (dict(zip(plans_table(tables)[0], row, strict=True)) for row in plans_table(tables))
    assert mine["right answers lost, believed (bounds)"] == "1.00% (0.00% to 5.00%)"
    assert mine["accuracy, points"] == "-1.00 (-1.00 to -1.00)"
    assert paper["skipped, points"] == "+0.00 (+0.00 to +0.00)"
    row = experts_table(tables, ["mine"])[1]
    assert row[1:5] == ("A", "102", "51", "x 0.500 (0.500 to 0.500)")
    assert row[-1] == "10 -> 0"
    assert head


def test_what_a_monitor_sees_is_where_the_share_has_fallen_enough() -> None:
    seen = made_monitor()
    assert fall(seen, "skip_frac", 0.1) == pytest.approx([0.05] * 3)
    by = {(it.watched, it.compared): it for it in sights(seen, 2100)}
    fresh = by["skip_frac", "the long-run share, new questions"]
    assert fresh.least_fall_frac == pytest.approx(2.487 * (0.81 * 0.19 / 2100) ** 0.5)
    assert fresh.loss_frac == pytest.approx(2 * fresh.least_fall_frac)
    assert fresh.accuracy_fall_frac == pytest.approx(fresh.loss_frac / 4)
    twice = by["skip_frac", "the same questions"]
    assert twice.std_frac == pytest.approx(0.01 * 2**0.5)
    few = {it.compared: it for it in sights(seen, 20)}
    assert few["the long-run share, new questions"].loss_frac is None, "more than any that was tried"


def test_a_page_and_a_figure_are_made_of_the_tables() -> None:
    page = report(made_tables())
    assert "| mine | 91 | x 0.900 (0.900 to 0.900) |" in page
    assert len(figure(made_tables()).axes) == 2


def test_the_committed_page_is_that_of_the_committed_tables() -> None:
    tables = read_tables(COMMITTED)
    assert report(tables) == (COMMITTED / "kv_plans.md").read_text(encoding="utf-8")
    assert {shape.policy for shape in tables.plans} == set(POLICIES)
    assert {(run.policy, run.seed) for run in tables.runs} == {(name, seed) for name in POLICIES for seed in range(20)}


@pytest.mark.slow
def test_the_committed_runs_follow_from_the_code() -> None:
    tables = read_tables(COMMITTED)
    policies = {policy: prepare(policy) for policy in (PAPER, WATCHED)}
    for policy, prepared in policies.items():
        shape = shape_of_plan(policy, prepared)
        assert shape in tables.plans
        assert shape.expected_loss_frac <= 0.005
    for run, experts in run_plans(policies, 1):
        assert run in tables.runs
        assert set(experts) <= set(tables.experts)
    for seen in watch(policies[WATCHED].plan, 1, (0.0, 0.05)):
        assert seen in tables.monitor

"""The path through settings, and how far questions that did not lay it out can promise it."""

import numpy as np
import pytest

from mosaic.pipelines.budget_choice import (
    LEVELS,
    Batch,
    Calibration,
    Kinds,
    choose_budgets,
    path_of,
    settings_of,
    steps,
)
from mosaic.pipelines.loss_table import BudgetSetting, LossTable
from mosaic.pipelines.rules.rule import Promised

BATCH = Batch(1000, 400)
BOTH = Kinds(cuts=True, hedges=True)


def make_table(num: int, seed: int = 0, *, long_is_right_frac: float = 0.5) -> LossTable:
    """Three calls a question, of which the aggregator makes the best; votes are right at random, long ones as told."""
    rng = np.random.default_rng(seed)
    tokens = rng.lognormal(6, 1, (num, 3)).astype(int) + 1
    is_long = (tokens > 2000).any(axis=1)[:, None]
    right = rng.random((num, 4)) < np.where(is_long, long_is_right_frac, 0.5)
    return LossTable(
        tokens=tokens, num_slots=np.full(num, 3), confidence=rng.choice([1 / 3, 2 / 3, 1.0], (num, 4)),
        vote_right=rng.random((num, 4)) < 0.5, read_right=right,
        read_tokens=rng.lognormal(5, 1, (num, 4)).astype(int) + 1,
    )  # fmt: skip


def test_settings_without_budgets_are_those_of_a_gate_whose_threshold_is_chosen() -> None:
    fixed = settings_of([0.5], BOTH, is_gate_chosen=False)
    assert all(setting.has_budgets for setting in fixed)
    chosen = settings_of([None, 0.5], BOTH, is_gate_chosen=True)
    assert [setting for setting in chosen if not setting.has_budgets] == [BudgetSetting(0.5)]
    cuts = settings_of([None], Kinds(cuts=True, hedges=False), is_gate_chosen=False)
    assert {setting.hedge_tokens for setting in cuts} == {None}
    hedges = settings_of([None], Kinds(cuts=False, hedges=True), is_gate_chosen=False)
    assert [setting[1:] for setting in hedges] == [(None, None, level) for level in LEVELS]


def test_a_path_goes_from_safe_to_fast() -> None:
    fit = make_table(2000)
    path = path_of(fit, settings_of([None, 0.9], BOTH, is_gate_chosen=True), BATCH, 0.02)
    numbers = [steps(fit, setting, BATCH) for setting in path]
    assert len(path) > 2
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] < steps(fit, BudgetSetting(None), BATCH)


def choose(certify: LossTable, path, accepted: float = 0.02) -> Calibration:
    return choose_budgets(certify, path, Promised("answers.parquet", accepted, 0.05, 0.3))


def test_a_path_is_walked_up_to_the_first_setting_that_fails() -> None:
    safe, bad = BudgetSetting(None, 30_000, 15_000), BudgetSetting(None, 50, 25)
    choice = choose(make_table(3000), [safe, bad, safe])
    assert choice.setting == safe
    assert [test.setting for test in choice.tests] == [safe, bad]
    assert choice.promise_frac is not None
    assert choice.promise_frac <= 0.02
    assert choice.tests[1].p_value > 0.05
    (note,) = choice.notes()
    assert note.startswith("budgets: proposals 30,000 tokens, aggregations 15,000 tokens; nothing is skipped; 3000")


def test_too_few_questions_promise_nothing_and_say_what_they_could() -> None:
    choice = choose(make_table(60), [BudgetSetting(None, 30_000, 15_000)])
    assert choice.setting is None
    assert choice.promise_frac is not None
    assert choice.promise_frac > 0.02
    assert "60 questions cannot promise a loss of at most 2 pp" in choice.notes()[0]
    assert choice.report()["propose_tokens"] is None


def test_an_empty_path_has_nothing_to_promise() -> None:
    choice = choose(make_table(60), [])
    assert (choice.setting, choice.promise_frac) == (None, None)
    assert choice.notes() == ("budgets: no budget is expected to earn anything: there are none",)


@pytest.mark.parametrize("long_is_right_frac", [0.1, 0.9])
def test_a_promise_is_rarely_broken_where_long_answers_are_worse_and_where_they_are_better(long_is_right_frac) -> None:
    population = make_table(20_000, long_is_right_frac=long_is_right_frac)
    settings = settings_of([None], Kinds(cuts=True, hedges=False), is_gate_chosen=False)
    truth = {setting: population.losses(setting).mean() for setting in settings}
    rng = np.random.default_rng(1)
    path = path_of(population.take(rng.integers(20_000, size=500)), settings, BATCH, 0.02)
    broken = taken = 0
    for _ in range(200):
        choice = choose(population.take(rng.integers(20_000, size=1500)), path)
        taken += choice.setting is not None
        broken += choice.setting is not None and truth[choice.setting] > 0.02
    assert broken <= 20, "the 99% limit of the binomial at a risk of 5%"
    assert taken > 100, "else nothing is tested"

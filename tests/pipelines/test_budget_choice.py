"""The path through settings, and how far questions that did not lay it out can promise it."""

import numpy as np
import pytest

from mosaic.pipelines.budget_choice import (
    LEVELS,
    Batch,
    Calibration,
    Kinds,
    choose_budgets,
    families_of,
    is_any_safe,
    path_of,
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
        vote_right=rng.random((num, 4)) < 0.5, slot_right=np.zeros((num, 3), dtype=bool), read_right=right,
        read_tokens=rng.lognormal(5, 1, (num, 4)).astype(int) + 1,
    )  # fmt: skip


def path(fit: LossTable, thresholds, kinds: Kinds = BOTH, accepted: float = 0.02, *, is_gate_chosen: bool = True):
    families = families_of(thresholds, kinds, is_gate_chosen=is_gate_chosen)
    return path_of(fit, families, BATCH, accepted, adds_hedges=kinds == (True, True))


def test_settings_without_budgets_are_those_of_a_gate_whose_threshold_is_chosen() -> None:
    fixed = [setting for family in families_of([0.5], BOTH, is_gate_chosen=False) for setting in family]
    assert all(any(setting[1:]) for setting in fixed)
    chosen = [setting for family in families_of([None, 0.5], BOTH, is_gate_chosen=True) for setting in family]
    assert [setting for setting in chosen if not any(setting[1:])] == [BudgetSetting(0.5)]
    (hedges,) = families_of([None], Kinds(cuts=False, hedges=True), is_gate_chosen=False)
    assert [setting[1:] for setting in hedges] == [(None, None, level) for level in LEVELS]


def test_a_path_goes_from_safe_to_fast_and_only_through_what_loses_less_than_is_accepted() -> None:
    fit = make_table(2000)
    settings = path(fit, [None, 0.9])
    numbers = [steps(fit, setting, BATCH) for setting in settings]
    assert len(settings) > 2
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] < steps(fit, BudgetSetting(None), BATCH)
    assert all(fit.losses(setting).mean() < 0.02 for setting in settings)


def make_silent_table(num: int, tokens: list[int]) -> LossTable:
    """No votes, and an aggregator that is right whatever it reads: only what it does not read can lose."""
    return LossTable(
        tokens=np.tile(tokens, (num, 1)), num_slots=np.full(num, 3), confidence=np.full((num, 4), -1.0),
        vote_right=np.zeros((num, 4), dtype=bool), slot_right=np.zeros((num, 3), dtype=bool),
        read_right=np.ones((num, 4), dtype=bool), read_tokens=np.full((num, 4), 10),
    )  # fmt: skip


def test_a_hedge_that_earns_no_time_is_not_tried_however_safe_it_looks() -> None:
    fit = make_table(2000)
    fit.read_right[:, 1:] = True
    hedged = [setting for setting in path(fit, [None]) if setting.hedge_tokens is not None]
    same = [setting._replace(hedge_tokens=None) for setting in hedged]
    assert hedged, "some earn time"
    for hedge, none in zip(hedged, same, strict=True):
        assert steps(fit, hedge, BATCH) < 0.98 * steps(fit, none, BATCH)


def test_where_every_faster_setting_loses_too_much_the_path_is_empty() -> None:
    table = make_silent_table(500, [30_000, 30_000, 30_000])
    assert path(table, [None]) == ()
    (note,) = choose(table, ()).notes()
    assert note.startswith("budgets: the questions cannot promise a loss of at most 2 pp")
    assert note.endswith("no setting that loses less is 2% faster on those that lay out the path: there are none")


def make_lossless_table(num: int, seed: int) -> LossTable:
    """Nothing is lost unless all three responses are cut."""
    table = make_table(num, seed)
    table.read_right[:] = table.slot_right[:] = True
    table.confidence[:] = -1
    return table


@pytest.mark.parametrize("num", [60, 99])
def test_few_questions_that_lose_nothing_lay_out_a_path_from_slow_to_fast(num) -> None:
    fit, certify = make_lossless_table(num, 1), make_lossless_table(900, 2)
    settings = path(fit, [None], Kinds(cuts=True, hedges=False), 0.01, is_gate_chosen=False)
    numbers = [steps(fit, setting, BATCH) for setting in settings]
    assert len(settings) > 2
    assert numbers == sorted(numbers, reverse=True)
    assert not any(fit.losses(setting).any() for setting in settings)
    chosen = choose_budgets(fit, certify, settings, Promised("answers.parquet", 0.01, 0.05, 0.1)).setting
    assert chosen is not None, "they can be promised"


def test_where_every_setting_loses_as_much_as_is_accepted_the_screen_says_so() -> None:
    table = make_silent_table(500, [40_000, 40_000, 40_000])
    cuts = Kinds(cuts=True, hedges=False)
    assert path(table, [None], cuts) == ()
    families = tuple(families_of([None], cuts, is_gate_chosen=False))
    is_safe = is_any_safe(table, families, 0.02)
    assert not is_safe
    assert is_any_safe(make_silent_table(500, [30_000] * 3), families, 0.02)
    (note,) = choose(table, ())._replace(is_any_safe=is_safe).notes()
    assert note.endswith("every setting loses as much on those that lay out the path: there are none")


def choose(certify: LossTable, settings, accepted: float = 0.02) -> Calibration:
    return choose_budgets(make_table(1500, 1), certify, settings, Promised("answers.parquet", accepted, 0.05, 0.3))


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


@pytest.mark.parametrize("long_is_right_frac", [0.1, 0.9])
def test_a_promise_is_rarely_broken_where_long_answers_are_worse_and_where_they_are_better(long_is_right_frac) -> None:
    population = make_table(20_000, long_is_right_frac=long_is_right_frac)
    rng = np.random.default_rng(1)
    fit = population.take(rng.integers(20_000, size=500))
    settings = path(fit, [None], Kinds(cuts=True, hedges=False), is_gate_chosen=False)
    truth = {setting: population.losses(setting).mean() for setting in settings}
    broken = taken = 0
    for _ in range(200):
        choice = choose(population.take(rng.integers(20_000, size=1500)), settings)
        taken += choice.setting is not None
        broken += choice.setting is not None and truth[choice.setting] > 0.02
    assert broken <= 20, "the 99% limit of the binomial at a risk of 5%"
    assert taken > 100, "else nothing is tested"

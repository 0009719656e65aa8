"""The study of budgets: its worlds are what they say, and its calibrations are resampled from them."""

import numpy as np
import pytest

from experiments.studies.budgets import UNINFORMATIVE, Resampled, calibrate, draw_table
from experiments.studies.gate_trials import broken_limit
from mosaic.pipelines.loss_table import BudgetSetting

pytestmark = pytest.mark.slow
NUM = 600


def right_of_long_ones(world: str) -> float:
    """How much oftener votes are right on questions with long answers than on those with short ones, by the rest."""
    table = draw_table(world, "gpqa", NUM)
    order = table.tokens.max(axis=1).argsort()
    short, long = order[: NUM // 3], order[-NUM // 3 :]
    right = table.vote_right[:, 0]
    return float(right[long].mean() - right[short].mean())


def test_long_answers_are_worse_unrelated_or_better_as_the_world_says() -> None:
    worlds = "fitted", "length unrelated to difficulty", "long answers better"
    worse, unrelated, better = map(right_of_long_ones, worlds)
    assert worse < -0.2 < unrelated < 0.2 < better


def test_where_agreement_says_nothing_skipping_what_is_unanimous_loses_just_more_than_is_accepted() -> None:
    table = draw_table(UNINFORMATIVE, "medmcqa", NUM)
    assert 0.01 < float(table.losses(BudgetSetting(1.0)).mean()) < 0.02


def test_resampled_questions_are_those_of_the_table() -> None:
    table, setting = draw_table("fitted", "gpqa", 50), BudgetSetting(0.6, 3000, 1000, 2000)
    places = np.random.default_rng(0).integers(len(table), size=80)
    drawn, own = Resampled(table.losses, table.written_tokens, places), table.take(places)
    assert len(drawn) == len(own) == 80
    assert drawn.losses(setting).tolist() == own.losses(setting).tolist()
    pairs = zip(drawn.written_tokens(setting), own.written_tokens(setting), strict=True)
    assert all(one.tolist() == other.tolist() for one, other in pairs)


def test_promises_are_counted() -> None:
    table = draw_table("fitted", "gpqa", NUM)
    row = calibrate(table, "fitted", "gpqa", 500, 40)
    assert row["num_broken"] <= broken_limit(40)
    assert row["steps_frac"] <= 1
    nothing = calibrate(table, "fitted", "gpqa", 30, 20)
    assert (nothing["num_broken"], nothing["refused_frac"], nothing["steps_frac"]) == (0, 1, 1)

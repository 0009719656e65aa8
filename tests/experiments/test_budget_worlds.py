"""The study of promises: its worlds are what they say, and the report counts what came of the calibrations."""

import pytest

from experiments.budgets import UNINFORMATIVE, make_trials, report
from experiments.studies.budget_worlds import CHANGES, Known, draw_table, draw_uninformative
from mosaic.pipelines.gates.loss_table import Setting

pytestmark = pytest.mark.slow
NUM = 600


def right_of_long_ones(world: str) -> float:
    """How much oftener votes are right on questions with long answers than on those with short ones, by the rest."""
    table = draw_table("gpqa", NUM, CHANGES[world])
    longest = table.tokens.max(axis=1)
    order = longest.argsort()
    short, long = order[: NUM // 3], order[-NUM // 3 :]
    right = table.vote_right[:, 0]
    return float(right[long].mean() - right[short].mean())


def test_long_answers_are_worse_unrelated_or_better_as_the_world_says() -> None:
    worse, unrelated, better = map(
        right_of_long_ones, ("fitted", "length unrelated to difficulty", "long answers better")
    )
    assert worse < -0.2 < unrelated < 0.2 < better


def test_where_agreement_says_nothing_skipping_what_is_unanimous_loses_just_more_than_is_accepted() -> None:
    table = draw_uninformative(NUM)
    assert 0.01 < float(table.losses(Setting(1.0)).mean()) < 0.02


def test_what_is_known_of_a_population_is_what_its_table_says() -> None:
    table = draw_table("gpqa", 50, CHANGES["fitted"])
    known, setting = Known(table, {}, {}), Setting(0.6, 3000, 1000, 2000)
    places = table.num_slots[:20] * 2
    assert known.take(places).losses(setting).tolist() == table.take(places).losses(setting).tolist()
    pairs = zip(known.take(places).written_tokens(setting), table.take(places).written_tokens(setting), strict=True)
    assert all(one.tolist() == other.tolist() for one, other in pairs)


def test_the_report_has_a_line_for_each_world_and_says_whether_promises_are_kept() -> None:
    trials = make_trials([("fitted", "gpqa"), (UNINFORMATIVE, "medmcqa")], [500], NUM, 40)
    assert [(of.world, of.num_calibrations) for of in trials] == [("fitted", 40), (UNINFORMATIVE, 40)]
    text = report(trials, NUM)
    assert "Promises: 2 lines of 40 calibrations, all within the limit of" in text
    assert all(of.num_broken <= of.max_broken for of in trials)

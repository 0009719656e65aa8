"""The study of early exits: its statistics by hand, and worlds that are what they say."""

import numpy as np
import pytest

from experiments.studies.exit_replay import Heard, auc, bootstrap, replay
from experiments.studies.exit_report import promises
from experiments.studies.exit_worlds import ADVERSARIAL, draw_batch, draw_population, go_through, graded
from mosaic.core.workload import AnswerKind
from mosaic.pipelines.exits import Agreed, FasterMoa, Order
from mosaic.pipelines.gates.gate import plurality
from tests.answered_questions import answered, make_question


def heard(answers: str, gold: str) -> Heard:
    question, _, done = answered(make_question("q" + answers, AnswerKind.CHOICE, answer=gold), list(answers))
    return Heard(question=question, records=tuple(record._replace(confidence=0.9) for record in done.values()))


def test_a_replayed_agreement_saves_the_third_agent_and_keeps_the_vote() -> None:
    asked = [heard("AAB", "A"), heard("ABB", "B"), heard("ABC", "A"), heard("BBA", "A")]
    whole, early = replay(asked, [None]), replay(asked, [Agreed()])
    assert whole.right_frac.tolist() == early.right_frac.tolist() == [1, 1, 1, 0]
    assert early.saved_frac == pytest.approx([1 / 3, 0, 0, 1 / 3])


def test_a_replayed_draw_hears_who_is_read() -> None:
    rules = [FasterMoa(seed=seed, order=Order.SLOT) for seed in range(60)]
    made = replay([heard("ABB", "B")], rules)
    assert 0.3 < made.saved_frac[0] < 2 / 3
    assert made.right_frac[0] == pytest.approx(
        1 - np.mean([bool(rule.judge(heard("ABB", "B").meeting())) for rule in rules])
    )


def test_an_auc_is_a_share_of_pairs_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(80) < 0.5
    scores = np.round(rng.random(80) + 0.3 * labels, 1)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    found = bootstrap(80, lambda places: auc(scores[places], labels[places]))
    assert found.low < found.value < found.high
    assert np.isnan(auc(scores, np.ones(80, dtype=bool)))


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["flat", "tree"])
def test_asking_in_turn_gives_what_asking_everybody_gives_and_an_exit_asks_fewer(topology: str) -> None:
    batch = draw_batch("gpqa", topology, 3, 40)
    whole = go_through(batch, None)
    assert [one.is_right for one in whole] == [one.aggregator_correct for one in graded(batch)]
    assert all(one.num_calls == one.num_whole for one in whole)
    assert sum(one.num_calls for one in go_through(batch, Agreed())) < sum(one.num_calls for one in whole)


@pytest.mark.slow
def test_where_agreement_says_nothing_skipping_what_is_unanimous_loses_just_more_than_is_accepted() -> None:
    population = draw_population(ADVERSARIAL, "tree", range(2), 400)
    assert 0.01 < population.score(plurality).loss_frac(1.0) < 0.02


@pytest.mark.slow
def test_promises_are_counted_in_every_world() -> None:
    rows, populations = promises(2, 400, 40)
    assert {(row["world"], row["topology"]) for row in rows} == set(populations)
    assert all(row["num_broken"] <= row["max_broken"] for row in rows)

"""Worlds of the study of early exits are what it says they are."""

import pytest

from experiments.studies.exits import ADVERSARIAL, draw_batch, draw_population
from mosaic.pipelines.rules.ballot import plurality
from mosaic.pipelines.rules.rule import Never
from tests.answered_questions import agreement


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["flat", "tree"])
def test_an_exit_asks_fewer_of_the_agents_that_are_all_asked_without_one(topology: str) -> None:
    batch = draw_batch("GPQA", topology, 3, 40)
    nums_of_calls = []
    for rule in (Never(), agreement()):
        questions = batch.ask(rule)
        nums_of_calls.append(sum(len(questions.of(question.id)[2]) for question in questions))
    upper = sum(len(node.experts) for node in batch.job.graph.upper_nodes)
    assert nums_of_calls[0] == len(batch.job.graph.first_calls(batch.job.workload)) + 40 * upper
    assert nums_of_calls[1] < nums_of_calls[0]


@pytest.mark.slow
def test_where_agreement_says_nothing_skipping_what_is_unanimous_loses_just_more_than_is_accepted() -> None:
    assert 0.01 < draw_population(ADVERSARIAL, "tree").score(plurality).loss_frac(1.0) < 0.02

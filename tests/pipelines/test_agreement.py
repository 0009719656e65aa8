"""How often calibration questions are settled early."""

import pytest

from mosaic.pipelines.agreement import PRIOR_QUESTIONS, Agreement
from mosaic.pipelines.rules.rule import Majority, Never
from tests.answered_questions import answered, make_moa, make_question, make_tree


def counted(graph, *votes: str) -> Agreement:
    """Calibration questions that A, B and C answer; - cannot be parsed."""
    asked = [answered(make_question(f"c{i}"), [None if v == "-" else v for v in said]) for i, said in enumerate(votes)]
    questions = {question.id: question for question, _, _ in asked}
    return Agreement(graph, questions, [record for _, _, done in asked for record in done.values()])


def test_pairs_are_counted_and_lean_on_what_all_pairs_do() -> None:
    # A and B agree on 3 of 4, A and C on 3, B and C on 2: 8 of 12 pairs.
    agreement = counted(make_moa(Majority()), "AAA", "AAB", "ABA", "BBB")
    expected = (3 + PRIOR_QUESTIONS * 8 / 12) / (4 + PRIOR_QUESTIONS)
    assert agreement.settled_frac(["A", "B"], 1) == agreement.settled_frac(["B", "A"], 1) == pytest.approx(expected)
    assert agreement.settled_frac(["A", "Z"], 1) == pytest.approx(8 / 12), "never seen together"
    assert agreement.settled_frac(["A"], 2) == 0.0
    assert agreement.settled_frac(["A", "B", "C"], 1) == 0.0, "no question has four slots"
    assert agreement.is_ever_settled


def test_what_cannot_be_parsed_agrees_with_nothing() -> None:
    agreement = counted(make_moa(Majority()), "--A", "-A-")
    assert agreement.settled_frac(["A", "B"], 1) == 0.0
    assert not agreement.is_ever_settled


def test_nothing_is_settled_early_without_a_gate_on_the_first_layer() -> None:
    for graph in (make_moa(Never()), make_tree(Majority())):
        assert not counted(graph, "AAA", "BBB").is_ever_settled

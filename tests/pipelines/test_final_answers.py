"""One final answer a question: the aggregator's where it has one, the gate's elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.workload import AnswerKind, Question
from mosaic.pipelines.final_answers import AnswerSource, FinalAnswer, accuracy_frac, final_answers
from mosaic.pipelines.gates.gate import Ballot, Decision, Majority, Vote, make_ballot
from mosaic.runtime.second_stage import comparisons
from tests.calibration_questions import make_ballot_of

LETTERS = st.sampled_from([*"ABCD", None])


def final_of(ballot: Ballot, decision: Decision, aggregated: dict[str, str | None]) -> FinalAnswer:
    (final,) = final_answers([ballot], [decision], aggregated, comparisons())
    return final


def test_a_skipped_question_has_the_gates_answer() -> None:
    ballot = make_ballot_of("AAB", gold="A")
    assert final_of(ballot, Decision(True, "A", 2 / 3), {}) == FinalAnswer(
        question="q", answer="A", source=AnswerSource.MAJORITY, confidence=2 / 3, votes=("A", "A", "B"), gold="A",
        correct=True,
    )  # fmt: skip


def test_an_aggregated_question_has_the_aggregators_answer_and_the_gates_confidence() -> None:
    ballot = make_ballot_of("AB-", gold="A")
    assert final_of(ballot, Decision(False, "A", 1 / 3), {"q": "C", "other": "A"}) == FinalAnswer(
        question="q", answer="C", source=AnswerSource.AGGREGATOR, confidence=1 / 3, votes=("A", "B", None), gold="A",
        correct=False,
    )  # fmt: skip


def test_an_aggregator_that_says_nothing_has_answered_all_the_same() -> None:
    final = final_of(make_ballot_of("AAB", gold="A"), Decision(False, "A", 2 / 3), {"q": None})
    assert (final.answer, final.source, final.correct) == (None, AnswerSource.AGGREGATOR, False)


def test_a_question_that_should_have_been_aggregated_and_was_not_keeps_the_gates_answer() -> None:
    final = final_of(make_ballot_of("ABC", gold="A"), Decision(False, "A", 1 / 3), {})
    assert (final.answer, final.source, final.correct) == ("A", AnswerSource.MAJORITY, True)


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "correct"),
    [
        (AnswerKind.CHOICE, "B", "B", True),
        (AnswerKind.CHOICE, "B", "A", False),
        (AnswerKind.CHOICE, "B", None, False),
        (AnswerKind.CHOICE, None, "A", None),
        (AnswerKind.MATH, "1/2", "0.5", True),
        (AnswerKind.MATH, "1/2", "0.6", False),
        (AnswerKind.MATH, None, "0.5", None),
        (AnswerKind.TEXT, "Emma", "Emma", None),
        (AnswerKind.TEXT, None, None, None),
    ],
)
def test_answers_are_graded_as_their_kind_compares(kind, gold, answer, correct) -> None:
    num_options = 4 if kind is AnswerKind.CHOICE else None
    question = Question(id="q", prompt_tokens=9, answer=gold, answer_kind=kind, num_options=num_options)
    ballot = make_ballot(question, [Vote("A", answer)], comparisons()[kind])
    for aggregated in ({}, {"q": answer}):
        final = final_of(ballot, Decision(False, answer, 1.0), aggregated)
        assert (final.answer, final.gold, final.correct) == (answer, gold, correct)


def test_there_must_be_a_decision_for_every_ballot() -> None:
    with pytest.raises(ValueError, match="shorter"):
        final_answers([make_ballot_of("AAB")], [], {}, comparisons())


@given(rows=st.lists(st.tuples(st.text("ABC-", min_size=1, max_size=3), LETTERS, LETTERS, st.booleans()), max_size=8))
def test_each_question_has_one_answer_from_who_gave_it(rows) -> None:
    cast = [make_ballot_of(votes, name=f"q{i}", gold=gold) for i, (votes, gold, _, _) in enumerate(rows)]
    decisions = [Majority().decide(ballot) for ballot in cast]
    aggregated = {f"q{i}": said for i, (_, _, said, is_asked) in enumerate(rows) if is_asked}
    finals = final_answers(cast, decisions, aggregated, comparisons())
    assert [final.question for final in finals] == [f"q{i}" for i in range(len(rows))]
    for final, ballot, decision in zip(finals, cast, decisions, strict=True):
        is_aggregated = final.source is AnswerSource.AGGREGATOR
        assert is_aggregated == (final.question in aggregated)
        assert final.answer == (aggregated[final.question] if is_aggregated else decision.answer)
        assert final.votes == tuple(vote.answer for vote in ballot.votes)
        assert final.correct == (None if final.gold is None else final.answer == final.gold)
    known = [final for final in finals if final.gold is not None]
    right = sum(final.answer == final.gold for final in known)
    assert accuracy_frac(finals) == (right / len(known) if known else None)


def test_accuracy_is_of_the_answers_that_can_be_told() -> None:
    def graded(correct: bool | None) -> FinalAnswer:
        return FinalAnswer("q", "A", AnswerSource.MAJORITY, 1.0, ("A",), None, correct)

    assert accuracy_frac([graded(True), graded(None), graded(False), graded(True)]) == pytest.approx(2 / 3)
    assert accuracy_frac([graded(False)]) == 0.0
    assert accuracy_frac([graded(None)]) is None
    assert accuracy_frac(iter(())) is None

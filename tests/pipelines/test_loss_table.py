"""What leaving a response out loses, against an oracle that goes through one question after the other."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.pipelines.loss_table import BudgetSetting, LossTable, loss_table
from mosaic.pipelines.rules.ballot import decide_at, plurality
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, Observed
from tests.calibration_questions import make_ballot_of, make_question

TOKENS = st.integers(1, 20)


@st.composite
def known(draw: st.DrawFn) -> CalibrationQuestion:
    votes = draw(st.text("ABC-", min_size=2, max_size=4))
    graded = make_question("q", votes, experts="WXYZ", aggregator=draw(st.sampled_from(["A", "B", None])))
    said, whole_tokens = [draw(st.sampled_from(["A", "B", None])) for _ in votes], draw(TOKENS)
    seen = tuple(Observed(draw(TOKENS), whole_tokens, answer, answer == "A", draw(TOKENS)) for answer in said)
    return CalibrationQuestion(
        ballot=graded.ballot, vote_correct=graded.vote_correct, aggregator_answer=graded.aggregator_answer,
        aggregator_correct=graded.aggregator_correct, observed=seen,
    )  # fmt: skip


def ways(question: CalibrationQuestion, setting: BudgetSetting) -> list[bool]:
    """List whether a question is right, for each way in which it may come out."""
    threshold, propose, aggregate, hedge = setting
    seen = question.observed
    votes = "".join(vote.answer or "-" for vote in question.ballot.votes)

    def decided(without: Sequence[int]):
        ballot = make_ballot_of("".join("-" if i in without else v for i, v in enumerate(votes)), experts="WXYZ")
        return decide_at(ballot, plurality(ballot), threshold)

    def read(without: int | None) -> bool:
        right, tokens = question.aggregator_correct, seen[0].aggregator_tokens
        if without is not None:
            right, tokens = seen[without].left_out_correct, seen[without].left_out_tokens
        vote = decided([] if without is None else [without]).answer == "A"
        return vote if aggregate is not None and tokens > aggregate else right

    written = [one.output_tokens for one in seen]
    cut = [i for i, tokens in enumerate(written) if propose is not None and tokens > propose]
    over = [i for i, tokens in enumerate(written) if hedge is not None and (tokens > hedge or i in cut)]
    if len(votes) >= 3 and len(over) == 1 and not decided(over).skip:
        in_time = [decided([]).answer == "A"] if not cut and decided([]).skip else []
        return [*in_time, read(over[0])]
    if cut and len(cut) == len(votes) - 1:
        return [next(vote for i, vote in enumerate(votes) if i not in cut) == "A"]
    if len(cut) > 1:
        return [False]
    return [decided(cut).answer == "A"] if decided(cut).skip else [read(cut[0] if cut else None)]


LIMITS = st.none() | st.integers(1, 20)
SETTINGS = st.builds(BudgetSetting, st.sampled_from([None, 0.3, 0.5, 0.66, 1.0]), LIMITS, LIMITS, LIMITS)


@settings(max_examples=75, deadline=None)
@given(st.lists(known(), min_size=1, max_size=8), SETTINGS)
def test_losses_are_those_of_the_worst_way(questions: list[CalibrationQuestion], setting: BudgetSetting) -> None:
    expected = [int(question.aggregator_correct) - int(all(ways(question, setting))) for question in questions]
    assert loss_table(questions, plurality).losses(setting).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(known(), min_size=1, max_size=8), SETTINGS)
def test_budgets_never_make_a_question_write_more(questions: list[CalibrationQuestion], setting: BudgetSetting) -> None:
    table = loss_table(questions, plurality)
    total, chain = table.written_tokens(setting._replace(hedge_tokens=None))
    whole, _ = table.written_tokens(BudgetSetting(None))
    assert (chain <= total).all()
    assert (total <= whole + table.read_tokens.max(axis=1)).all()
    assert table.losses(BudgetSetting(None)).tolist() == [0] * len(questions), "always aggregating whole responses"


def test_what_a_question_writes_one_call_after_the_other() -> None:
    question = make_question("q", "ABB")
    seen = tuple(Observed(tokens, 7, "A", True, 4) for tokens in (5, 9, 30))
    question = CalibrationQuestion(
        ballot=question.ballot, vote_correct=question.vote_correct, aggregator_answer="A", aggregator_correct=True,
        observed=seen,
    )  # fmt: skip
    table = loss_table([question], plurality)
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(None))] == [[51], [37]]
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(None, 20, 6))] == [[5 + 9 + 20 + 4], [24]]
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(1.0, hedge_tokens=10))] == [[5 + 9 + 10 + 4], [14]]
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(0.6))] == [[44], [30]], (
        "the longest one settles it"
    )
    table.confidence[:, 3] = 0.7
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(0.6))] == [[23], [9]], "it is not waited for"


def test_taking_questions_takes_all_that_is_known_of_them() -> None:
    table = LossTable(
        tokens=np.array([[1], [2]]), num_slots=np.array([1, 1]), confidence=np.ones((2, 2)),
        vote_right=np.array([[True, True], [False, False]]), slot_right=np.ones((2, 1), dtype=bool),
        read_right=np.ones((2, 2), dtype=bool),
        read_tokens=np.ones((2, 2), dtype=int),
    )  # fmt: skip
    taken = table.take(np.array([1, 1, 0]))
    assert len(taken) == 3
    assert taken.losses(BudgetSetting(1.0)).tolist() == [1, 1, 0]

"""Kinds of questions, from text and gold answer as question files give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.workload import OPTION_LETTERS, AnswerKind, Question
from mosaic.workloads.question_kind import question_kind

CHOICE, MATH, TEXT = AnswerKind.CHOICE, AnswerKind.MATH, AnswerKind.TEXT
COLOURS = "Which colour? The options are: (A) red (B) green (C) blue"


@pytest.mark.parametrize(
    ("gold", "letter"),
    [
        ("C", "C"), ("(C)", "C"), ("C.", "C"), ("c", "C"), (" (b) ", "B"), ("(b)", "B"), ("**B**", "B"),
        ("Option B", "B"), ("option b", "B"), ("Green", "B"), (None, None),
    ],
)  # fmt: skip
def test_listed_options_make_a_choice_by_letter_or_text(gold: str | None, letter: str | None) -> None:
    assert question_kind(COLOURS, gold) == (CHOICE, 3, letter)


@pytest.mark.parametrize(
    "text, num_options",
    [
        ("Pick one.\nA. is red\nB. green\nC. blue\nD. none", 4),
        ("Pick one.\n A) red\n B) green", 2),
        ("Pick one. (A) red (B) green (C) both (A) and (B) (D) neither", 4),
        ("Pick one. Options:\nA. red\nB. green\nC. Both A. and B.", 3),
        ("The options are: (A) P(A) and P(B) (B) f (X) (C) (A) or not (D) are equal (E) .5 (F) Both (A) & (C)", 6),
        ("Statements: (A) one (B) two (C) three. Choices: (A) first (B) second", 2),
        ("Example: (A) one (B) two (C) three. Now: (A) first (B) second", 2),
        ("The options are given below.\n(A) one\n(B) two (E)-isomer\n(C) (E) isomer", 3),
        ("Choices: see below", None),
    ],
)
def test_options_are_counted_from_a_in_order(text: str, num_options: int | None) -> None:
    assert question_kind(text, None)[1] == num_options


@pytest.mark.parametrize("gold, num_options", [("B", 4), ("(D)", 4), ("E", 5), ("J.", 10)])
def test_a_gold_letter_without_options_makes_a_choice(gold: str, num_options: int) -> None:
    assert question_kind(None, gold) == (CHOICE, num_options, gold.strip("()."))
    assert question_kind("Let f(A) be the area (A) of it.", gold) == (CHOICE, num_options, gold.strip("()."))


@pytest.mark.parametrize(
    "gold",
    [
        "73", "033", "-1.5", "1,234", "3/4", "75%", r"\frac{3}{4}", r"$\sqrt{2}$", "x^2 + 1", "2pi", "42 cm", "(1, 2]",
        "n(n+1)/2",
    ],
)  # fmt: skip
def test_numbers_and_formulas_are_mathematics(gold: str) -> None:
    assert question_kind("Find it.", gold) == (MATH, None, gold)
    assert question_kind("In triangle (A) the sides (A) and (B) meet. Find it.", gold) == (MATH, None, gold)


@pytest.mark.parametrize(
    "gold", ["Paris", "c", "12 May or 13 June", "080 or 081 (both were accepted)", "Henry VIII", "a b"]
)
def test_other_gold_is_text(gold: str) -> None:
    assert question_kind("What?", gold) == (TEXT, None, gold)


@pytest.mark.parametrize("gold", [None, "", "  "])
def test_without_options_and_gold_nothing_can_be_compared(gold: str | None) -> None:
    assert question_kind("What?", gold) == (TEXT, None, None)


@given(st.text(max_size=80), st.text(max_size=8) | st.sampled_from(OPTION_LETTERS) | st.none())
def test_the_kind_always_makes_a_question(text: str, gold: str | None) -> None:
    kind, num_options, answer = question_kind(text, gold)
    Question(id="q", prompt_tokens=1, text=text, answer=answer, answer_kind=kind, num_options=num_options)


@given(st.integers(2, 26), st.data())
def test_any_number_of_options_is_found(num_options: int, data: st.DataObject) -> None:
    letters = OPTION_LETTERS[:num_options]
    gold = data.draw(st.sampled_from(letters))
    text = "What? The options are: " + " ".join(f"({letter}) text of it." for letter in letters)
    assert question_kind(text, gold) == (CHOICE, num_options, gold)

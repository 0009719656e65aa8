"""Answers of responses: the collection in `responses/`, hand-made traps, and what must hold of any text."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.answers.extraction import extract_answer, without_thinking
from mosaic.answers.math_equality import same_value
from mosaic.answers.response_text import boxes
from mosaic.core.workload import OPTION_LETTERS, AnswerKind, Question

RESPONSES = Path(__file__).parent / "responses"


class Response(NamedTuple):
    name: str
    question: Question
    text: str
    thinking_opened: bool
    answer: str | None


def make_question(kind: AnswerKind, num_options: int | None = None, *, gold: str | None = None) -> Question:
    return Question(id="q", prompt_tokens=9, answer_kind=kind, num_options=num_options, answer=gold)


def choice(num_options: int = 4, *, gold: str | None = None) -> Question:
    return make_question(AnswerKind.CHOICE, num_options, gold=gold)


MATH = make_question(AnswerKind.MATH)
TEXT = make_question(AnswerKind.TEXT)


def responses() -> Iterator[Response]:
    for kind in AnswerKind:
        for entry in yaml.safe_load((RESPONSES / f"{kind}.yaml").read_text(encoding="utf-8")):
            question = make_question(kind, entry.get("options"))
            opened = entry.get("thinking_opened", False)
            yield Response(f"{kind}-{entry['id']}", question, entry["text"], opened, entry["answer"])


ALL = list(responses())


def test_the_collection_is_large_and_long_enough() -> None:
    assert len({response.name for response in ALL}) == len(ALL) >= 75
    assert sum(response.text.strip().count("\n\n") >= 1 for response in ALL) >= 20
    assert sum(response.answer is None for response in ALL) >= 15


@pytest.mark.parametrize("response", ALL, ids=lambda response: response.name)
def test_a_response_is_read_as_a_careful_reader_would(response: Response) -> None:
    found = extract_answer(response.text, response.question, thinking_opened=response.thinking_opened)
    if response.answer is None or response.question.answer_kind is not AnswerKind.MATH:
        assert found == response.answer
        return
    assert found is not None
    assert len(found) <= len(response.answer) + 25, "the expression alone, not the sentence around it"
    assert same_value(found, response.answer), found


@pytest.mark.parametrize(
    "text, visible",
    [
        ("no tags", "no tags"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<THINKING>a</THINKING>b", "b"),
        ("<thought>a</thought>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a</think>b<think>c", "b"),
        ("<think>a", ""),
        ("before <think>a", ""),
    ],
)
def test_what_follows_the_last_closing_tag_is_visible(text: str, visible: str) -> None:
    assert without_thinking(text) == visible


def test_a_template_that_opens_the_tag_hides_a_response_without_any() -> None:
    assert without_thinking("So the answer is B. But", thinking_opened=True) == ""
    assert without_thinking("So B.</think>C", thinking_opened=True) == "C"


@pytest.mark.parametrize(
    "text, letter",
    [
        ("(c)", "C"), ("**D**", "D"), ("\uff22", "B"), ("$\\boxed B$", "B"), ("<answer> B </answer>", "B"),
        ("\\boxed{}", None), ("Answer: II", None), ("Answer: i.e. none", None), ("Is the answer B?", None),
        ("The answer is B cells.", None), ("The answer is I think B.", "B"), ("Answer: a, b", None),
        ("If the answer is B, x = 2.", None), ("Some say the answer is B.", None), ("so A and B are wrong.", None),
        ("The answer cannot be B.", None), ("Answer: none of these", None), ("Answer: none of the above (D)", "D"),
        ("Answer: cannot be determined from the text", None), ("Answer A is wrong.", None), ("Answer B\n", "B"),
        ("Option B would be the best choice if it rained.", None), ("Either B or C is the answer.", None),
        ("The answer is A or B. I pick B.", "B"), ("Option C best explains the data.", "C"),
        ("A is correct. B is correct.", None), ("It is hepatitis B.", None), ("Perhaps it could be (B).", None),
        ("\u0412 \u0434\u0430\u043d\u043d\u043e\u043c", None),
        ("The answer is (C). Hmm, wait. Let me double-check.", "C"), ("Answer: Z", None),
        ("So it is B.\n\nThe correct answer is not listed.", None), ("A fits best, so A. Answer: none of them.", None),
    ],
)  # fmt: skip
def test_letters_count_only_where_they_answer(text: str, letter: str | None) -> None:
    assert extract_answer(text, choice()) == letter


@pytest.mark.parametrize(
    "text, expression",
    [
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"), ("\\boxed 7", "7"), ("\\boxed{3} and \\boxed{}", "3"),
        ("The answer is (3, 4).", "(3, 4)"), ("The answer is n^2 + 1.", "n^2 + 1"), ("The answer is unknown.", None),
        ("\\boxed{3}. Wait, I made a mistake, as", None), ("Answer: as follows.\n\nx is\n\n$y = 7$", "7"),
        ("This cannot be determined from the 2 facts.", None), ("no numbers here.", None), ("answer", None),
        ("Step 1: add.\nStep 2: done.", None), ("The answer is a = 1, b = 2", "a = 1, b = 2"),
        ("The answer is $5$, see \\boxed{5", "5"), ("", None), ("The answer is **2**.", "2"),
        ("The answer is 2**10.", "2**10"), ("The answer is 2**10 as the tree has ten levels.", "2**10"),
        ("The answer is 2^(n(n-1)/2) for all n > 3.", "2^(n(n-1)/2)"), ("The answer is 0xFF in this notation.", "0xFF"),
        ("The answer is 5 million.", "5 million"), ("So we sold about 5 billion shares.", "5 billion"),
        ("The answer is $2$ hours, not less.", "2 hours"), ("It takes 90 km/h to get there.", "90 km/h"),
        ("The answer is 101_2 in the notation of the task.", "101_2"), ("The answer is 7 mod 3.", "7 mod 3"),
        ("The answer is 3x + 2 for every x.", "3x + 2"), ("She finished on the 5th of May.", "5"),
    ],
)  # fmt: skip
def test_expressions_are_taken_from_where_they_are_announced(text: str, expression: str | None) -> None:
    assert extract_answer(text, MATH) == expression


PIECES = st.sampled_from([
    "answer ", "the ", "is ", ": ", "A", "B", "(C)", "(", ")", "**", "\\boxed{", "}", "{", "$", "\n", ". ", "I ", "or ",
    "not ", "wait, ", "so ", "option ", "either ", "<think>", "</think>", "none ", "7", "3.5", ",", "=", "\\frac",
    "if ", "correct ", "1/2", "\\", "?", "\u7b54\u6848", "\u0412", "\uff08", "-",
])  # fmt: skip
TEXTS = st.text(max_size=200) | st.lists(PIECES, max_size=60).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(2, 26), st.booleans())
def test_any_text_yields_an_option_or_nothing(text: str, num_options: int, opened: bool) -> None:
    letter = extract_answer(text, choice(num_options), thinking_opened=opened)
    assert letter is None or letter in tuple(OPTION_LETTERS[:num_options])


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_text_yields_an_expression_or_nothing(text: str) -> None:
    for question in (MATH, TEXT):
        found = extract_answer(text, question)
        assert found is None or found.strip()


BRACED = st.recursive(
    st.text("abcxyz0123456789+-*/^=., ", min_size=1, max_size=8),
    lambda inner: st.lists(inner | inner.map(lambda text: f"\\frac{{{text}}}{{2}}"), min_size=1, max_size=3).map(
        "".join
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(BRACED.map(str.strip).filter(bool))
def test_what_is_boxed_is_the_answer(expression: str) -> None:
    text = f"After some work, \\boxed{{1}} and then, finally, we get $\\boxed{{{expression}}}$"
    assert extract_answer(text, MATH) == expression
    assert [box.content for box in boxes(text)] == ["1", expression]


@settings(deadline=None)
@given(st.sampled_from(OPTION_LETTERS[:10]), st.sampled_from(["{}", "({})", "\\text{{{}}}", "{}. Some text", "**{}**"]))
def test_a_boxed_letter_is_the_answer_in_any_wrapper(letter: str, wrapper: str) -> None:
    text = f"(A) is wrong, and (B) is wrong. \\boxed{{{wrapper.format(letter)}}}"
    assert extract_answer(text, choice(10)) == letter


RATIONALS = st.fractions(min_value=-1000, max_value=1000, max_denominator=1000)


@settings(deadline=None)
@given(RATIONALS, RATIONALS)
def test_fractions_compare_by_value_in_both_directions(one: object, other: object) -> None:
    assert same_value(str(one), str(one))
    assert same_value(str(one), str(other)) == same_value(str(other), str(one)) == (one == other)


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_decimals_equal_their_fractions(digits: int, places: int) -> None:
    decimal = f"{'-' if digits < 0 else ''}{abs(digits) // 10**places}.{abs(digits) % 10**places:0{places}d}"
    latex = f"{'-' if digits < 0 else ''}\\frac{{{abs(digits)}}}{{{10**places}}}"
    assert same_value(decimal, latex)
    assert same_value(latex, decimal)
    assert same_value(f"{digits:,}", str(digits))


@settings(max_examples=25, deadline=None)
@given(
    *[st.lists(st.sampled_from(["x", "2", "+", "\\sqrt{3}", "(", ")", "^2", "\\frac{1}{x}"]), max_size=5).map("".join)]
    * 2
)
def test_comparison_is_symmetric_and_reflexive(one: str, other: str) -> None:
    assert same_value(one, one)
    assert same_value(one, other) == same_value(other, one)

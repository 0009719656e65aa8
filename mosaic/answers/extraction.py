"""Extracts the answer from a response, and compares two answers.

A response that gives no answer is unparsable: its answer is None, which equals nothing, not even another None.
"""

from collections.abc import Callable
from operator import eq
from typing import TypeAlias

from mosaic.answers.response_text import without_thinking
from mosaic.core.workload import AnswerKind, Question

__all__ = ["Comparison", "comparison", "extract_answer", "is_correct", "without_thinking"]

Comparison: TypeAlias = Callable[[str, str], bool]
"""Whether two answers to the same question are the same; symmetric, and true of an answer and itself."""


def extract_answer(text: str, question: Question, *, thinking_opened: bool = False) -> str | None:
    r"""Read the answer that a response gives to a question, as a careful reader would.

    Thinking is removed first, so a response cut off while thinking has no answer.

    Parameters
    ----------
    text
        The response as the engine returned it.
    question
        Its kind and number of options say what counts as an answer; its text and gold are ignored.
    thinking_opened
        The prompt's template opened the think tag, see `without_thinking`.

    Returns
    -------
    str or None
        The letter of one of the question's options; the expression as the response writes it; or, of free text, all
        that is visible. None: the response gives no answer, several, or one that is not an option.

    Examples
    --------
    >>> quiz = Question(id="q", prompt_tokens=9, answer_kind=AnswerKind.CHOICE, num_options=4)
    >>> extract_answer("A nerve is meant, so the answer is (C), not B.", quiz)
    'C'
    >>> extract_answer("It is either A or B.", quiz) is None
    True
    >>> extract_answer(r"Thus \boxed{\frac{3}{4}}.", Question(id="q", prompt_tokens=9, answer_kind=AnswerKind.MATH))
    '\\frac{3}{4}'
    """
    visible = without_thinking(text, thinking_opened=thinking_opened).strip()
    if question.answer_kind is AnswerKind.CHOICE:
        from mosaic.answers.choice_answers import choice_letter  # simulations do without: they draw answers

        assert question.num_options is not None, "checked by Question"
        return choice_letter(visible, question.num_options)
    if question.answer_kind is AnswerKind.MATH:
        from mosaic.answers.math_answers import math_expression

        return math_expression(visible)
    return visible or None


def comparison(kind: AnswerKind) -> Comparison | None:
    """Return the comparison for a kind of answers; None for free text, which only a user's comparison can compare."""
    return {AnswerKind.CHOICE: eq, AnswerKind.MATH: _same_value}.get(kind)


def _same_value(a: str, b: str) -> bool:
    from mosaic.answers.math_equality import same_value  # takes a while to import

    return same_value(a, b)


def is_correct(answer: str | None, question: Question, same: Comparison | None) -> bool | None:
    """Return whether an answer is the gold one; None without a gold answer or without a comparison.

    An unparsable answer (None) to a question with gold is wrong.
    """
    if question.answer is None or same is None:
        return None
    return answer is not None and same(answer, question.answer)

"""Writes the prompts of a live run: the question with the form of its answer, and for an aggregator the responses."""

from mosaic.answers.response_text import without_thinking
from mosaic.core.results import CallRecord
from mosaic.core.workload import AnswerKind, Question, Workload
from mosaic.pipelines.aggregation import FORM


def expert_prompt(question: Question) -> str:
    """Write the prompt of every expert: the question, and how to state an answer that is extracted later.

    Raises
    ------
    ValueError
        If the question has no text.

    Examples
    --------
    >>> from mosaic.core.workload import AnswerKind
    >>> print(expert_prompt(Question(id="q", prompt_tokens=5, text="What is 2 + 2?", answer_kind=AnswerKind.MATH)))
    What is 2 + 2?
    <BLANKLINE>
    Finish with your final answer, and nothing but it, inside \\boxed{...}.
    """
    if question.text is None:
        raise ValueError(f"question {question.id}: text must be there to write a prompt from, got None")
    if question.answer_kind is AnswerKind.TEXT:  # nothing is extracted from it
        return question.text
    return f"{question.text}\n\n{FORM[question.answer_kind]}"


def check_texts(workload: Workload) -> None:
    """Check that every question can be sent.

    Raises
    ------
    ValueError
        Naming the first question without a text.
    """
    for question in workload.questions:
        if question.text is None:
            raise ValueError(
                f"workload {workload.name}: question {question.id} must have a text where models really answer, got "
                "None: backend.mode=replay times lengths without texts, workload=file reads questions of your own"
            )


def visible_text(record: CallRecord) -> str | None:
    """Return the visible text of a response, without its thinking; None: it has no text."""
    response = record.response
    if response is None or (text := response.text) is None:
        return None
    return without_thinking(text, thinking_opened=response.thinking_opened)

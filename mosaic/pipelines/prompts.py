"""What models read in a live run: the question with the form of its answer, and for an aggregator the responses."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import AnswerKind, Call, CallKey, Expert, Question, Workload
from mosaic.pipelines.aggregation import FORM, MIN_OUTPUT_TOKENS, Response, aggregator_prompt, visible_tokens

TextPrompts: TypeAlias = Callable[[Call], str]
"""Gives what a model reads for a call; the chat template of its checkpoint comes around it."""


def expert_prompt(question: Question) -> str:
    """Write what every expert reads: the question, and how to state an answer that is to be extracted.

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
    """Check that every question can be asked.

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


def expert_prompts(questions: Sequence[Question]) -> TextPrompts:
    """Ask each call's question."""
    texts = {question.id: expert_prompt(question) for question in questions}
    return lambda call: texts[call.key.question]


def aggregator_prompts(
    questions: Sequence[Question],
    records: Sequence[CallRecord],
    texts: Mapping[CallKey, str],
    aggregator: Expert,
    *,
    min_output_tokens: int = MIN_OUTPUT_TOKENS,
) -> TextPrompts:
    """Show the aggregator the finished responses of each call's question, in the order of their slots.

    Parameters
    ----------
    questions, records
        The batch, and what became of the expert stage's calls.
    texts
        Of these calls' responses, without thinking.
    aggregator, min_output_tokens
        Who reads, and the room that is left for what it writes, as in ``aggregator_calls``.
    """
    known = {question.id: question for question in questions}
    responses: dict[str, list[tuple[int, Response]]] = {name: [] for name in known}
    for record in records:
        if record.status is CallStatus.FINISHED:
            response = Response(record.expert, visible_tokens(record), texts[record.key])
            responses[record.key.question].append((record.key.slot, response))

    def prompt(call: Call) -> str:
        question = call.key.question
        read = [response for _, response in sorted(responses[question], key=lambda pair: pair[0])]
        return aggregator_prompt(known[question], read, aggregator, min_output_tokens=min_output_tokens)

    return prompt

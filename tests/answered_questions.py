"""Questions whose calls have been answered, and an aggregator for those that disagree."""

from typing import Any

from mosaic.core.results import CallRecord
from mosaic.core.workload import AnswerKind, Question, Workload
from mosaic.runtime.second_stage import Aggregator
from tests.factories import make_call, make_expert
from tests.run_records import make_failed, make_record

FAILED = "(failed)"
"""In a list of answers: the call did not finish."""


def make_aggregator(*tp_degrees: int, **changes: Any) -> Aggregator:
    expert = make_expert("W", max_replicas=3, max_output_tokens=1000)
    return Aggregator(**{"name": "test", "expert": expert, "tp_degrees": tp_degrees or (4,), **changes})


def make_question(name: str, kind: AnswerKind = AnswerKind.CHOICE, *, prompt_tokens: int = 50) -> Question:
    num_options = 4 if kind is AnswerKind.CHOICE else None
    return Question(id=name, prompt_tokens=prompt_tokens, answer_kind=kind, num_options=num_options)


def make_stage(*answered: tuple[Question, list[str | None]]) -> tuple[Workload, list[CallRecord]]:
    """A workload whose questions have been answered, by experts A, B, C in turn."""
    calls, records = [], []
    for question, answers in answered:
        for slot, answer in enumerate(answers):
            call = make_call(question.id, expert="ABC"[slot % 3], slot=slot)
            made = make_failed if answer == FAILED else make_record
            calls.append(call)
            records.append(
                made(question.id, expert=call.expert, key=call.key, answer=None if answer == FAILED else answer)
            )
    return Workload(name="test", questions=tuple(q for q, _ in answered), calls=tuple(calls)), records

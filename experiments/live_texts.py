"""What a live run asks and keeps: calibration questions, what a reader sees of responses, and their lines on disk."""

import json
from collections.abc import Mapping

from mosaic.backends.journal_records import EndedCall
from mosaic.response_text import without_thinking
from mosaic.results import CallStatus
from mosaic.workload import CallKey, Workload


def visible_texts(responses: Mapping[CallKey, EndedCall]) -> dict[CallKey, str]:
    """Give what a reader sees of each finished response."""
    return {
        key: without_thinking(entry.text, thinking_opened=entry.thinking_opened)
        for key, entry in responses.items()
        if entry.status is CallStatus.FINISHED and entry.text is not None
    }


def first_questions(workload: Workload, num_questions: int) -> Workload:
    """Cut a workload down to its first questions."""
    questions = workload.questions[:num_questions]
    kept = {question.id for question in questions}
    return Workload(
        name=workload.name,
        questions=questions,
        calls=tuple(call for call in workload.calls if call.key.question in kept),
    )


def prompt_tokens_by_question(workload: Workload) -> list[int]:
    """Prompt tokens by question, as its calls have them; a question without calls has its own."""
    tokens = {call.key.question: call.prompt_tokens for call in workload.calls}
    return [tokens.get(question.id, question.prompt_tokens) for question in workload.questions]


def calibration_number(key: CallKey) -> int:
    """Read a calibration call's number out of its key; see ``mosaic.sweep.sweep_calls``."""
    return int(key.question.rpartition("-")[2])


def response_line(entry: EndedCall) -> str:
    key = entry.key
    line = {
        "question": key.question,
        "role": key.role.value,
        "slot": key.slot,
        "expert": entry.expert,
        "status": entry.status.value,
        "finish_reason": entry.finish_reason,
        "output_tokens": entry.output_tokens,
        "text": entry.text,
        "error": entry.error,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"

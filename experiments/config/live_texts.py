"""What a live run asks and keeps: calibration questions, what a reader sees of responses, and their lines on disk."""

import json
from collections.abc import Collection, Mapping
from hashlib import blake2b

from mosaic.answers.response_text import without_thinking
from mosaic.core.errors import BackendError
from mosaic.core.results import CallStatus
from mosaic.core.workload import CallKey, ExpertName, Workload
from mosaic.runtime.journal_records import EndedCall


def visible_texts(responses: Mapping[CallKey, EndedCall]) -> dict[CallKey, str]:
    """Give what a reader sees of each finished response."""
    return {
        key: without_thinking(entry.text, thinking_opened=entry.thinking_opened)
        for key, entry in responses.items()
        if entry.status is CallStatus.FINISHED and entry.text is not None
    }


def first_questions(workload: Workload, num_questions: int, experts: Collection[ExpertName]) -> Workload:
    """Cut a workload down to its first questions, without those that ask other experts.

    Raises
    ------
    BackendError
        If none is left.
    """
    strange = {call.key.question for call in workload.calls if call.expert not in experts}
    questions = tuple(question for question in workload.questions if question.id not in strange)[:num_questions]
    kept = {question.id for question in questions}
    if not questions:
        raise BackendError(
            f"workload {workload.name}: calibration questions must ask only experts that are priced, "
            f"{sorted(experts)}, got none: give profile.aggregator_path, or more questions"
        )
    return Workload(
        name=workload.name,
        questions=questions,
        calls=tuple(call for call in workload.calls if call.key.question in kept),
    )


def calibration_seed(seed: int) -> int:
    """Derive the root seed of responses that are measured: no batch shares their luck, even with the same questions."""
    return int.from_bytes(blake2b(f"{seed}|calibration".encode(), digest_size=6).digest(), "little")


def prompt_tokens_by_question(workload: Workload) -> list[int]:
    """Prompt tokens by question, as its calls have them; a question without calls has its own."""
    tokens = {call.key.question: call.prompt_tokens for call in workload.calls}
    return [tokens.get(question.id, question.prompt_tokens) for question in workload.questions]


def calibration_number(key: CallKey) -> int:
    """Read a calibration call's number out of its key; see ``mosaic.runtime.sweep.sweep_calls``."""
    return int(key.question.rpartition("-")[2])


def response_line(entry: EndedCall) -> str:
    key = entry.key
    line = {
        "question": key.question,
        "role": key.node,
        "slot": key.slot,
        "expert": entry.expert,
        "status": entry.status.value,
        "finish_reason": entry.finish_reason,
        "output_tokens": entry.output_tokens,
        "text": entry.text,
        "error": entry.error,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"

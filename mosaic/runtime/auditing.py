"""Runs the nodes that a gate skipped, for an audit of the cost of skipping."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from mosaic.answers.extraction import extract_answer
from mosaic.core.results import STOPPED, CallRecord, CallStatus
from mosaic.core.workload import CallKey, Question, Workload
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.walk import walk
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Show, show_nothing
from mosaic.runtime.hindsight import ask_unskipped
from mosaic.runtime.job import Job
from mosaic.runtime.site import prompts_of

JOURNAL = "audit"
"""Name of the audit's own journal: calls that ended are not sent again."""


class Unskipped(NamedTuple):
    """The answer that a question would have had."""

    answer: str | None
    has_failed: bool
    """A call of the audit has failed, or was too long to be sent: the answer is not known."""


def answer_unskipped(
    job: Job, names: Sequence[str], done: Mapping[CallKey, CallRecord], show: Show = show_nothing
) -> dict[str, Unskipped]:
    """Aggregate questions that the gate skipped, with the seeds that they would have had in the batch.

    Calls of the first layer that the batch stopped are sent first, so that the aggregator reads whole answers. Calls
    that failed in the batch are not sent again: the aggregator reads the others, as it would have in the batch.

    Parameters
    ----------
    job
        The job of the batch.
    names
        Ids of the questions.
    done
        The batch's calls of the first layer that have ended.
    show
        Displays the progress.

    Raises
    ------
    BackendError
        If their calls cannot be sent.
    """
    wanted = set(names)
    calls = tuple(call for call in job.workload.calls if call.key.question in wanted)
    chosen = tuple(question for question in job.workload.questions if question.id in wanted)
    graph, known = job.graph.without_rule(), {question.id: question for question in chosen}
    questions = Questions(Workload(name=job.workload.name, questions=chosen, calls=calls), graph)
    records = {
        key: _read(record, known[key.question])
        for key, record in done.items()
        if key.question in wanted and record.status not in STOPPED
    }

    def backend_at(depth: int) -> Backend:
        name = f"{JOURNAL}_{depth - 1}" if depth else f"{JOURNAL}_first"
        return job.site.backend(known, prompts_of(job.graph, known), name=name, earlier=records)

    experts = [[*job.experts, *(expert for node in layer for expert in node.experts)] for layer in graph.layers]
    unknown = {
        record.key.question
        for _, result in ask_unskipped(job, questions, records, experts, backend_at, show)
        for record in result.calls
        if record.status is not CallStatus.FINISHED
    }
    answers = [walk(graph, *questions.of(question.id)).end().answer for question in questions]
    return {
        final.question: Unskipped(
            final.answer, final.question in unknown or final.source is AnswerSource.NOT_AGGREGATED
        )
        for final in answers
    }


def _read(record: CallRecord, question: Question) -> CallRecord:
    """Complete a journal's record, which is stored without its answer."""
    said = record.response
    if said is None or record.status is not CallStatus.FINISHED or (text := said.text) is None:
        return record
    answer = extract_answer(text, question, thinking_opened=said.thinking_opened)
    return replace(record, answer=answer)

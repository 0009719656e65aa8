"""Asks the nodes that a gate spared, for an audit of what was skipped."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mosaic.answers.extraction import extract_answer
from mosaic.core.errors import BackendError
from mosaic.core.plan import Expected
from mosaic.core.results import STOPPED, CallRecord, CallStatus, Inputs
from mosaic.core.workload import Call, CallKey, Expert, Question, Workload
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.walk import walk
from mosaic.runtime.controller import Show, show_nothing
from mosaic.runtime.job import Job
from mosaic.runtime.site import prompts_of
from mosaic.runtime.static_plan import execute
from mosaic.runtime.unpriced import even_plan

JOURNAL = "audit"
"""Name of the audit's own journal: calls that ended are not sent again."""


class Unskipped(NamedTuple):
    """What a question would have been answered."""

    answer: str | None
    has_failed: bool
    """A call that the audit sent has failed, or was too long to be sent: the answer is not known."""


def answer_unskipped(
    job: Job, names: Sequence[str], done: Mapping[CallKey, CallRecord], show: Show = show_nothing
) -> dict[str, Unskipped]:
    """Aggregate questions that the gate skipped, with the seeds that they would have had in the batch.

    Calls of the first layer that the batch stopped are sent first, so that the aggregator reads whole answers. Calls
    that failed in the batch are not sent again: the aggregator reads the others, as it would have in the batch.

    Parameters
    ----------
    job
        The batch's.
    names
        Ids of the questions.
    done
        The batch's calls of the first layer that have ended.
    show
        Shows what goes on.

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
    for record in records.values():
        questions.note(record)
    unknown: set[str] = set()
    stopped = [call for call in questions.first_calls if call.key not in records]
    for depth, layer in enumerate(graph.layers):
        needed = [call for node in layer for call in questions.calls_of(node.name)] if depth else stopped
        if not needed:
            continue
        experts = [*job.experts, *(expert for node in layer for expert in node.experts)]
        for record in _send(job, depth, needed, experts, known, records, show):
            records[record.key] = record
            questions.note(record)
            if record.status is not CallStatus.FINISHED:
                unknown.add(record.key.question)
    answers = [walk(graph, *questions.of(question.id)).end().answer for question in questions]
    return {
        final.question: Unskipped(
            final.answer, final.question in unknown or final.source is AnswerSource.NOT_AGGREGATED
        )
        for final in answers
    }


def _send(
    job: Job,
    depth: int,
    calls: Sequence[Call],
    experts: Sequence[Expert],
    questions: Mapping[str, Question],
    records: Inputs,
    show: Show,
) -> Sequence[CallRecord]:
    """Send calls of one layer, which read these records."""
    name = f"{JOURNAL}_{depth - 1}" if depth else f"{JOURNAL}_first"
    backend = job.site.backend(questions, prompts_of(job.graph, questions), name=name, earlier=dict(records))
    plan = even_plan(calls, experts, job.site.places, job.cluster.num_workers)
    with show("audit", Expected()) as shown:
        result = execute(plan, calls, backend, shown)
    if left := {call.key for call in calls} - {record.key for record in result.calls}:
        causes = "; ".join(f"worker {loss.worker}: {loss.cause}" for loss in result.lost_workers)
        raise BackendError(f"workers are lost and {len(left)} calls of the audit are left ({causes})")
    return result.calls


def _read(record: CallRecord, question: Question) -> CallRecord:
    """Read a journal's record, which is kept without its answer."""
    said = record.response
    if said is None or said.text is None or record.status is not CallStatus.FINISHED:
        return record
    answer = extract_answer(said.text, question, thinking_opened=said.thinking_opened)
    return record._replace(answer=answer)

"""Asks the nodes that a gate spared, for an audit of what was skipped."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mosaic.answers.extraction import extract_answer
from mosaic.core.plan import Expected
from mosaic.core.results import CallRecord, CallStatus, inputs_of
from mosaic.core.workload import CallKey, Question, Workload
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.walk import walk
from mosaic.runtime.controller import Show, show_nothing
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Questions
from mosaic.runtime.site import prompts_of
from mosaic.runtime.static_plan import execute
from mosaic.runtime.unpriced import even_plan

JOURNAL = "audit"
"""Name of the audit's own journal: calls that ended are not sent again."""


class Unskipped(NamedTuple):
    """What a question would have been answered."""

    answer: str | None
    has_failed: bool
    """A call of it failed, or was too long to be sent, so that it is not known."""


def answer_unskipped(
    job: Job, names: Sequence[str], done: Mapping[CallKey, CallRecord], show: Show = show_nothing
) -> dict[str, Unskipped]:
    """Send questions on that the gate skipped, with the seeds that they would have had in the batch.

    Parameters
    ----------
    job
        The batch's.
    names
        Ids of the questions.
    done
        The batch's calls of the first layer.
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
    records = {key: _read(record, known[key.question]) for key, record in done.items() if key.question in wanted}
    for record in records.values():
        questions.note(record)
    write = prompts_of(graph, known)
    for number, layer in enumerate(graph.layers[1:]):
        needed = [call for node in layer for call in questions.calls_of(node.name)]
        if not needed:
            continue
        experts = list({expert.name: expert for node in layer for expert in node.experts}.values())
        earlier = dict(records)
        backend = job.site.backend(
            known,
            lambda call, inputs, earlier=earlier: write(call, inputs_of(call, earlier, inputs)),  # type: ignore[misc]
            name=f"{JOURNAL}_{number}",
        )
        with show("audit", Expected()) as shown:
            plan = even_plan(needed, experts, job.site, job.cluster.num_workers)
            said = execute(plan, needed, backend, shown)
        for record in said.calls:
            records[record.key] = record
            questions.note(record)
    first = set(graph.first_nodes)
    failed = {
        key.question
        for key, record in records.items()
        if key.node not in first and record.status is not CallStatus.FINISHED
    }
    answers = [walk(graph, *questions.of(question.id)).end().answer for question in questions]
    return {
        final.question: Unskipped(final.answer, final.question in failed or final.source is AnswerSource.NOT_AGGREGATED)
        for final in answers
    }


def _read(record: CallRecord, question: Question) -> CallRecord:
    """Read a journal's record, which is kept without its answer."""
    said = record.response
    if said is None or said.text is None or record.status is not CallStatus.FINISHED:
        return record
    answer = extract_answer(said.text, question, thinking_opened=said.thinking_opened)
    return record._replace(answer=answer)

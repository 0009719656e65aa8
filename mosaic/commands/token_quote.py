"""Quote a batch on servers: its first questions are answered, and priced by their tokens for all of them."""

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from mosaic.config.batch import BatchRequest, work_folder
from mosaic.config.compose import as_recorded
from mosaic.config.errors import log, stoppable
from mosaic.config.job import build_job
from mosaic.config.run_start import QUOTE, begin, check_not_begun, check_start, log_notes
from mosaic.config.servers import prices_of
from mosaic.core.errors import BackendError
from mosaic.core.results import SERVED, RunResult
from mosaic.core.spending import total_cost
from mosaic.core.workload import ExpertName
from mosaic.engines.billing import NOT_SENT
from mosaic.pipelines.questions import Questions
from mosaic.quote.tokens import DEFAULT_QUESTIONS, Limit, TokenQuote, quote_tokens
from mosaic.report.display import show_stage
from mosaic.report.run_folder import JOURNAL
from mosaic.runtime.job import Job
from mosaic.runtime.run import answer_first
from mosaic.runtime.sweep import of_questions

MAY_DIFFER = (f"{QUOTE}.num_questions",)
"""Of an earlier quote."""


def quote_on_servers(
    config: Mapping[str, Any], request: BatchRequest, num_questions: int | None, folder: Path | None
) -> TokenQuote:
    """Answer a batch's first questions, or resume them, and quote the rest.

    Parameters
    ----------
    config, request
        Of the batch.
    num_questions
        To answer; None: 20, or a tenth of the batch where that is less.
    folder
        Of the batch's journal; None: beside its file.

    Raises
    ------
    ValueError, TypeError, MosaicError
        If something is wrong with the input, or no question can be answered.
    """
    work = folder or work_folder(request.path)
    check_not_begun(work)
    place = work / QUOTE
    job = build_job(config, work / JOURNAL, request.overrides).job
    num_all = len(job.workload.questions)
    number = min(num_all, num_questions or min(DEFAULT_QUESTIONS, -(-num_all // 10)))
    check_start(job, [place])
    with stoppable(f"The same command goes on with {request.path.name}"), job.site.open():
        check_not_begun(work)
        begin(place, as_recorded(config) | {QUOTE: {"num_questions": number}}, work / JOURNAL, may_differ=MAY_DIFFER)
        log_notes(job.workload)
        log(f"quote: answers the first {number:,} of {num_all:,} questions; the batch repeats none of them")
        result = answer_first(job, number, show=show_stage)
    stopped = stopped_by(result)
    answered = answered_questions(job, number, result)
    if not answered:
        raise BackendError(f"no question was answered, so there is nothing to quote: {stopped or first_error(result)}")
    return quote_tokens(
        result.calls,
        answered,
        num_all,
        name=job.workload.name,
        spent=total_cost(job.site.costs()),
        prices=prices_of(config["backend"]["endpoints"]),
        limits=limits_of(config),
        stopped=stopped,
    )


def answered_questions(job: Job, number: int, result: RunResult) -> list[str]:
    """List the questions of which every call has ended with a text."""
    part = of_questions(job.workload, job.workload.questions[:number])
    questions = Questions(part, job.graph)
    for record in result.calls:
        questions.record(record)
    states = [questions.state_of(question.id) for question in questions]
    return [
        state.question.id
        for state in states
        if state.is_over and all(record.status in SERVED for record in state.done.values())
    ]


def stopped_by(result: RunResult) -> str | None:
    """Return the cap that stopped the calls; None: no cap did."""
    errors = _errors(result)
    return next((error.removeprefix(NOT_SENT) for error in errors if error.startswith(NOT_SENT)), None)


def first_error(result: RunResult) -> str:
    """Return why the first call failed."""
    return next(iter(_errors(result)), "no call of them left a text")


def _errors(result: RunResult) -> Sequence[str]:
    said = [record.response.error for record in result.calls if record.response is not None]
    return [error for error in said if error]


def limits_of(config: Mapping[str, Any]) -> dict[ExpertName, Limit]:
    """Sum the limits of a minute over the servers of each expert."""
    limits: dict[ExpertName, Limit] = {}
    for endpoint in config["backend"]["endpoints"]:
        before = limits.get(endpoint["expert"], Limit(0.0, 0.0))
        limits[endpoint["expert"]] = Limit(
            before.requests_per_min + (endpoint.get("max_requests_per_min") or inf),
            before.tokens_per_min + (endpoint.get("max_tokens_per_min") or inf),
        )
    return limits

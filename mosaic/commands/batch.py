"""Answer a file of questions by several models, and write OpenAI's batch output.

    mosaic batch questions.jsonl --models A,B,C
    mosaic batch questions.jsonl --server URL --models a,b --price a=0.4/1.6 --price b=0.1/0.4 --max-cost 5
    mosaic batch questions.jsonl pool=tiny              any override of `mosaic run` beside

Finished questions stand in questions.partial.jsonl as they come, and in the end all of them in questions.out.jsonl and
questions.errors.jsonl, in the order of the input. The same command goes on after any interruption.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mosaic
from mosaic.commands.run_folder import leave, summary_of
from mosaic.config.batch import BatchRequest, batch_config, runs_vllm_here, work_folder
from mosaic.config.compose import as_recorded
from mosaic.config.errors import UNANSWERED_STATUS, log, stoppable
from mosaic.config.job import RunSpec, build_job
from mosaic.config.run_start import (
    begin,
    check_start,
    grown_keys,
    is_blank,
    log_notes,
    naming_all_problems,
    quote_before,
)
from mosaic.core.checks import require
from mosaic.core.errors import RunFolderError
from mosaic.core.plan import Expected
from mosaic.core.results import SERVED
from mosaic.core.spending import dollars_text, total_cost
from mosaic.quote import best_plan, can_quote, quote_stages
from mosaic.report.batch_output import (
    AnswerStream,
    BatchPaths,
    Ended,
    check_outputs,
    digests,
    finish,
    paths_of,
    start_batch,
)
from mosaic.report.display import show_run
from mosaic.report.prometheus import RunMetrics, serving
from mosaic.report.run_folder import JOURNAL, SUMMARY, completed_with, read_summary, write_file
from mosaic.report.run_status import Row, RunStatus
from mosaic.report.summary_text import rows
from mosaic.runtime.controller import Controller
from mosaic.runtime.garbage import spare_garbage_collector
from mosaic.runtime.job import Job, Outcome
from mosaic.runtime.promise import Promise, gate_notes, promise_of
from mosaic.runtime.replanning import describe_new_plan
from mosaic.runtime.servers import SERVERS
from mosaic.runtime.stages import Pilot, Stages


def run_batch(
    request: BatchRequest,
    work: Path | None,
    out: Path | None,
    price: float | None,
    metrics_port: int | None,
    metrics_host: str,
) -> int:
    """Run a batch, or the rest of a resumed one, to its end; returns the exit status."""
    spare_garbage_collector()
    work, files = work or work_folder(request.path), paths_of(request.path, out)
    folders = (work, files.out.parent)
    with naming_all_problems(folders, is_here=runs_vllm_here(request)):
        config = batch_config(request)
        stamped = as_recorded(config)
        grown = grown_keys(work, stamped)
        if (status := status_if_done(work, files, stamped, grown)) is not None:
            log(f"already complete: {files.out}")
            return status
        prepared = build_job(config, work / JOURNAL, request.overrides)
    if prepared.job.site.kind != "measured":
        raise ValueError(f"backend.mode must be live in a batch, got {config['backend']['mode']!r}")
    now = batch_time()
    check_outputs(work, files)
    check_writable(files.out.parent)
    check_start(prepared.job, folders)
    choose = None if config["backend"]["name"] == "endpoint" else best_plan  # servers have nothing to place
    metrics, start = RunMetrics(len(prepared.job.workload.questions)), time.monotonic()
    with (
        stoppable(f"The same command goes on with {request.path.name}"),
        prepared.job.site.open(),
        serving(metrics, metrics_port, metrics_host) as port,
    ):
        log_notes(prepared.job.workload, f", see {files.errors.name}")
        begin(work, stamped, may_differ=grown)
        created = start_batch(work, files, now).created
        stream = AnswerStream(prepared.job.workload, prepared.job.graph, files.partial, created)
        quoted = quoted_stages(work, prepared.job)
        prepared = replace(prepared, job=replace(prepared.job, quoted=quoted, choose_plan=choose))
        if port is not None:
            log(f"metrics: http://{metrics_host}:{port}/metrics")
        with closing(stream):
            outcome = execute(prepared, stream, metrics, price)
            ended = finish(files, stream)
        promise = _leave(work, files, prepared, stamped, outcome, ended)
    notes = gate_notes(prepared.job.graph, prepared.calibration, promise)
    billed = billed_rows(prepared.job, stream, ended, price, time.monotonic() - start)
    print(describe(request.path, files, outcome, ended, notes, billed))
    return UNANSWERED_STATUS if ended.num_unanswered else 0


def keep_standard_input(out: Path | None, work: Path | None, *, is_dry: bool) -> Path:
    """Keep the questions on standard input as a file of the output's folder, so that the batch can go on from it.

    Raises
    ------
    ValueError, RunFolderError
        If no folder is named, or there are no questions, or others than a batch in that folder began with.
    """
    require(not is_dry, "FILE", "a file with --dry-run, which keeps nothing", "-")
    if out is None:
        raise ValueError("FILE must be a file, or - with --out FOLDER, which keeps what standard input has as a file")
    path, data = out / "questions", sys.stdin.buffer.read()
    require(bool(data.strip()), "FILE", "a file, or - and questions on standard input", "none")
    has_begun = path.exists() and (work or work_folder(path)).exists()
    if has_begun and not data.startswith(path.read_bytes()):
        raise RunFolderError(
            f"{path}: holds other questions than standard input; --out names another folder, and {path} as FILE goes on"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_file(out, path.name, data)
    return path


def quoted_stages(work: Path, job: Job) -> Callable[..., Stages[Pilot]] | None:
    """Return the stages of the quote before a batch; None: there was none, or the batch has other layers."""
    quoted = quote_before(work)
    if not quoted or job.site.expert_by_server is not None or not can_quote(job):
        return None
    return partial(quote_stages, per_expert=quoted["calls_per_expert"], num_workers=quoted.get("num_workers"))


def _leave(
    work: Path, files: BatchPaths, prepared: RunSpec, stamped: Mapping[str, Any], outcome: Outcome, ended: Ended
) -> Promise | None:
    """Write the run folder; its summary counts the ends of questions, and has the digests of the output files."""
    promise = promise_of(prepared.job, prepared.calibration, outcome)
    summary = summary_of(prepared, stamped, outcome.plans, outcome, promise)
    summary |= ended._asdict() | {"outputs": digests(files)}
    (work / SUMMARY).unlink(missing_ok=True)
    leave(work, prepared, stamped, summary, outcome.plans, outcome)
    files.partial.unlink(missing_ok=True)
    return promise


def execute(prepared: RunSpec, stream: AnswerStream, metrics: RunMetrics, price_per_hour: float | None) -> Outcome:
    """Run the job, with what follows it."""
    start, num_workers = time.monotonic(), prepared.job.cluster.num_workers

    def questions() -> Row:
        costs, spent = prepared.job.site.costs(), []
        if price_per_hour is not None:
            spent.append(f"cost {cost(time.monotonic() - start, num_workers, price_per_hour)}")
        if costs:
            spent.append(total_cost(costs).text)
        return Row("questions", ", ".join(spent), len(stream.lines), len(stream.questions))

    def show(title: str, expected: Expected) -> AbstractContextManager[tuple[Controller, ...]]:
        status = RunStatus(title, expected)
        metrics.follow(status, lambda: len(stream.lines), prepared.job.site.costs)
        return show_run(status, more=questions)

    return mosaic.run(
        prepared.job,
        controllers=[stream],
        show=show,
        on_replan=lambda plan, lost: log(describe_new_plan(plan, lost)),
        log=log,
    )


def status_if_done(work: Path, files: BatchPaths, stamped: dict[str, Any], grown: Sequence[str]) -> int | None:
    """Return the exit status of a batch whose calls have all ended well, with unchanged output files.

    None: the same command has something to do.

    Raises
    ------
    RunFolderError
        If its folder holds answers of another configuration.
    """
    if grown or is_blank(work) or not completed_with(work, stamped):
        return None
    summary = read_summary(work) or {}
    if summary.get("outputs") != digests(files) or summary.get("num_errors") or summary.get("num_not_aggregated"):
        return None
    return UNANSWERED_STATUS if summary.get("num_bad_lines") else 0


def describe(
    path: Path,
    files: BatchPaths,
    outcome: Outcome,
    ended: Ended,
    notes: Sequence[str],
    billed: Sequence[tuple[str, str]],
) -> str:
    """Describe in a few lines how a batch ended."""
    seconds = max((session.end_ts for session in outcome.result.sessions), default=0.0)
    calls, num_workers = outcome.result.calls, outcome.result.num_workers
    unit = "server" if outcome.plans[0].scheduler == SERVERS else "worker"
    num_calls = sum(record.status in SERVED for record in calls) if ended.num_not_sent else len(calls)
    tokens = sum(record.output_tokens for record in calls)
    is_whole = outcome.skip_frac is not None and not ended.num_not_sent
    skipped = "" if not is_whole else f", {outcome.skip_frac:.1%} of the questions without the aggregator"
    lost = f", {ended.num_not_aggregated:,} not aggregated" if ended.num_not_aggregated else ""
    cut = f"{ended.num_cut_to_fit:,} questions: the aggregator has read the end of some responses alone"
    failed = "questions that could not be aggregated have one expert's text"
    errors = f"{files.errors} (the same command tries them again)"
    left_out = f"{ended.num_bad_lines:,} of the lines, see {files.errors}; append mended ones to {path.name}"
    lines = rows(
        ("calls", f"{num_calls:,} calls, {tokens:,} tokens written{skipped}"),
        ("time", f"{seconds:,.1f} s on {num_workers} {unit}{'s' if num_workers > 1 else ''}"),
        ("output", f"{files.out}"),
        ("cut", cut if ended.num_cut_to_fit else None),
        ("FAILED", failed if ended.num_not_aggregated else None),
        ("errors", errors if ended.num_unanswered > ended.num_bad_lines else None),
        ("left out", left_out if ended.num_bad_lines else None),
        *(("gate", note) for note in notes),
        ("promise", f"mosaic audit {files.out}" if is_whole and outcome.skip_frac else None),
        *billed,
    )
    answered = f"{path.name}: {ended.num_answered:,} questions answered{lost}, {ended.num_errors:,} errors"
    return "\n".join([answered, *lines])


def billed_rows(
    job: Job, stream: AnswerStream, ended: Ended, price_per_hour: float | None, seconds: float
) -> list[tuple[str, str]]:
    """Describe what workers or servers cost, and which cap stopped the batch."""
    costs, found = job.site.costs(), []
    if price_per_hour is not None:
        found.append(("cost", f"{cost(seconds, job.cluster.num_workers, price_per_hour)} for {seconds:,.0f} s"))
    if not costs:
        return found
    total = total_cost(costs)
    tokens = f"{total.spent.prompt_tokens:,} tokens in, {total.spent.output_tokens:,} out"
    found.append(("requests", f"{total._replace(dollars=None).text}; {tokens}"))
    if total.dollars is not None:
        each = ", ".join(f"{name} {dollars_text(one.dollars or 0.0)}" for name, one in costs.items())
        found.append(("cost", f"{dollars_text(total.dollars)}: {each}"))
    if stream.stopped is not None:
        option = "--max-requests" if stream.stopped.startswith("max_requests") else "--max-cost"
        how = f"{ended.num_not_sent:,} questions are left, and the same command with a higher {option} goes on"
        found.append(("STOPPED", f"{stream.stopped}; {how}"))
    return found


def cost(seconds: float, num_workers: int, price_per_hour: float) -> str:
    """Describe the cost of so many seconds, idle or not, at a price per worker and hour."""
    return f"${seconds * num_workers * price_per_hour / 3600:,.2f}"


def batch_time() -> int:
    """Return the time for a batch, in seconds since 1970; SOURCE_DATE_EPOCH overrides it, as for builds."""
    given = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    require(given.isdecimal(), "SOURCE_DATE_EPOCH", "whole seconds since 1970", given)
    return int(given)


def check_writable(folder: Path) -> None:
    """Check before any work that files can be written."""
    probe = folder / f".mosaic-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be written ({error.strerror}); --out names another folder") from error

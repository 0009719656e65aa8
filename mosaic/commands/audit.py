"""Bound how many of a batch's skipped questions would have another answer if they had been aggregated.

    mosaic audit questions.out.jsonl               a hundred of them, and what that promises
    mosaic audit questions.out.jsonl --until 2%    as many as that takes

Questions are drawn uniformly, in an order that depends only on the input file, so answers cannot influence it. The
promise holds at whichever moment one stops. The same command with another --until continues from the answered
questions.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mosaic.config.compose import as_recorded
from mosaic.config.errors import NOT_REACHED_STATUS, log, stoppable
from mosaic.config.job import build_job
from mosaic.config.received import TrustedServers, check_received
from mosaic.core.checks import require
from mosaic.core.errors import RunFolderError
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.spending import total_cost
from mosaic.core.workload import AnswerKind, CallKey
from mosaic.pipelines.skip_audit import SkipAudit, audit_order, num_to_reach
from mosaic.report.batch_output import digest_of, read_lines
from mosaic.report.display import show_stage
from mosaic.report.run_folder import CONFIG, JOURNAL, differing_keys, read_config, read_summary, without_keys
from mosaic.runtime.auditing import answer_unskipped
from mosaic.runtime.job import Job
from mosaic.runtime.journal import RUN, read_journal

OUT_SUFFIX = ".out.jsonl"
CAPS = ("max_requests", "max_dollars")
"""Options of the batch that do not apply: the audit's own options select its questions."""


def run_audit(
    out: Path,
    overrides: Sequence[str] = (),
    *,
    until: str | None,
    sample: int,
    most: int | None,
    work: Path | None,
    as_json: bool,
    trusted: TrustedServers | None = None,
) -> int:
    """Run `mosaic audit`, and print its promise; returns the exit status."""
    until_frac = None if until is None else read_share(until)
    require(out.name.endswith(OUT_SUFFIX), "OUT", f"a file that mosaic batch wrote, NAME{OUT_SUFFIX}", str(out))
    folder = out.with_name(f"{out.name.removesuffix(OUT_SUFFIX)}.mosaic") if work is None else work
    lines = read_lines(out)
    kept = {line["custom_id"]: line["response"]["body"]["mosaic"] for line in lines}
    skipped = [name for name, about in kept.items() if about["skipped_aggregator"]]
    job, seed = read_job(folder, overrides, trusted)
    check_output(out, folder)
    if not skipped:
        print(f"{out.name}: nothing to audit, no question skipped the aggregator{why_none(job)}")
        return 0
    order = audit_order(skipped, seed)[:most]
    answers = {name: kept[name]["answer"] for name in skipped}
    found = SkipAudit(num_skipped=len(skipped))
    with stoppable(f"mosaic audit goes on with {out.name}"), job.site.open():
        done = first_layer(folder / JOURNAL, job)
        while True:
            number = min(len(order), max(sample, 2 * found.num_audited))
            changes = changed(job, order[:number], done, answers)
            found.see(changes[found.num_audited :])
            reached = until_frac is None or found.bound_frac <= until_frac
            if reached or number == len(order):
                break
            log(f"audited {found.num_audited:,}: {found.num_changed:,} changed, at most {found.bound_frac:.2%} would")
    print(json.dumps(as_dict(found)) if as_json else describe(out, len(kept), found, until_frac))
    if costs := job.site.costs():
        log(f"audit: {total_cost(costs).text} in all, beside the batch's own")
    return 0 if reached else NOT_REACHED_STATUS


def check_output(out: Path, folder: Path) -> None:
    """Check that an output file is unchanged since the run in a folder wrote it.

    Raises
    ------
    RunFolderError
        If it is not, or the run is not complete.
    """
    outputs = (read_summary(folder) or {}).get("outputs", {})
    written = [digest for name, digest in outputs.items() if name.endswith(OUT_SUFFIX)]
    if digest_of(out) not in written:
        raise RunFolderError(
            f"{out}: is not what the run in {folder} wrote; `mosaic batch` writes its output again, "
            "--work names another run's folder"
        )


def read_job(folder: Path, overrides: Sequence[str] = (), trusted: TrustedServers | None = None) -> tuple[Job, str]:
    """Make a batch's job again, from its run folder; returns also the seed of its audit, the digest of its input.

    Raises
    ------
    RunFolderError, ValueError
        If a file that it names has changed since, or it names code that the command line does not.
    """
    recorded = read_config(folder)
    check_received(recorded, overrides, folder / CONFIG, trusted)
    config = without_keys(recorded, lambda key: key.endswith("_sha256"))
    differing = differing_keys(recorded, as_recorded(config))
    if differing:
        raise RunFolderError(f"{folder}: {differing[0]}: the file is no longer what the batch read; bring it back")
    try:
        job = build_job(without_keys(config, CAPS.__contains__), folder / JOURNAL).job
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{folder / CONFIG}: {error}") from error
    return job, str(recorded["workload"].get("path_sha256", job.workload.name))


def first_layer(journal: Path, job: Job) -> dict[CallKey, CallRecord]:
    """Read the last ends of the experts' calls; a call that finished once counts as finished."""
    first = set(job.graph.first_nodes)
    ended = [record for record in read_journal(journal / RUN).ended if record.key.node in first]
    return {record.key: record for record in sorted(ended, key=lambda record: record.status is CallStatus.FINISHED)}


def changed(
    job: Job, names: Sequence[str], done: Mapping[CallKey, CallRecord], answers: Mapping[str, str | None]
) -> list[bool]:
    """Return which questions would have another answer; an unknown answer counts as changed."""
    kinds = {question.id: question.answer_kind for question in job.workload.questions}
    unskipped = answer_unskipped(job, names, done, show_stage)

    def has_changed(name: str) -> bool:
        now, before = unskipped[name], answers[name]
        if now.has_failed or now.answer is None or before is None:
            return now.has_failed or now.answer != before
        same = job.graph.compare[kinds[name]]
        return now.answer != before and not (same is not None and same(now.answer, before))

    return [has_changed(name) for name in names]


def why_none(job: Job) -> str:
    """Explain the error, if the reason is that free text cannot be compared."""
    texts = sum(question.answer_kind is AnswerKind.TEXT for question in job.workload.questions)
    if not texts or job.graph.compare[AnswerKind.TEXT] is not None:
        return ""
    return (
        f" ({texts:,} of {len(job.workload.questions):,} ask for free text, which cannot be compared; "
        "aggregator.comparison=module.function names who can)"
    )


def as_dict(audit: SkipAudit) -> dict[str, float | int]:
    """Return the numbers of an audit."""
    return {
        "num_skipped": audit.num_skipped,
        "num_audited": audit.num_audited,
        "num_changed": audit.num_changed,
        "most_changes": audit.bound,
        "most_changes_frac": audit.bound_frac,
        "risk": audit.risk,
    }


def describe(out: Path, num_questions: int, audit: SkipAudit, until_frac: float | None) -> str:
    """Describe what an audit found, its promise and the cost of a tighter one."""
    share = audit.num_changed / audit.num_audited
    lines = [
        f"{out.name}: {audit.num_skipped:,} of {num_questions:,} questions skipped the aggregator",
        f"  audited   {audit.num_audited:,} of them, drawn uniformly",
        f"  changed   {audit.num_changed:,} ({share:.2%}) have another answer when they are aggregated",
        f"  promise   at most {audit.bound:,} of the skipped ({audit.bound_frac:.2%}) would change, "
        f"with {1 - audit.risk:.0%} confidence at whichever moment you stop",
    ]
    target = until_frac if until_frac is not None else audit.bound_frac / 2
    if audit.bound_frac > target:
        number = num_to_reach(audit, target)
        more = "no audit will, if they go on changing so" if number is None else f"about {number:,} audited questions"
        lines.append(f"  for {target:.2%}  {more}: mosaic audit {out} --until {100 * target:.3g}%")
    return "\n".join(lines)


def read_share(text: str) -> float:
    """Read a share: 2% or 0.02.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"--until must be a share such as 2% or 0.02, got {text!r}") from None
    require(0 < value < 1, "--until", "a share between 0 and 1, such as 2%", text)
    return value

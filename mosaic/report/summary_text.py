"""Writes the final screen of a run: at most 24 lines of at most 100 columns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

from mosaic.core.addition import add_in_order
from mosaic.core.results import RunResult, SessionRecord
from mosaic.core.spending import dollars_text
from mosaic.report.metrics import (
    Summary,
    busy_s_by_worker,
    expert_sessions,
    load_s_by_worker,
    makespan_s,
    num_loads,
)

NUM_LINES = 24
NUM_COLUMNS = 100
LABEL_COLUMNS = 12
MAX_LANES = 10
"""Most workers shown, fewer if the other lines leave less room; of a larger cluster the busiest ones."""
LANE_COLUMNS = 32
MIN_WORKER_LINES = 2
MAX_ERROR_LINES = 6
MAX_DISTURBED_LINES = 3


def describe_run(
    summary: Summary,
    result: RunResult,
    folder: str | Path,
    *,
    gate_notes: Sequence[str] = (),
    evidence: Sequence[str] = (),
    errors: Mapping[str, int] | None = None,
) -> str:
    """Describe a finished run.

    Parameters
    ----------
    summary
        The contents of its summary.json.
    result, folder
        The records of the run, and its folder.
    gate_notes
        The gate's promise, and its limits.
    evidence
        The basis of simulated times, one line for each kind of worker.
    errors
        Errors of failed calls on a real backend, with their numbers; records do not contain them.
    """
    result = result.after_pilot()
    above = [_headline(summary), "", *_time_lines(summary), *_disturbed_lines(summary)]
    below = [
        *rows(
            ("idle", _idle_text(summary, result)),
            ("tokens", _tokens_text(summary)),
            ("requests", _requests_text(summary)),
            *(("" if number else "hardware", line) for number, line in enumerate(evidence)),
            ("solver", _solver_text(summary)),
        ),
        *_stage_lines(summary),
        *(line for note in gate_notes for line in _wrapped("", note)),
    ]
    files = [
        "",
        *rows(
            ("folder", f"{folder}"),
            ("", "timeline.png, calls.parquet, summary.json; trace.json opens in https://ui.perfetto.dev"),
            ("compare", f"mosaic compare {Path(folder).parent}"),
        ),
    ]
    if summary["num_failed_calls"]:
        num_left = NUM_LINES - len(above) - len(below) - len(files) - MIN_WORKER_LINES
        below += _failed_lines(summary["num_failed_calls"], errors or {}, num_left)
    below += files
    workers = _worker_lines(result, NUM_LINES - len(above) - len(below))
    return "\n".join(_cut(line) for line in (*above, *workers, *below)) + "\n"


def describe_point(summary: Summary, point: str) -> str:
    """Describe a point of a sweep in a line, under the name that distinguishes it from the other points."""
    made_s, idle, promise = summary["expert_makespan_s"], summary["gpu_idle_frac"], _promise(summary)
    name = "makespan" if summary["skip_frac"] is None else "experts"
    made = "not run" if made_s is None else f"{name} {_seconds(made_s)}"
    text = f"{point}: {made}, predicted {_seconds(summary['predicted_expert_makespan_s'])}"
    text += "" if idle is None else f", idle {idle:.1%}"
    text += f", pilot before {_seconds(summary['pilot']['pilot_s'])}" if summary.get("pilot") else ""
    if summary["skip_frac"] is not None:
        text += f", end to end {_seconds(summary['end_to_end_s'])}, skipped {_skip_text(summary)}"
    if summary["accuracy_frac"] is not None:
        text += f", accuracy {summary['accuracy_frac']:.1%}"
    text += ", promise WITHDRAWN" if promise.get("is_withdrawn") else ""
    text += ", promise BROKEN" if promise.get("is_broken") else ""
    disturbances, num_failed = describe_disturbances(summary), summary["num_failed_calls"]
    text += f", DISTURBED: {disturbances}" if disturbances else ""
    return f"{text}, FAILED: {num_failed:,} calls have no result" if num_failed else text


def _promise(summary: Summary) -> Mapping[str, Any]:
    promise: Mapping[str, Any] = (summary["gate_report"] or {}).get("promise", {})
    return promise


def describe_disturbances(summary: Mapping[str, Any]) -> str:
    """Describe the disturbances of a run, from its summary.json; empty: none, or none recorded by an older version.

    Examples
    --------
    >>> describe_disturbances({"resumptions": [{"ts": 41.2, "pause_s": 60.0}], "lost_workers": []})
    'resumed once (at 41.2 s, after a pause of 60.0 s)'
    """
    resumed, lost = summary.get("resumptions") or (), summary.get("lost_workers") or ()
    parts = [f"resumed {_resumptions(resumed)}"] if resumed else []
    if lost:
        named = ", ".join(f"{loss['worker']} at {loss['ts']:,.1f} s" for loss in lost)
        parts.append(f"lost worker{'s' if len(lost) > 1 else ''} {named}")
    return " and ".join(parts)


def _resumptions(resumed: Sequence[Mapping[str, Any]]) -> str:
    pauses = [one["pause_s"] for one in resumed]
    unknown = any(pause is None for pause in pauses)
    after = "after a pause that is not known" if unknown else f"after a pause of {add_in_order(pauses):,.1f} s"
    if len(resumed) == 1:
        return f"once (at {resumed[0]['ts']:,.1f} s, {after})"
    return f"{len(resumed)} times (the last at {resumed[-1]['ts']:,.1f} s, {after}{'' if unknown else ' in all'})"


def row(label: str, text: str) -> str:
    """Write a line with a label."""
    return f"  {label:<{LABEL_COLUMNS - 2}}{text}".rstrip()


def rows(*pairs: tuple[str, str | None]) -> list[str]:
    """Write rows, label and text, for the known values."""
    return [row(label, text) for label, text in pairs if text is not None]


def _wrapped(label: str, text: str, **options: Any) -> list[str]:
    """Break a text into lines."""
    lines = wrap(text, NUM_COLUMNS - LABEL_COLUMNS, placeholder=" ...", **options)
    return [row("" if number else label, line) for number, line in enumerate(lines)]


def _failed_lines(num_failed: int, errors: Mapping[str, int], num_lines: int) -> list[str]:
    """Count failed calls and give the most common error, in the available lines, but at least one."""
    if not errors:
        return [row("FAILED", f"{num_failed:,} calls have no result: see calls.parquet")]
    commonest = max(errors, key=lambda error: errors[error])
    text = f"{num_failed:,} calls have no result, {errors[commonest]:,} of them: {commonest}"
    # File names have hyphens, and must stay whole to be usable.
    return _wrapped("FAILED", text, max_lines=max(1, min(MAX_ERROR_LINES, num_lines)), break_on_hyphens=False)


def _cut(line: str) -> str:
    """Shorten a line that is too wide, except for paths and commands, which must stay whole to be usable."""
    is_path = line.startswith(("  folder", "  compare"))
    return line if len(line) <= NUM_COLUMNS or is_path else line[: NUM_COLUMNS - 3] + "..."


def _headline(summary: Summary) -> str:
    what = f"{summary['scheduler']} on {summary['workload']}"
    how = f"backend {summary['backend']}, costs {summary['costs']}, seed {summary['seed']}"
    aggregated = summary["num_aggregator_calls"]
    calls = f"{summary['num_calls'] - (aggregated or 0):,}" + ("" if aggregated is None else f" + {aggregated:,}")
    counts = f"{summary['num_questions']:,} questions, {calls} calls, {summary['num_workers']} workers"
    return f"{what}: {counts} ({how})"


def _time_lines(summary: Summary) -> list[str]:
    """Times of the run: the expert stage alone, or end to end and then the expert stage; and the pilot."""
    experts, pilot, before = _expert_times(summary), summary.get("pilot"), None
    if pilot is not None:
        before = (
            f"{_seconds(pilot['pilot_s'])} before, with {pilot['num_calls']:,} of these calls, to plan the others; "
        )
        before += f"{_seconds(pilot['with_pilot_s'])} with it"
    if summary["skip_frac"] is None:
        return rows(("makespan", experts), ("pilot", before))
    stage_s, predicted_s = summary["aggregator_s"], summary["predicted_aggregator_s"]
    text = f"{_seconds(summary['end_to_end_s'])} end to end, of which the aggregator {_seconds(stage_s or 0.0)}"
    text += f" (predicted {_seconds(predicted_s)})" if predicted_s else ""
    return rows(("makespan", text), ("experts", experts), ("pilot", before))


def _disturbed_lines(summary: Summary) -> list[str]:
    """Report that the times above include disturbances."""
    disturbances = describe_disturbances(summary)
    if not disturbances:
        return []
    text = f"{disturbances}: the times include it, and compare.py leaves this run out"
    return _wrapped("DISTURBED", text, max_lines=MAX_DISTURBED_LINES)


def _stage_lines(summary: Summary) -> list[str]:
    """Describe what the gate skipped, the time that it saved and its effect on accuracy."""
    if summary["skip_frac"] is None:
        return rows(("accuracy", _accuracy_text(summary, ", of the experts' majority")))
    by = {"planned": ("aggregator_scheduler", "scheduler"), "priced": ("aggregator_costs", "costs")}
    others = ", ".join(
        f"{verb} by {summary[key]}" for verb, (key, own) in by.items() if summary[key] not in (None, summary[own])
    )
    always_s, saved_s = summary["always_aggregate_s"], summary["aggregator_saved_s"]
    saved = "for a batch of this size summary=full computes it" if summary["backend"] == "sim" else None
    if always_s is not None:
        saved = f"{_seconds(saved_s)} of the {_seconds(always_s)} that aggregating everything takes"
    change_pp = summary["accuracy_change_pp"]
    change = "" if change_pp is None else f", {change_pp:+.2f} pp against aggregating everything"
    return rows(
        ("gate", _gate_text(summary)),
        ("", f"aggregator={summary['aggregator']}: {others}" if others else None),
        ("saved", saved),
        ("accuracy", _accuracy_text(summary, change)),
        ("BROKEN", _broken_text(summary)),
    )


def _gate_text(summary: Summary) -> str:
    text = f"{summary['gate']}: {_skip_text(summary)} skipped"
    if (degree := summary["aggregator_tp_degree"]) is not None:
        num_calls = summary["num_aggregator_calls"]
        what = "questions" if num_calls <= summary["num_questions"] else "calls"
        text += f"; {num_calls:,} {what} to {summary['aggregator_expert']} (tp {degree})"
    return text + (f"; {summary['num_too_long']:,} too long for it" if summary["num_too_long"] else "")


def _broken_text(summary: Summary) -> str | None:
    """Report that the loss of accuracy exceeded the promise, if a simulation knows it."""
    promise = _promise(summary)
    if not promise.get("is_broken"):
        return None
    lost, accepted = (100 * promise[key] for key in ("lost_frac", "accepted_loss_frac"))
    return f"the promise of at most {accepted:.4g} pp: this batch lost {lost:.2f} pp"


def _accuracy_text(summary: Summary, more: str) -> str | None:
    accuracy, source = summary["accuracy_frac"], summary["skip_frac_source"]
    level = "" if source == "measured" else f" (its level is {source})"
    return None if accuracy is None else f"{accuracy:.2%}{level}{more}"


def _skip_text(summary: Summary) -> str:
    """The skipped share, with its source unless it was measured or nothing is skipped."""
    share, source = summary["skip_frac"], summary["skip_frac_source"]
    label = f" ({source})" if share and source != "measured" else ""
    return f"{share:.1%}{label}"


def _expert_times(summary: Summary) -> str:
    made = summary["expert_makespan_s"]
    text = _seconds(made)
    predicted, bound = summary["predicted_expert_makespan_s"], summary["expert_lower_bound_s"]
    if predicted is not None:
        text += f"   predicted {_seconds(predicted)}" + (f" ({_change(predicted, made)})" if made else "")
    if bound is not None:
        text += f"   true lower bound {_seconds(bound)}" + (f" (x {made / bound:.3f})" if made and bound else "")
    return text


def _change(value: float, reference: float) -> str:
    """Describe the difference between a value and its reference."""
    share = value / reference - 1
    return f"{abs(share):.1%} {'less' if share < 0 else 'more'}"


def _seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f} s"


def _worker_lines(result: RunResult, num_lines: int) -> list[str]:
    sessions = expert_sessions(result)
    span_s = makespan_s(sessions)
    if not span_s:
        return [row("workers", "nothing ran")]
    start_ts = min(session.load_start_ts for session in sessions)
    busy_s = busy_s_by_worker(sessions, result.num_workers)
    load_s = load_s_by_worker(sessions, result.num_workers)
    num_lanes = max(1, min(MAX_LANES, num_lines if result.num_workers <= num_lines else num_lines - 1))
    workers = sorted(range(result.num_workers), key=lambda worker: -busy_s[worker])[:num_lanes]
    lines = []
    for worker in sorted(workers):
        own = [session for session in sessions if worker in session.workers]
        lane = _lane(own, start_ts, span_s)
        times = f"busy {busy_s[worker]:>7,.0f} s  load {load_s[worker]:>4,.0f} s"
        lines.append(row(f"worker {worker}", f"|{lane}| {times}  {_experts(own)}"))
    if result.num_workers > num_lanes:
        lines.append(row("", f"and {result.num_workers - num_lanes} workers that were busy for less"))
    return lines


def _lane(sessions: Sequence[SessionRecord], start_ts: float, span_s: float) -> str:
    """Draw a worker's time: ``/`` load, ``#`` generate, ``.`` idle; each column shows its largest part."""
    width_s = span_s / LANE_COLUMNS
    columns = []
    for column in range(LANE_COLUMNS):
        low = start_ts + column * width_s
        load_s = add_in_order(_overlap_s(s.load_start_ts, s.start_ts, low, low + width_s) for s in sessions)
        serve_s = add_in_order(_overlap_s(s.start_ts, s.end_ts, low, low + width_s) for s in sessions)
        shares = (("#", serve_s), ("/", load_s), (".", width_s - serve_s - load_s))
        columns.append(max(shares, key=lambda share: share[1])[0])
    return "".join(columns)


def _overlap_s(start_ts: float, end_ts: float, low: float, high: float) -> float:
    return max(0.0, min(end_ts, high) - max(start_ts, low))


def _experts(sessions: Sequence[SessionRecord]) -> str:
    """List a worker's experts in order; consecutive repeats are counted."""
    runs = [(name, len(list(group))) for name, group in groupby(session.expert for session in sessions)]
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in runs)


def _idle_text(summary: Summary, result: RunResult) -> str:
    """Shares of the expert stage, with its own loads: those of summary.json cover the whole run."""
    idle, load = summary["gpu_idle_frac"], summary["gpu_load_frac"]
    if idle is None:
        return "none"
    num_expert_loads = num_loads(replace(result, sessions=expert_sessions(result)))
    loads = f"loading {load:.1%} in {_loads_text(num_expert_loads, summary['num_loads'])}"
    return f"{idle:.1%} of the workers' time; {loads}   (/ load, # generate, . idle)"


def _loads_text(num_expert_loads: int, num_loads: int) -> str:
    """The expert stage's loads, and the whole run's if it has more."""
    return f"{num_expert_loads} loads" if num_expert_loads == num_loads else f"{num_expert_loads} of {num_loads} loads"


def _tokens_text(summary: Summary) -> str:
    rate = summary["output_tok_per_s"]
    text = f"{summary['output_tokens']:,} written" + ("" if rate is None else f", {rate:,.0f} per second")
    cancelled = f"; {summary['num_cancelled_calls']:,} calls cancelled" if summary["num_cancelled_calls"] else ""
    return f"{text}; {summary['num_preemptions']:,} preemptions{cancelled}"


def _requests_text(summary: Summary) -> str | None:
    """Describe what servers were sent and what it costs; None: nothing is billed."""
    spending = summary.get("spending")
    if not spending:
        return None
    parts = [
        f"{name} {spent['num_requests']:,}" + ("" if spent["dollars"] is None else f" {dollars_text(spent['dollars'])}")
        for name, spent in spending.items()
    ]
    return ", ".join(parts)


def _solver_text(summary: Summary) -> str:
    solve = summary["solve"]
    if solve["bound_s"] is None:
        return f"{solve['status']} (a rule, nothing was solved)" if solve["status"] == "heuristic" else solve["status"]
    gap = "" if solve["gap_frac"] is None else f", gap {solve['gap_frac']:.2%}"
    size = f", {solve['num_vars']} variables, {solve['num_constraints']} constraints" if solve["num_vars"] else ""
    return f"{solve['status']}{gap}, bound of the model {_seconds(solve['bound_s'])}{size}"

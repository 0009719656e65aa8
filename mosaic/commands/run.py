"""Plan a Mixture-of-Agents batch and run the plan.

    mosaic run scheduler=ilp backend=sim
    mosaic run -m hydra/launcher=joblib scheduler=ilp,round_robin seed=0,1,2

Prints one screen and leaves a run folder (docs/how-to/run-folder.md). A point that is already complete
with the same configuration is not run again.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import mosaic
from mosaic.commands.run_folder import leave, summary_of
from mosaic.config.compose import as_recorded
from mosaic.config.errors import (
    BAD_INPUT_STATUS,
    FAILED_CALLS_STATUS,
    exit_with_message,
    explain_error,
    is_bad_input,
    log,
    stoppable,
)
from mosaic.config.job import RunSpec, build_job
from mosaic.config.launch import Point, launch_of
from mosaic.config.run_start import begin, check_start, has_failed_calls, log_notes
from mosaic.core.commands import encode_action
from mosaic.core.safe_text import printable
from mosaic.figures.replay import report_replay
from mosaic.figures.timeline import draw_timeline
from mosaic.planning.explain import explain
from mosaic.report.display import show_stage
from mosaic.report.run_folder import JOURNAL, SUMMARY, completed_with, num_failed_calls
from mosaic.report.summary_text import describe_point, describe_run
from mosaic.runtime.garbage import spare_garbage_collector
from mosaic.runtime.job import Outcome
from mosaic.runtime.promise import gate_notes, promise_of
from mosaic.runtime.replanning import describe_new_plan
from mosaic.runtime.run import failures


@contextmanager
def timed(wall_s_by_step: dict[str, float], name: str) -> Iterator[None]:
    """Record the wall seconds of a step, for meta.json."""
    start = time.perf_counter()
    yield
    wall_s_by_step[name] = round(time.perf_counter() - start, 6)


def run_command() -> None:
    """Run the command line's points; bad input ends with status 2 and a message, calls without a result with 3."""
    with exit_with_message():
        launch = launch_of(sys.argv[1:])
        if launch.sweep_dir is None:
            sys.exit(max(map(run_point, launch.points), default=0))
        sys.exit(run_sweep(launch.points, launch.sweep_dir, launch.side_by_side))


def run_sweep(points: Sequence[Point], sweep_dir: str, side_by_side: Mapping[str, Any] | None) -> int:
    """Run all points, even after failures; returns the exit status of the first failed one.

    Raises
    ------
    Exception
        A mistake of our own, where that came first.
    """
    from joblib import Parallel, delayed

    ended = Parallel(**({"n_jobs": 1} if side_by_side is None else side_by_side))(map(delayed(try_point), points))
    failed: int | Exception | None = next(filter(None, ended), None)
    if isinstance(failed, Exception):
        raise failed
    if failed is not None:
        return failed
    print(f"compare: mosaic compare {sweep_dir}")
    return 0


def try_point(point: Point) -> int | Exception:
    """Run a point of a sweep, and describe errors of its input; returns its exit status, or an internal error."""
    try:
        return run_point(point)
    except Exception as error:
        if not is_bad_input(error):
            return error
        log(printable(f"error: {point.name}: {explain_error(error)}"))
        return BAD_INPUT_STATUS


def run_point(point: Point) -> int:
    """Run a point like `run_resolved`, and return the exit status; an empty folder is removed."""
    spare_garbage_collector()
    point.folder.mkdir(parents=True, exist_ok=True)
    try:
        return FAILED_CALLS_STATUS if run_resolved(point) else 0
    finally:
        with suppress(OSError):  # it is not empty
            point.folder.rmdir()


def run_resolved(point: Point) -> int:
    """Run a point into its folder, unless it is complete; returns the number of calls without a result.

    A point of a sweep prints a line, a single run a screen.
    """
    folder, stamped = point.folder, as_recorded(point.config)
    tries_again = has_failed_calls(folder)
    if not tries_again and completed_with(folder, stamped):
        print(f"already complete with this configuration: {folder}")
        return num_failed_calls(folder)
    wall_s_by_step: dict[str, float] = {}
    step = partial(timed, wall_s_by_step)
    with step("setup"):
        spec = build_job(point.config, folder / JOURNAL, point.overrides)
    job = spec.job
    is_real = spec.runs and job.site.kind != "simulated"
    goes_on = " (goes on with what has finished)" if (folder / JOURNAL).exists() else ""
    if point.also_chosen:
        print(f"also chosen by the files of these groups: {point.also_chosen}\n")
    if point.name is None:
        log_notes(job.workload)
    check_start(job, [folder])
    with job.site.open():
        if not spec.runs:
            explain_only(spec, folder, stamped, wall_s_by_step, point.name)
            return 0
        if is_real:
            begin(folder, stamped)
            log(f"run folder: {folder}{goes_on}")
        with resumable(point) if is_real else nullcontext():
            outcome = mosaic.run(
                job,
                show=partial(show_stage, is_simulated=not is_real),
                on_replan=lambda plan, lost: log(describe_new_plan(plan, lost)),
                step=step,
                log=log if is_real else lambda line: None,
            )
        if tries_again:
            (folder / SUMMARY).unlink(missing_ok=True)
        return finish(spec, stamped, folder, outcome, wall_s_by_step, point.name)


def finish(
    spec: RunSpec,
    stamped: dict[str, Any],
    folder: Path,
    outcome: Outcome,
    wall_s_by_step: dict[str, float],
    point: str | None,
) -> int:
    """Write a run's folder and print its summary; returns the number of its calls without a result."""
    job, result = spec.job, outcome.result
    promise = promise_of(job, spec.calibration, outcome)
    summary = summary_of(spec, stamped, outcome.plans, outcome, promise)
    files: dict[str, bytes] = {}
    if outcome.replans or job.reactions:
        files["actions.jsonl"] = b"".join(encode_action(action) + b"\n" for action in result.actions)
    table, replayed = report_replay(stamped["workload"], result) if spec.report == "replay" else ("", {})
    files |= replayed
    with timed(wall_s_by_step, "draw"):
        files["timeline.png"] = draw_timeline(
            result,
            experts=summary["experts"],
            predicted_makespan_s=summary["predicted_expert_makespan_s"],
            pilot_s=summary.get("pilot", {}).get("end_ts", 0.0),
        )
    leave(folder, spec, stamped, summary, outcome.plans, outcome, wall_s_by_step=wall_s_by_step, files=files)
    if point is not None:
        print(describe_point(summary, point))
        return summary["num_failed_calls"] or 0
    errors, notes = failures(result), gate_notes(job.graph, spec.calibration, promise)
    print(describe_run(summary, result, folder, gate_notes=notes, evidence=job.site.evidence(result), errors=errors))
    if errors:
        print(f"to try failed calls again: the same command with hydra.run.dir={folder}")
    for plan, lost in outcome.replans:
        print(describe_new_plan(plan, lost))
    if table:
        print(table)
    return summary["num_failed_calls"] or 0


def explain_only(
    spec: RunSpec, folder: Path, stamped: dict[str, Any], wall_s_by_step: dict[str, float], point: str | None
) -> None:
    """Plan, and explain the plan."""
    planned = mosaic.plan(spec.job, step=partial(timed, wall_s_by_step))
    summary = summary_of(spec, stamped, [planned.plan])
    leave(folder, spec, stamped, summary, [planned.plan], wall_s_by_step=wall_s_by_step)
    if point is not None:
        print(describe_point(summary, point))
        return
    print(explain(planned.plan, planned.problem))
    print(f"plan: {folder / 'plan.json'} (run it with plan.path={folder / 'plan.json'})")


@contextmanager
def resumable(point: Point) -> Iterator[None]:
    """Describe how to resume a real run that ends early."""
    again = f"the same command with {point.again or f'hydra.run.dir={point.folder}'}"
    try:
        with stoppable(f"To go on: {again}"):
            yield
    except Exception as error:
        if is_bad_input(error) and (point.folder / JOURNAL).exists():
            log(f"what has finished is kept: {again} goes on from there")
        raise

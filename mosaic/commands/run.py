"""Plan a Mixture-of-Agents batch and run the plan.

    mosaic run scheduler=ilp backend=sim
    mosaic run -m hydra/launcher=joblib scheduler=ilp,round_robin seed=0,1,2

Prints one screen and leaves a run folder (experiments/README.md: "The run folder"). A point that is already complete
with the same configuration is not run again.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig

import mosaic
from mosaic.commands.run_folder import leave, summary_of
from mosaic.config.compose import CONF, as_recorded, plain
from mosaic.config.errors import BAD_INPUT, FailedCalls, FailedPoint, exit_with_message, explain_error
from mosaic.config.job import RunSpec, build_job
from mosaic.config.launch import also_chosen, check_sweep, compose_single
from mosaic.config.places import JOURNAL
from mosaic.config.run_start import begin, is_blank
from mosaic.core.checks import require
from mosaic.core.commands import encode_action
from mosaic.core.plan import Plan
from mosaic.core.safe_text import from_file_name, printable
from mosaic.figures.replay import report_replay
from mosaic.figures.timeline import draw_timeline
from mosaic.planning.explain import explain
from mosaic.report.display import show_run
from mosaic.report.metrics import Summary
from mosaic.report.run_folder import SUMMARY, completed_with, describe_run_conditions, is_complete, read_json, write_run
from mosaic.report.run_status import RunStatus
from mosaic.report.summary_text import describe_point, describe_run
from mosaic.runtime.controller import Show
from mosaic.runtime.garbage import spare_garbage_collector
from mosaic.runtime.job import Outcome
from mosaic.runtime.promise import gate_notes, promise_of
from mosaic.runtime.replanning import describe_new_plan
from mosaic.runtime.run import failures


class Stopwatch:
    """Wall seconds of a run's steps, for meta.json."""

    def __init__(self) -> None:
        self.wall_s_by_step: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.wall_s_by_step[name] = round(time.perf_counter() - start, 6)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> None:
    """Run one point of the configuration."""
    run: Any = HydraConfig.get()
    folder, asked = Path(run.runtime.output_dir), tuple(run.overrides.task)
    if run.mode is not RunMode.MULTIRUN:
        with exit_with_message():
            num_failed = run_point(config, folder, overrides=asked, also_chosen=also_chosen(run))
            if num_failed:
                raise FailedCalls(f"{num_failed} calls")
        return
    point = from_file_name(os.path.relpath(folder, run.sweep.dir))
    try:
        check_sweep(config, run)
        again = f"hydra.sweep.dir={run.sweep.dir}"
        num_failed = run_point(config, folder, point=point, overrides=asked, again=again)
    except BAD_INPUT as error:
        print(printable(f"error: {point}: {explain_error(error)}"), file=sys.stderr)
        raise FailedPoint(point) from error
    if num_failed:
        raise FailedCalls(point)


def run_command() -> None:
    """Run what the command line asks for; bad input ends with status 2 and a message, calls without a result with 3."""
    # NOTE: otherwise Hydra prints errors its own way, with tracebacks, and ends the process itself.
    with env_override({"HYDRA_FULL_ERROR": "1"}), exit_with_message():
        rerun = [argument for argument in sys.argv[1:] if argument.startswith("--e")]  # Hydra takes abbreviations too
        require(not rerun, "--experimental-rerun", "left out: it runs whatever code its file names", rerun)
        config = compose_single(sys.argv[1:])
        main() if config is None else main(config)


def run_point(
    config: DictConfig,
    folder: Path,
    *,
    point: str | None = None,
    overrides: Sequence[str] = (),
    again: str | None = None,
    also_chosen: str = "",
) -> int:
    """Run a configuration into a folder, unless that is done already; a folder without a file is not left behind.

    Parameters
    ----------
    config
        What to run.
    folder
        Where the run's files go.
    point
        Its name in a sweep, which prints a line a point; None: a single run, which prints a screen.
    overrides
        What the user asked for.
    again
        The override that sends the same command to the same folder; None: the folder as a single run's.
    also_chosen
        Groups that files of other groups have chosen.

    Returns
    -------
    int
        Calls that have no result.
    """
    spare_garbage_collector()
    try:
        place = again or f"hydra.run.dir={folder}"
        return run_resolved(plain(config), folder, point, overrides, place, also_chosen)
    finally:
        with suppress(OSError):  # it is not empty, or never was made
            folder.rmdir()


def run_resolved(
    config: dict[str, Any],
    folder: Path,
    point: str | None = None,
    overrides: Sequence[str] = (),
    again: str = "",
    also_chosen: str = "",
) -> int:
    """Run a resolved configuration, as `run_point` says."""
    stamped = as_recorded(config)
    tries_again = is_blank(folder) or has_failed_calls(folder)
    if not tries_again and completed_with(folder, stamped):
        print(f"already complete with this configuration: {folder}")
        return read_json(folder / SUMMARY).get("num_failed_calls") or 0
    watch = Stopwatch()
    with watch.step("setup"):
        spec = build_job(config, folder / JOURNAL, overrides)
    job = spec.job
    is_real = spec.runs and job.site.way != "simulated"
    goes_on = " (goes on with what has finished)" if (folder / JOURNAL).exists() else ""
    if also_chosen and point is None:
        print(f"also chosen by the files of these groups: {also_chosen}\n")
    if is_real:
        from mosaic.config.start import check_start  # with engines, which a simulated run does without

        check_start(job, [folder])
    with job.site.open():
        if not spec.runs:
            explain_only(spec, folder, stamped, watch, point)
            return 0
        if is_real:
            begin(folder, stamped)
            print(f"run folder: {folder}{goes_on}", file=sys.stderr)
        with resumable(folder, again) if is_real else nullcontext():
            outcome = mosaic.run(
                job,
                show=displays(is_real),
                on_replan=tell_replan,
                step=watch.step,
                tell=tell_line if is_real else lambda line: None,
            )
        if tries_again:
            (folder / SUMMARY).unlink(missing_ok=True)
        return finish(spec, stamped, folder, outcome, watch, point)


def finish(
    spec: RunSpec,
    stamped: dict[str, Any],
    folder: Path,
    outcome: Outcome,
    watch: Stopwatch,
    point: str | None,
) -> int:
    """Leave a run's folder and print what it did; gives the number of its calls without a result."""
    job, result = spec.job, outcome.result
    promise = promise_of(job, spec.calibration, outcome)
    summary = summary_of(spec, stamped, outcome.plans, outcome, promise)
    files: dict[str, bytes] = {}
    if outcome.replans or job.reactions:
        files["actions.jsonl"] = b"".join(encode_action(action) + b"\n" for action in result.actions)
    replay = report_replay(stamped["workload"], result) if spec.report == "replay" else None
    if replay is not None:
        files |= replay.files
    with watch.step("draw"):
        files["timeline.png"] = draw_timeline(
            result.sessions,
            num_workers=outcome.plans[0].num_workers,
            experts=summary["experts"],
            predicted_makespan_s=summary["predicted_expert_makespan_s"],
            resumptions=result.resumptions,
            lost_workers=result.lost_workers,
            pilot_s=summary.get("pilot", {}).get("end_ts", 0.0),
        )
    leave(folder, spec, stamped, outcome, summary, wall_s_by_step=watch.wall_s_by_step, files=files)
    if point is not None:
        print(describe_point(summary, point))
    else:
        print_screen(outcome, summary, folder, gate_notes(spec.job.graph, spec.calibration, promise))
        if replay is not None:
            print(replay.table)
    return summary["num_failed_calls"] or 0


def print_screen(outcome: Outcome, summary: Summary, folder: Path, notes: Sequence[str]) -> None:
    """Say what a single run did."""
    errors = failures(outcome.result)
    print(describe_run(summary, outcome.result, folder, gate_notes=notes, errors=errors))
    if errors:
        print(f"to try failed calls again: the same command with hydra.run.dir={folder}")
    for plan, lost in outcome.replans:
        print(describe_new_plan(plan, lost))


def explain_only(spec: RunSpec, folder: Path, stamped: dict[str, Any], watch: Stopwatch, point: str | None) -> None:
    """Plan, and say why the plan looks so."""
    planned = mosaic.plan(spec.job, step=watch.step)
    summary = summary_of(spec, stamped, [planned.plan])
    write_run(
        folder,
        config=stamped,
        plans=[planned.plan],
        result=None,
        summary=summary,
        meta=describe_run_conditions(wall_s_by_step=watch.wall_s_by_step, solver_s=planned.plan.solve.wall_s),
        files={},
    )
    if point is not None:
        print(describe_point(summary, point))
        return
    print(explain(planned.plan, planned.problem))
    print(f"plan: {folder / 'plan.json'} (run it with plan.path={folder / 'plan.json'})")


def displays(is_real: bool) -> Show:
    """Show what goes on, on a terminal or in a log."""
    return lambda title, expected: show_run(RunStatus(title, expected, is_simulated=not is_real))


def has_failed_calls(folder: Path) -> bool:
    """Tell whether a real run is complete but for calls that failed, which are then tried again."""
    complete = (folder / JOURNAL).exists() and is_complete(folder)
    return complete and bool(read_json(folder / SUMMARY).get("num_failed_calls"))


def tell_replan(plan: Plan, lost: Mapping[int, str]) -> None:
    """Tell of a new plan while the run goes on."""
    print(describe_new_plan(plan, lost), file=sys.stderr)


def tell_line(line: str) -> None:
    """Tell what comes before the batch of a real run."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def resumable(folder: Path, place: str) -> Iterator[None]:
    """Say how a real run that ends early goes on."""
    again = f"the same command with {place}"
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop or 'stopped'}. To go on: {again}") from None
    except BAD_INPUT:
        if (folder / JOURNAL).exists():
            print(f"what has finished is kept: {again} goes on from there", file=sys.stderr)
        raise

"""Plan a Mixture-of-Agents batch and run the plan.

    python experiments/run.py scheduler=ilp backend=sim
    python experiments/run.py -m hydra/launcher=joblib scheduler=ilp,round_robin seed=0,1,2

Prints one screen and leaves a run folder (README: "The run folder"). A point that is already complete with
the same configuration is not run again.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.figures.replay import report_replay
from experiments.config.complaints import BAD_INPUT, FailedPoint, exit_with_message, explain_error
from experiments.config.execution import Execution, open_execution
from experiments.config.memory import spare_garbage_collector
from experiments.config.second_stage_run import calibration_file, run_second_stage, summarise_stage
from experiments.config.wiring import CONF, Setup, plain, setup_from, with_input_digests
from experiments.figures.timeline import draw_timeline
from mosaic.core.plan import Plan
from mosaic.core.results import RunResult
from mosaic.planning.explain import explain
from mosaic.planning.plan_check import check_plan
from mosaic.planning.plan_file import load_plan
from mosaic.planning.problem import Problem
from mosaic.report.metrics import StageSummary, Summary, summarise
from mosaic.report.provenance import describe_run_conditions
from mosaic.report.run_folder import SUMMARY, begin_run, completed_with, is_complete, read_json, write_run
from mosaic.report.summary_text import describe_point, describe_run
from mosaic.runtime.replanning import Replan, describe_replan, execute_to_end, replans_jsonl
from mosaic.runtime.run import make_problem
from mosaic.runtime.second_stage import SecondStage

JOURNAL = "journal"
"""Folder inside a real run's, with what has finished and the workers' logs."""


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
    run = HydraConfig.get()
    folder = Path(run.runtime.output_dir)
    if run.mode is not RunMode.MULTIRUN:
        with exit_with_message():
            run_point(config, folder)
        return
    point = os.path.relpath(folder, run.sweep.dir)
    try:
        check_launcher(config, run.launcher)
        run_point(config, folder, point=point)
    except BAD_INPUT as error:
        print(f"error: {point}: {explain_error(error)}", file=sys.stderr)
        raise FailedPoint(point) from error


def check_launcher(config: DictConfig, launcher: DictConfig) -> None:
    """Check that points on real engines run in turn: side by side they would time each other.

    Raises
    ------
    ValueError
        If they do not.
    """
    name = config.get("backend", {}).get("name")
    in_turn = str(launcher.get("_target_", "")).endswith("BasicLauncher")
    if name in ("vllm", "endpoint") and not in_turn:
        raise ValueError(f"hydra/launcher must be basic with backend={name}, got {launcher.get('_target_')}")


def run_command() -> None:
    """Run what the command line asks for; bad input ends with status 2 and a message."""
    # NOTE: otherwise Hydra prints errors its own way, with tracebacks, and ends the process itself.
    with env_override({"HYDRA_FULL_ERROR": "1"}), exit_with_message():
        main()


def run_point(config: DictConfig, folder: Path, *, point: str | None = None) -> None:
    """Run a configuration into a folder, unless that is done already; a folder without a file is not left behind."""
    spare_garbage_collector()
    try:
        run_resolved(plain(config), folder, point=point)
    finally:
        with suppress(OSError):  # it is not empty, or never was made
            folder.rmdir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of executing a plan."""

    result: RunResult
    second: SecondStage | None = None
    stage: StageSummary | None = None
    replans: tuple[Replan, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    """What made calls fail, and how many of them."""


def run_resolved(config: dict[str, Any], folder: Path, *, point: str | None) -> None:
    """Run a resolved configuration; a sweep prints a line a point, a single run a screen."""
    stamped = with_input_digests(config)
    tries_again = has_failed_calls(folder)
    if completed_with(folder, stamped) and not tries_again:
        print(f"already complete with this configuration: {folder}")
        return
    watch = Stopwatch()
    with watch.step("setup"):
        setup = setup_from(config)
    if setup.executor is not None:
        begin_run(folder, stamped)
    with resumable(setup, folder, point), open_execution(setup, folder / JOURNAL) as execution:
        with watch.step("profile"):
            profile = execution.profile()
        with watch.step("plan"):
            problem = make_problem(
                setup.workload, experts=setup.experts, cluster=setup.cluster, profile=profile, costs=setup.costs
            )
            plan = obtain_plan(setup, problem, config["plan"].get("path"))
        ran = run_stages(setup, execution, problem, plan, watch) if setup.runs else None
    result = ran.result if ran else None
    second = ran.second if ran else None
    aggregator_plan = second.planned.plan if second and second.planned else None
    summary = summarise(
        plan,
        result,
        workload=setup.workload.name,
        backend=config["backend"]["name"],
        gate=setup.stage.gate.name if setup.stage else None,
        costs=plan.costs,
        seed=setup.seed,
        num_questions=len(setup.workload.questions),
        experts=[expert.name for expert in setup.experts],
        aggregator_plan=aggregator_plan,
        stage=ran.stage if ran else None,
    )
    files = dict(ran.files) if ran else {}
    replay = None
    if result is not None and config["workload"]["_target_"] == "mosaic.workloads.load_request_log":
        replay = report_replay(config["workload"], result)
        files |= replay.files
    with watch.step("draw"):
        files |= draw(summary, plan, result)
    if tries_again:
        (folder / SUMMARY).unlink()
    write_run(
        folder,
        config=stamped,
        plan=plan,
        result=result,
        summary=summary,
        meta=describe_run_conditions(wall_s_by_step=watch.wall_s_by_step, solver_s=plan.solve.wall_s),
        files=files,
        aggregator_plan=aggregator_plan,
        answers=second.answers if second else None,
    )
    if point is not None:
        print(describe_point(summary, point))
        return
    if ran is None:
        print(explain(plan, problem))
        print(f"plan: {folder / 'plan.json'} (run it with plan.path={folder / 'plan.json'})")
        return
    notes = setup.stage.gate.notes() if setup.stage else ()
    print(describe_run(summary, ran.result, folder, gate_notes=notes, errors=ran.errors))
    if ran.errors:
        print(f"to try failed calls again: the same command with hydra.run.dir={folder}")
    for replan in ran.replans:
        print(describe_replan(replan))
    if replay is not None:
        print(replay.table)


def has_failed_calls(folder: Path) -> bool:
    """Tell whether a real run is complete but for calls that failed, which are then tried again."""
    complete = (folder / JOURNAL).exists() and is_complete(folder)
    return complete and bool(read_json(folder / SUMMARY)["num_failed_calls"])


def run_stages(setup: Setup, execution: Execution, problem: Problem, plan: Plan, watch: Stopwatch) -> Ran:
    """Execute the expert stage's plan, and the second stage after it."""
    with watch.step("execute"):
        first = execute_to_end(plan, problem, execution.experts(), setup.scheduler, on_plan=tell_replan)
    result, replans, calls = first.result, first.replans, setup.workload.calls
    second, stage = None, None
    files: dict[str, bytes] = {}
    if setup.stage is not None:
        second = run_second_stage(setup, setup.stage, execution, plan, result, watch.step)
        with watch.step("always_aggregate"):
            always = execution.always_aggregate(setup.stage, result, second)
        stage = summarise_stage(setup.stage, second, always, execution.skip_source)
        files |= calibration_file(setup.stage, second)
        result, calls = second.joined, calls + second.handover.calls
        replans += second.replans
    files |= execution.files(calls)
    if replans:
        files["replans.jsonl"] = replans_jsonl(replans)
    return Ran(result=result, second=second, stage=stage, replans=replans, files=files, errors=execution.errors())


def tell_replan(replan: Replan) -> None:
    """Tell of a new plan while the run goes on."""
    print(describe_replan(replan), file=sys.stderr)


def place_override(folder: Path, point: str | None) -> str:
    """Name the override that sends a command to the same folder again; a sweep's default has the time in it."""
    if point is None:
        return f"hydra.run.dir={folder}"
    return f"hydra.sweep.dir={folder.parents[len(Path(point).parts) - 1]}"


@contextmanager
def resumable(setup: Setup, folder: Path, point: str | None) -> Iterator[None]:
    """Say how a real run that ends early goes on."""
    if setup.executor is None:
        yield
        return
    again = f"the same command with {place_override(folder, point)}"
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop or 'stopped'}. To go on: {again}") from None
    except BAD_INPUT:
        if (folder / JOURNAL).exists():
            print(f"what has finished is kept: {again} goes on from there", file=sys.stderr)
        raise


def obtain_plan(setup: Setup, problem: Problem, path: str | None) -> Plan:
    """Load the saved plan that the configuration names, or make one."""
    plan = setup.scheduler.plan(problem) if path is None else load_plan(path)
    check_plan(plan, problem)
    return plan


def draw(summary: Summary, plan: Plan, result: RunResult | None) -> dict[str, bytes]:
    """Draw the timeline of what ran."""
    if result is None:
        return {}
    timeline = draw_timeline(
        result.sessions,
        num_workers=plan.num_workers,
        experts=summary["experts"],
        predicted_makespan_s=plan.predicted_makespan_s,
    )
    return {"timeline.png": timeline}


if __name__ == "__main__":
    run_command()

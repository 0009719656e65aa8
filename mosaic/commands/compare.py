"""Compare run folders: speedups over a baseline, time against accuracy, and times across numbers of GPUs.

    mosaic compare results/multirun/DIR [--baseline round_robin] [--out DIR]

Runs are paired: a policy is compared with the baseline on the same workload, seed and machines. The speedup is the
ratio of their times (of the expert stage, or with --metric end_to_end_s of both stages). Whatever has no partner, or
did not finish, is listed by name. Runs that were interrupted or lost workers are left out too, unless --disturbed
counts them: their times are not those of their policy alone. If gates or aggregators differ, tradeoff.png and
tradeoff.csv show accuracy against end-to-end time. If a policy was run on several numbers of GPUs, scaling.png and
scaling.csv compare it with itself. A figure without information is not drawn, and a line gives the reason.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from mosaic.comparison.estimate import Estimate
from mosaic.comparison.labels import label_runs
from mosaic.comparison.pairing import METRICS, NEVER, Comparison, Row, compare_runs
from mosaic.comparison.run_points import RunPoint, collect_runs, seen_from_here
from mosaic.comparison.table import describe
from mosaic.core.checks import require
from mosaic.core.safe_text import printable
from mosaic.figures.scaling import draw_scaling
from mosaic.figures.speedups import draw_speedups
from mosaic.figures.tradeoff import draw_tradeoff, tradeoff_rows
from mosaic.report.summary_text import describe_disturbances

OUTCOME_COLUMNS = (
    "skip_frac", "skip_frac_source", "accuracy_frac", "accuracy_low_frac", "accuracy_high_frac",
    "change_pp", "change_low_pp", "change_high_pp", "change_from", "num_changes",
)  # fmt: skip
"""Columns of the second stage. Intervals are 95%, empty for a single seed."""
COLUMNS = (
    "case", "policy", "metric", "num_seeds", "time_s", "time_low_s", "time_high_s", "idle_frac", "num_loads",
    "num_pairs", "speedup", "speedup_low", "speedup_high", *OUTCOME_COLUMNS,
)  # fmt: skip
TRADEOFF_COLUMNS = (
    "case", "policy", "scheduler", "gate", "aggregator", "num_seeds",
    "end_to_end_s", "end_to_end_low_s", "end_to_end_high_s", *OUTCOME_COLUMNS,
)  # fmt: skip
SCALING_COLUMNS = (
    "world", "policy", "num_workers", "num_seeds", "time_s", "time_low_s", "time_high_s",
    "num_pairs", "speedup", "speedup_low", "speedup_high",
)  # fmt: skip


def run_compare(
    folders: Sequence[Path], *, baseline: str | None, metric: str | None, disturbed: bool, out: Path | None
) -> None:
    """Run `mosaic compare`, and print the table."""
    require(metric in (None, *METRICS), "--metric", f"one of {[*METRICS]}", metric)
    runs, skipped = collect_runs(folders, disturbed=disturbed)
    metric = metric or default_metric(runs)
    comparison = compare_runs(runs, baseline=baseline or default_baseline(runs), metric=metric)
    first = folders[0]  # beside a run and not into it: a run folder holds one run
    out = out or (first.parent if (first / "config.yaml").exists() else first)
    out.mkdir(parents=True, exist_ok=True)
    files, refused = draw_all(comparison)
    notes = [*refused, *disturbed_notes(runs), *pilot_notes(runs), *(f"skipped {item}" for item in skipped)]
    text = printable(describe(comparison, notes))
    for name in ("compare.png", "tradeoff.png", "tradeoff.csv", "scaling.png", "scaling.csv"):
        (out / name).unlink(missing_ok=True)  # of an earlier comparison
    for name, content in ({"compare.txt": text.encode()} | files).items():
        (out / name).write_bytes(content)
    print(text)
    print(f"written: {', '.join([str(out / 'compare.txt'), *files])}")


def default_baseline(runs: Sequence[RunPoint]) -> str:
    """Choose the baseline: round robin if it was run, and never skipping if it was run with several gates.

    A sweep without round robin is compared with the first of its schedulers.
    """
    names = sorted({run.scheduler for run in runs})
    scheduler = "round_robin" if "round_robin" in names else names[0]
    own = [
        (run.summary.get("gate") != NEVER, label.policy)
        for label, run in zip(label_runs(runs), runs, strict=True)
        if run.scheduler == scheduler
    ]
    return scheduler if len({policy for _, policy in own}) == 1 else min(own)[1]


def default_metric(runs: Sequence[RunPoint]) -> str:
    """Choose the time to compare: end to end if an aggregator runs, since a gate shortens only its stage."""
    return "end_to_end_s" if any(run.summary.get("aggregator") is not None for run in runs) else "expert_makespan_s"


def disturbed_notes(runs: Sequence[RunPoint]) -> list[str]:
    """Name the runs whose times are not only due to their policy."""
    found = {seen_from_here(run.folder): describe_disturbances(run.summary) for run in runs}
    return [f"disturbed, and left in: {name}: {disturbances}" for name, disturbances in found.items() if disturbances]


def pilot_notes(runs: Sequence[RunPoint]) -> list[str]:
    """Describe what the times of runs leave out if some of their calls were answered before the plan."""
    pilots = [pilot for run in runs if (pilot := run.summary.get("pilot"))]
    if not pilots:
        return []
    times = sorted(pilot["pilot_s"] for pilot in pilots)
    num_calls = sorted(pilot["num_calls"] for pilot in pilots)
    return [
        f"{len(pilots)} of {len(runs)} runs sent {num_calls[0]:,} to {num_calls[-1]:,} of their calls before their "
        f"plan, in a pilot: their times leave it out, {times[0]:,.1f} to {times[-1]:,.1f} s, and are of the other calls"
    ]


def draw_all(comparison: Comparison) -> tuple[dict[str, bytes], list[str]]:
    """Make every table and figure that has information; name the other figures, with the reason."""
    rows = [row | {"metric": comparison.metric} for row in comparison.rows]
    files, refused = {"compare.csv": _csv(rows, COLUMNS)}, []

    def attempt(name: str, draw: Callable[[], bytes]) -> bool:
        try:
            files[name] = draw()
        except ValueError as error:
            refused.append(f"{name} is not drawn: {error}")
        return name in files

    attempt("compare.png", lambda: draw_speedups(comparison))
    if attempt("tradeoff.png", lambda: draw_tradeoff(tradeoff_rows(rows))):
        files["tradeoff.csv"] = _csv(tradeoff_rows(rows), TRADEOFF_COLUMNS)
    if comparison.scaling:
        files["scaling.png"] = draw_scaling(comparison.scaling, comparison.metric)
        files["scaling.csv"] = _csv(comparison.scaling, SCALING_COLUMNS)
    return files, refused


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    import polars as pl

    table = pl.DataFrame([in_columns(row) for row in rows], schema=columns, infer_schema_length=None)
    return table.write_csv().encode()


def in_columns(row: Row) -> Row:
    """Write a mean as its value and the ends of its interval: ``time_s``, ``time_low_s`` and ``time_high_s``."""
    laid_out = dict(row)
    for name, found in row.items():
        if isinstance(found, Estimate):
            stem, _, unit = name.rpartition("_")
            low, high = (f"{stem}_low_{unit}", f"{stem}_high_{unit}") if stem else (f"{name}_low", f"{name}_high")
            laid_out |= {name: found.mean, low: found.low, high: found.high}
    return laid_out

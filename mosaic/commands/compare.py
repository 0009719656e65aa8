"""Compare run folders: speedups over a baseline, time against accuracy, and times across numbers of GPUs.

    mosaic compare results/multirun/DIR [--baseline round_robin] [--out DIR]

Runs are paired: a policy and the baseline meet on the same workload, seed and machines, and the speedup is the ratio
of their times (of the expert stage, or with --metric end_to_end_s of both stages). Whatever has no partner, or did not
finish, is listed by name. Runs that were interrupted or lost workers are left out too, unless --disturbed counts them:
their times are not those of their policy alone. Where gates or aggregators differ, tradeoff.png and tradeoff.csv set
accuracy against end-to-end time; where a policy was run on several numbers of GPUs, scaling.png and scaling.csv compare
it with itself. A figure that would say nothing is not drawn, and a sentence says why.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic.comparison.labels import label_runs
from mosaic.comparison.pairing import ALWAYS, METRICS, NEVER, Comparison, compare_runs, estimate_of
from mosaic.comparison.run_table import RunPoint, collect_runs, seen_from_here
from mosaic.core.checks import require
from mosaic.core.printable import printable
from mosaic.figures.scaling import draw_scaling
from mosaic.figures.speedups import draw_speedups
from mosaic.figures.tradeoff import draw_tradeoff, tradeoff_rows
from mosaic.report.disturbances import describe_disturbances

if TYPE_CHECKING:
    import polars as pl

OUTCOME_COLUMNS = (
    "skip_frac", "skip_frac_source", "accuracy_frac", "accuracy_low_frac", "accuracy_high_frac",
    "change_pp", "change_low_pp", "change_high_pp", "change_from", "num_changes",
)  # fmt: skip
"""What the second stage did. Intervals are 95%, empty for a single seed."""
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
CHANGE_NOTES = {
    NEVER: "change: accuracy in percentage points, less that of gate=never with the same scheduler and seed",
    ALWAYS: "*change: accuracy in percentage points, less that of the same run had it never skipped",
}
Cells = Sequence[Sequence[str]]


def compare(
    folders: Sequence[Path],
    baseline: str | None = None,
    metric: str | None = None,
    *,
    disturbed: bool = False,
    out: Path | None = None,
) -> None:
    """Compare the runs below some folders, print the table and write it with its figures.

    Parameters
    ----------
    folders
        Of sweeps or runs, searched for runs.
    baseline
        Scheduler, or full policy name as the table has it; None: see `default_baseline`.
    metric
        A key of METRICS; None: see `default_metric`.
    disturbed
        Count runs that were interrupted or lost workers too.
    out
        Where the files go; None: the first folder.

    Raises
    ------
    ValueError, MosaicError, OSError
        If there is nothing to compare, or a file cannot be written.
    """
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
    """Choose what to compare with: round robin where it was run, never skipping where it was run with several gates.

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
    """Choose the time to compare: end to end where an aggregator runs, which is all that a gate can shorten."""
    return "end_to_end_s" if any(run.summary.get("aggregator") is not None for run in runs) else "expert_makespan_s"


def disturbed_notes(runs: Sequence[RunPoint]) -> list[str]:
    """Name the runs whose times are not those of their policy alone."""
    told = {seen_from_here(run.folder): describe_disturbances(run.summary) for run in runs}
    return [f"disturbed, and left in: {name}: {disturbances}" for name, disturbances in told.items() if disturbances]


def pilot_notes(runs: Sequence[RunPoint]) -> list[str]:
    """Say what the times of runs leave out that asked some of their calls before they planned the others."""
    pilots = [pilot for run in runs if (pilot := run.summary.get("pilot"))]
    if not pilots:
        return []
    times = sorted(pilot["pilot_s"] for pilot in pilots)
    num_calls = sorted(pilot["num_calls"] for pilot in pilots)
    return [
        f"{len(pilots)} of {len(runs)} runs asked {num_calls[0]:,} to {num_calls[-1]:,} of their calls before their "
        f"plan, in a pilot: their times leave it out, {times[0]:,.1f} to {times[-1]:,.1f} s, and are of the other calls"
    ]


def draw_all(comparison: Comparison) -> tuple[dict[str, bytes], list[str]]:
    """Make every table and figure that says something; name the figures that would not, and why."""
    import polars as pl

    rows = comparison.rows.with_columns(metric=pl.lit(comparison.metric))
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
    if len(comparison.scaling):
        files["scaling.png"] = draw_scaling(comparison.scaling, comparison.metric)
        files["scaling.csv"] = _csv(comparison.scaling, SCALING_COLUMNS)
    return files, refused


def _csv(table: "pl.DataFrame", columns: Sequence[str]) -> bytes:
    return table.select(columns).write_csv().encode()


def describe(comparison: Comparison, notes: Sequence[str] = ()) -> str:
    """Write the tables as text, and below them whatever is not in them."""
    rows, time = comparison.rows, f"{METRICS[comparison.metric]} (s)"
    lines = [f"speedup over {comparison.baseline}, {METRICS[comparison.metric]}: geometric mean over seeds"]
    lines += ["[95% interval], with two seeds (both values); idle: of the expert stage, loads: of all stages"]
    head = ["policy", "seeds", time, "idle", "loads", "skip", "accuracy", "change", "speedup"]
    body = [_cells(row) for row in rows.to_dicts()]
    kept = [i for i in range(len(head)) if head[i] not in ("skip", "accuracy", "change") or _any(body, (5, 6, 7))]
    lines += _blocks(rows["case"].to_list(), [head, *body], kept)
    if len(comparison.scaling):
        lines += ["", "Across numbers of GPUs: each policy over itself on the fewest"]
        table = [["policy", "GPUs", "seeds", time, "speedup"], *map(_scaling_cells, comparison.scaling.to_dicts())]
        lines += _blocks(comparison.scaling["world"].to_list(), table, range(5))
    references = set(rows["change_from"])
    ends = [note for reference, note in CHANGE_NOTES.items() if reference in references]
    ends += [*comparison.notes, *notes]
    return "\n".join([*lines, *([""] if ends else []), *ends]) + "\n"


def _any(body: Cells, places: Sequence[int]) -> bool:
    return any(row[place] != "-" for row in body for place in places)


def _blocks(cases: Sequence[str], table: Cells, kept: Sequence[int]) -> list[str]:
    """Lay out a table in blocks of one case, all with equal columns; the first column is set left."""
    widths = [max(len(row[place]) for row in table) for place in kept]
    texts = [
        "  " + "  ".join(
            row[place].rjust(width) if place else row[place].ljust(width)
            for place, width in zip(kept, widths, strict=True)
        ).rstrip()
        for row in table
    ]  # fmt: skip
    lines: list[str] = []
    for case in dict.fromkeys(cases):
        own = [text for other, text in zip(cases, texts[1:], strict=True) if other == case]
        lines += ["", case, texts[0], *own]
    return lines


def _cells(row: dict[str, Any]) -> list[str]:
    skip = _show(row["skip_frac"], ".1%") + (f" {row['skip_frac_source']}" if row["skip_frac_source"] else "")
    speedup = _with_spread(row, "speedup", row["ratios"], ".3f")
    if row["is_baseline"]:
        speedup = _show(row["speedup"], ".3f")
    elif row["speedup"] is not None and row["num_pairs"] < row["num_seeds"]:
        speedup += f" from {_pairs(row['num_pairs'])}"
    change = _with_spread(row, "change_pp", row["changes_pp"], "+.2f", "*" if row["change_from"] == ALWAYS else "")
    if row["change_pp"] is not None and row["num_changes"] < row["num_known"]:
        change += f" from {_pairs(row['num_changes'])}"
    return [
        row["policy"], str(row["num_seeds"]), _with_spread(row, "time_s", row["times_s"], ",.1f"),
        _show(row["idle_frac"], ".1%"), _show(row["num_loads"], ".1f"), skip, _show(row["accuracy_frac"], ".2%"),
        change, speedup,
    ]  # fmt: skip


def _scaling_cells(row: dict[str, Any]) -> list[str]:
    time, speedup = (_with_spread(row, name, [], form) for name, form in (("time_s", ",.1f"), ("speedup", ".2f")))
    return [row["policy"], str(row["num_workers"]), str(row["num_seeds"]), time, speedup]


def _with_spread(row: dict[str, Any], name: str, values: Sequence[float], form: str, mark: str = "") -> str:
    """Write a mean with its interval; of two values both, since their interval says nothing."""
    if row[name] is None:
        return "-"
    least = 0.0 if name == "time_s" else -100.0
    ends = estimate_of(row, name).shown(least)
    text = f"{row[name]:{form}}{mark}"
    if ends is not None:
        return f"{text} [{ends[0]:{form}}, {ends[1]:{form}}]"
    return f"{text} ({min(values):{form}}, {max(values):{form}})" if len(values) == 2 else text


def _pairs(number: int) -> str:
    return f"{number} pair{'' if number == 1 else 's'}"


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"

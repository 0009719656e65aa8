"""Compare run folders: speedups over a baseline, and time against accuracy, with intervals over seeds.

    python experiments/compare.py results/multirun/DIR [--baseline round_robin] [--out DIR]

Runs are paired: a policy and the baseline meet on the same workload, seed and machines, and the speedup
is the ratio of their makespans. Whatever has no partner, or did not finish, is listed by name. Where runs
know their accuracy, tradeoff.png and tradeoff.csv set it against their end-to-end time.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.analysis.labels import label_policies
from experiments.analysis.pairing import METRICS, Comparison, Row, compare_runs
from experiments.analysis.run_points import RunPoint, collect_runs
from experiments.analysis.tradeoff_points import ALWAYS, NEVER, Outcome, can_be_drawn, measure_outcomes
from experiments.figures.speedups import draw_speedups
from experiments.figures.tradeoff import draw_tradeoff
from mosaic.core.errors import MosaicError

COLUMNS = (
    "case", "policy", "num_seeds", "makespan_s", "makespan_low_s", "makespan_high_s", "idle_frac", "num_loads",
    "num_pairs", "speedup", "speedup_low", "speedup_high",
)  # fmt: skip
"""Of compare.csv, from the expert stage on. Intervals are 95%, empty for a single seed."""
OUTCOME_COLUMNS = (
    "skip_frac", "skip_frac_source", "accuracy_frac", "accuracy_low_frac", "accuracy_high_frac",
    "change_pp", "change_low_pp", "change_high_pp", "change_from", "num_changes",
)  # fmt: skip
"""Behind them, and in tradeoff.csv: what the second stage did."""
TRADEOFF_COLUMNS = (
    "case", "policy", "scheduler", "gate", "aggregator", "num_seeds",
    "end_to_end_s", "end_to_end_low_s", "end_to_end_high_s",
)  # fmt: skip
CHANGE_NOTES = {
    NEVER: "change: accuracy in percentage points, less that of gate=never with the same scheduler and seed",
    ALWAYS: "*change: accuracy in percentage points, less that of the same run had it never skipped",
}

NONE = (None, None, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs that the command line names; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        runs, skipped = collect_runs(options.folders)
        comparison = compare_runs(runs, baseline=options.baseline or default_baseline(runs), metric=options.metric)
        outcomes = measure_outcomes(comparison.rows)
        text = describe(comparison, outcomes, skipped)
        out = options.out or _default_out(options.folders[0])
        out.mkdir(parents=True, exist_ok=True)
        (out / "compare.txt").write_text(text, encoding="utf-8")
        (out / "compare.csv").write_text(to_csv(comparison.rows, outcomes), encoding="utf-8", newline="")
        (out / "compare.png").write_bytes(draw_speedups(comparison))
        if shown := can_be_drawn(outcomes):
            (out / "tradeoff.csv").write_text(tradeoff_csv(shown), encoding="utf-8", newline="")
            (out / "tradeoff.png").write_bytes(draw_tradeoff(shown))
    except (MosaicError, ValueError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename}: cannot be written ({error.strerror})")
    print(text)
    print(
        f"written: {out / 'compare.txt'}, compare.csv, compare.png" + (", tradeoff.csv, tradeoff.png" if shown else "")
    )
    return 0


def default_baseline(runs: Sequence[RunPoint]) -> str:
    """Choose what to compare with: round robin where it was run, never skipping where it was run with several gates.

    A sweep without round robin is compared with the first of its schedulers.
    """
    names = sorted({run.scheduler for run in runs})
    scheduler = "round_robin" if "round_robin" in names else names[0]
    own = [(label, run) for label, run in zip(label_policies(runs), runs, strict=True) if run.scheduler == scheduler]
    if len({label for label, _ in own}) == 1:
        return scheduler
    return min(own, key=lambda pair: (pair[1].summary.get("gate") != NEVER, pair[0]))[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description="Compare run folders, paired by seed.")
    parser.add_argument("folders", type=Path, nargs="+", help="multirun folders or run folders, searched for runs")
    parser.add_argument(
        "--baseline",
        help="scheduler, or full policy name as the table has it "
        "(default: round_robin where it was run, with gate=never where gates differ)",
    )
    parser.add_argument(
        "--metric", choices=METRICS, default=METRICS[0], help="makespan to compare (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="where compare.* go (default: the first folder)")
    return parser


def _default_out(folder: Path) -> Path:
    """Write beside a run and not into it: a run folder holds one run."""
    return folder.parent if (folder / "config.yaml").exists() else folder


def describe(comparison: Comparison, outcomes: Sequence[Outcome], skipped: Sequence[str]) -> str:
    """Write the table as text, and below it whatever is not in it."""
    width = max(len("policy"), *(len(row.policy) for row in comparison.rows))
    ends = _outcome_cells(outcomes)
    head = f"{'policy':<{width}}  {'seeds':>5}  {'makespan (s)':>22}  {'idle':>6}  {'loads':>5}  {ends[0]}speedup"
    lines = [f"speedup over {comparison.baseline} by {comparison.metric}; geometric mean and 95% interval over seeds"]
    cells = list(zip(comparison.rows, ends[1:], strict=True))
    for case in dict.fromkeys(row.case for row in comparison.rows):
        lines += ["", case, f"  {head}"]
        lines += [f"  {_line(row, width, cell)}" for row, cell in cells if row.case == case]
    references = {outcome.change_from for outcome in outcomes}
    notes = [note for reference, note in CHANGE_NOTES.items() if reference in references]
    notes += [*comparison.notes, *(f"skipped {item}" for item in skipped)]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _line(row: Row, width: int, outcome: str) -> str:
    spread = "" if row.makespan_low_s is None else f" +- {(row.makespan_high_s - row.makespan_low_s) / 2:,.1f}"
    idle = "-" if row.idle_frac is None else f"{row.idle_frac:.1%}"
    loads = "-" if row.num_loads is None else f"{row.num_loads:.1f}"
    speedup = "-" if row.speedup is None else f"{row.speedup:.3f}"
    if row.speedup_low is not None:
        speedup += f" [{row.speedup_low:.3f}, {row.speedup_high:.3f}]"
    if row.speedup is not None and row.num_pairs < row.num_seeds:
        speedup += f" from {row.num_pairs} pairs"
    makespan = f"{row.makespan_s:,.1f}{spread}"
    return f"{row.policy:<{width}}  {row.num_seeds:>5}  {makespan:>22}  {idle:>6}  {loads:>5}  {outcome}{speedup}"


def _outcome_cells(outcomes: Sequence[Outcome]) -> list[str]:
    """Write the columns of skips and accuracy, the head first; empty where no run has a second stage."""
    table = [("skip", "accuracy", "change"), *(_outcome_words(outcome) for outcome in outcomes)]
    if all(words == ("-", "-", "-") for words in table[1:]):
        return [""] * len(table)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["".join(f"{word:>{width}}  " for word, width in zip(words, widths, strict=True)) for words in table]


def _outcome_words(outcome: Outcome) -> tuple[str, str, str]:
    skip = "-" if outcome.skip_frac is None else f"{outcome.skip_frac:.1%}"
    if outcome.skip_frac_source is not None:
        skip += f" {outcome.skip_frac_source}"
    accuracy = "-" if outcome.accuracy_frac is None else f"{outcome.accuracy_frac.mean:.2%}"
    if outcome.change_pp is None:
        return skip, accuracy, "-"
    change = f"{outcome.change_pp.mean:+.2f}" + ("*" if outcome.change_from == ALWAYS else "")
    if outcome.change_pp.low is not None:
        change += f" [{outcome.change_pp.low:+.2f}, {outcome.change_pp.high:+.2f}]"
    if outcome.num_changes < outcome.num_seeds:
        change += f" from {outcome.num_changes} pairs"
    return skip, accuracy, change


def to_csv(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> str:
    """Write the table as CSV; missing is empty."""
    return _csv(
        (*COLUMNS, *OUTCOME_COLUMNS),
        [
            [*(getattr(row, column) for column in COLUMNS), *_outcome_values(outcome)]
            for row, outcome in zip(rows, outcomes, strict=True)
        ],
    )


def tradeoff_csv(outcomes: Sequence[Outcome]) -> str:
    """Write what tradeoff.png shows as CSV; missing is empty."""
    names = TRADEOFF_COLUMNS[:-3]
    lines = [
        [*(getattr(outcome, name) for name in names), *(outcome.end_to_end_s or NONE), *_outcome_values(outcome)]
        for outcome in outcomes
    ]
    return _csv((*TRADEOFF_COLUMNS, *OUTCOME_COLUMNS), lines)


def _outcome_values(outcome: Outcome) -> list[object]:
    return [
        outcome.skip_frac, outcome.skip_frac_source, *(outcome.accuracy_frac or NONE), *(outcome.change_pp or NONE),
        outcome.change_from, outcome.num_changes,
    ]  # fmt: skip


def _csv(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in line] for line in lines)
    return text.getvalue()


def _complain(message: str) -> int:
    print(f"compare: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

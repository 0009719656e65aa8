"""Compare run folders: a table and a figure of speedups over a baseline, with intervals over seeds.

    python experiments/compare.py results/multirun/DIR [--baseline round_robin] [--out DIR]

Runs are paired: a policy and the baseline meet on the same workload, seed and machines, and the speedup
is the ratio of their makespans. Whatever has no partner, or did not finish, is listed by name.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.figures.speedups import draw_speedups
from experiments.pairing import METRICS, Comparison, Row, compare_runs
from experiments.run_points import collect_runs
from mosaic.errors import MosaicError

COLUMNS = (
    "case", "policy", "num_seeds", "makespan_s", "makespan_low_s", "makespan_high_s", "idle_frac", "num_loads",
    "num_pairs", "speedup", "speedup_low", "speedup_high",
)  # fmt: skip
"""Of compare.csv. Intervals are 95%, empty for a single seed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the runs that the command line names; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        runs, skipped = collect_runs(options.folders)
        comparison = compare_runs(runs, baseline=options.baseline, metric=options.metric)
        text = describe(comparison, skipped)
        out = options.out or _default_out(options.folders[0])
        out.mkdir(parents=True, exist_ok=True)
        (out / "compare.txt").write_text(text, encoding="utf-8")
        (out / "compare.csv").write_text(to_csv(comparison.rows), encoding="utf-8", newline="")
        (out / "compare.png").write_bytes(draw_speedups(comparison))
    except (MosaicError, ValueError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename}: cannot be written ({error.strerror})")
    print(text)
    print(f"written: {out / 'compare.txt'}, compare.csv, compare.png")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description="Compare run folders, paired by seed.")
    parser.add_argument("folders", type=Path, nargs="+", help="multirun folders or run folders, searched for runs")
    parser.add_argument(
        "--baseline", default="round_robin", help="scheduler, or full policy name (default: %(default)s)"
    )
    parser.add_argument(
        "--metric", choices=METRICS, default=METRICS[0], help="makespan to compare (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="where compare.* go (default: the first folder)")
    return parser


def _default_out(folder: Path) -> Path:
    """Write beside a run and not into it: a run folder holds one run."""
    return folder.parent if (folder / "config.yaml").exists() else folder


def describe(comparison: Comparison, skipped: Sequence[str]) -> str:
    """Write the table as text, and below it whatever is not in it."""
    rows = comparison.rows
    policy_width = max(len("policy"), *(len(row.policy) for row in rows))
    head = f"{'policy':<{policy_width}}  {'seeds':>5}  {'makespan (s)':>22}  {'idle':>6}  {'loads':>5}  speedup"
    lines = [f"speedup over {comparison.baseline} by {comparison.metric}; geometric mean and 95% interval over seeds"]
    for case in dict.fromkeys(row.case for row in rows):
        lines += ["", case, f"  {head}"]
        lines += [f"  {_line(row, policy_width)}" for row in rows if row.case == case]
    notes = [*comparison.notes, *(f"skipped {item}" for item in skipped)]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _line(row: Row, width: int) -> str:
    spread = "" if row.makespan_low_s is None else f" +- {(row.makespan_high_s - row.makespan_low_s) / 2:,.1f}"
    idle = "-" if row.idle_frac is None else f"{row.idle_frac:.1%}"
    loads = "-" if row.num_loads is None else f"{row.num_loads:.1f}"
    speedup = "-" if row.speedup is None else f"{row.speedup:.3f}"
    if row.speedup_low is not None:
        speedup += f" [{row.speedup_low:.3f}, {row.speedup_high:.3f}]"
    if row.speedup is not None and row.num_pairs < row.num_seeds:
        speedup += f" from {row.num_pairs} pairs"
    makespan = f"{row.makespan_s:,.1f}{spread}"
    return f"{row.policy:<{width}}  {row.num_seeds:>5}  {makespan:>22}  {idle:>6}  {loads:>5}  {speedup}"


def to_csv(rows: Sequence[Row]) -> str:
    """Write the table as CSV; missing is empty."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(["" if (value := getattr(row, column)) is None else value for column in COLUMNS])
    return text.getvalue()


def _complain(message: str) -> int:
    print(f"compare: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""Reproduce the paper: every figure and table from the simulator, each number beside the published one.

    python experiments/paper.py                        into results/multirun/paper
    python experiments/paper.py --out results/paper    makes the committed files anew

Runs what is not complete yet into OUT/runs (started again, it goes on where it was), then draws the figures (PNG, PDF,
the data behind each as CSV) and writes report.md: misses first, then every number with its error, what was fitted and
what was predicted. Takes about 7 minutes on 2 cores; --seeds 1 takes two minutes and has no intervals.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.studies.calibration import committed_ranges  # noqa: E402
from experiments.studies.paper_figures import Drawing, draw_all  # noqa: E402
from experiments.studies.paper_report import describe, errors_csv, misses, write_report  # noqa: E402
from experiments.studies.paper_rows import FAR_FRAC, Row, measure_rows  # noqa: E402
from experiments.studies.paper_runs import PaperRuns, paper_points, run_all  # noqa: E402
from experiments.studies.paper_stage import ability_table, open_ranges, spread_table, tail_table  # noqa: E402
from experiments.studies.paper_tables import (  # noqa: E402
    OpenRange,
    accuracy_table,
    pool_table,
    read_csv,
    short_table,
    slots_table,
    to_csv,
    to_markdown,
    walls_table,
)
from mosaic.config.errors import exit_with_message  # noqa: E402
from mosaic.config.places import own_folder  # noqa: E402
from mosaic.core.checks import require_count  # noqa: E402
from mosaic.figures.style import pdf_bytes, png_bytes  # noqa: E402

CALIBRATION = ROOT / "results" / "calibration"
"""What the studies calibration and answers found, and what each change of the engine model did."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, measure, draw and write."""
    parser = argparse.ArgumentParser(prog="paper", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16, help="worlds per point (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=own_folder("paper"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    require_count(options.seeds, "--seeds", at_least=1)
    start = time.perf_counter()
    runs = run_all(paper_points(options.seeds), options.out / "runs")
    rows = measure_rows(runs)
    drawings = draw_all(runs)
    files = paper_files(runs, rows, drawings)
    for name, content in files.items():
        (options.out / name).write_bytes(content)
    print(on_screen(rows, options.seeds))
    print(f"written: {options.out / 'report.md'} and {len(files) - 1} files beside it, ", end="")
    print(f"in {time.perf_counter() - start:,.0f} s")


def ranges_left_open() -> dict[str, dict[str, OpenRange]]:
    """Read the stages' walls over every parameter set that matches round robin's, by benchmark and stage."""
    found: dict[str, dict[str, OpenRange]] = {}
    for row in committed_ranges():
        found.setdefault(row["workload"], {})[row["stage"]] = OpenRange(row["low_s"], row["high_s"], row["mean"].mean)
    return found


def paper_files(runs: PaperRuns, rows: Sequence[Row], drawings: Mapping[str, Drawing]) -> dict[str, bytes]:
    """Render every file of the reproduction."""
    ranges = ranges_left_open()
    tables = {
        "open_ranges": open_ranges(rows, runs, ranges),
        "spread": spread_table(runs),
        "model_ablation": read_csv(CALIBRATION / "model_ablation.csv"),
        "aggregator_tail": tail_table(runs),
        "abilities": ability_table(CALIBRATION / "answers.csv"),
        "table1_accuracy": accuracy_table(rows),
        "table3_slots": slots_table(runs),
        "table4_walls": walls_table(runs),
        "pools": pool_table(runs),
    }
    text = {
        "report.md": write_report(rows, tables, drawings, ranges),
        "errors.csv": errors_csv(rows),
        "errors_short.md": to_markdown(short_table(rows)),
    }
    text |= {f"{name}.csv": to_csv(table) for name, table in tables.items()}
    for name, drawing in drawings.items():
        text |= {f"{part}.csv": to_csv(data) for part, data in {name: drawing.rows, **drawing.further}.items()}
    files = {name: content.encode() for name, content in text.items()}
    for name, drawing in drawings.items():
        files |= {f"{name}.png": png_bytes(drawing.figure), f"{name}.pdf": pdf_bytes(drawing.figure)}
    return files


def on_screen(rows: Sequence[Row], num_seeds: int) -> str:
    """One screen: what was missed, and how many of the numbers were not."""
    if num_seeds == 1:
        far = sum(row.is_far for row in rows)
        return f"{len(rows)} published numbers, one seed and so no interval: {far} off by more than {FAR_FRAC:.0%}"
    missed = misses(rows)
    lines = [f"{len(rows)} published numbers, {num_seeds} seeds, {len(missed)} outside of what the simulator says"]
    lines += [f"  MISS  {line}" for line in map(describe, missed)]
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_with_message():
        main()

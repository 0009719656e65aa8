"""Trees of agents on few GPUs: what they save of all-to-all step by step, and how their layers should follow.

    python experiments/trees.py                      into results/multirun/trees
    python experiments/trees.py --out results/trees  makes the committed files anew

Writes runs.csv (a row a run; those that are there are not made again), trees.md and trees.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.config.errors import exit_with_message
from experiments.config.places import own_folder
from experiments.figures.saved import draw_saved
from experiments.figures.style import png_bytes
from experiments.studies.rows import read_rows, rows_csv
from experiments.studies.tree_report import bars, report
from experiments.studies.tree_runs import STAGES, Row, points, run_point

COMMAND = "python experiments/trees.py --out results/trees"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the report."""
    options = _parser().parse_args(arguments)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    table = out / "runs.csv"
    rows = read_rows(table, Row)
    done = {(row.point, row.seed) for row in rows}
    for point in points([int(number) for number in options.gpus.split(",")]):
        left = [seed for seed in range(options.seeds) if (point, seed) not in done]
        rows += run_point(point, left)
        if left:
            table.write_text(rows_csv(Row, rows), encoding="utf-8")
            print(f"{point.kind}: {point.name}, {point.num_gpus} GPUs, prefix sharing {point.shares}", flush=True)
    (out / "trees.md").write_text(report(rows, COMMAND), encoding="utf-8")
    (out / "trees.png").write_bytes(
        png_bytes(draw_saved(bars(rows), [name for name in STAGES if name != "all to all"]))
    )
    print(out / "trees.md")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trees", description="Time trees of agents on few GPUs.")
    parser.add_argument("--seeds", type=int, default=10, help="paired, of each point (default: %(default)s)")
    parser.add_argument("--gpus", default="1,2,4,6", help="numbers of GPUs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=own_folder("trees"), help="folder (default: %(default)s)")
    return parser


if __name__ == "__main__":
    with exit_with_message():
        main()

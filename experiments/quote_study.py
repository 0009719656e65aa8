"""Quote batches whose truth is known, and see how far quotes are off and what calibrates them.

    python experiments/quote_study.py --measured 8 --out results/quote  # 52 seeds of five workloads, and the tiny pool
    python experiments/quote_study.py --gpus 1,2,4,8 --per-expert 64,128  # more sizes, into results/multirun
    python experiments/quote_study.py --again --out results/quote  # the report and the figure, from pilots.csv

Writes pilots.csv (a row a pilot and number of GPUs; those that are there are not made again), report.md and quotes.png.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.figures.quotes import Quoted, draw_quotes
from experiments.studies.quote_pilots import POOLS, Row, measured_row, simulated_rows
from experiments.studies.quote_report import quoted_p90_s, report, split_seeds
from experiments.studies.rows import read_rows, rows_csv
from mosaic.commands.quote import parse_sizes
from mosaic.config.errors import exit_with_message
from mosaic.config.places import own_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study."""
    options = _parser().parse_args(arguments)
    out = options.out or own_folder("quote_study")
    out.mkdir(parents=True, exist_ok=True)
    table = out / "pilots.csv"
    rows = read_rows(table, Row)
    for made in [] if options.again else _missing(rows, options):
        rows += made
        table.write_text(rows_csv(Row, rows), encoding="utf-8")
        print(f"{made[0].workload} seed {made[0].seed}, {made[0].per_expert} calls an expert", flush=True)
    (out / "report.md").write_text(
        report(rows, "python experiments/quote_study.py --measured 8 --out results/quote"), "utf-8"
    )
    early, late = split_seeds(rows, max(row.per_expert for row in rows))
    if early and late:
        pilots = [Quoted(row.workload, row.central_s, quoted_p90_s(row, early), row.truth_s) for row in late]
        (out / "quotes.png").write_bytes(draw_quotes(pilots))
    print(out / "report.md")


def _missing(rows: Sequence[Row], options: argparse.Namespace) -> Iterator[list[Row]]:
    done = {(row.workload, row.seed, row.per_expert) for row in rows}
    numbers = [int(number) for number in options.per_expert.split(",")]
    for seed in range(options.seeds):
        for per_expert in numbers:
            for workload in POOLS:
                if (workload, seed, per_expert) not in done:
                    yield list(simulated_rows(workload, seed, per_expert, parse_sizes(options.gpus)))
    for seed in range(options.measured):
        if ("tiny_mcq", seed, numbers[0]) not in done:
            yield [measured_row(seed, numbers[0], own_folder("quote_study") / f"tiny_{seed}")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quote_study", description="Quote batches whose truth is known.")
    parser.add_argument("--seeds", type=int, default=52, help="of each simulated workload (default: %(default)s)")
    parser.add_argument("--gpus", default="4", help="numbers of GPUs, as 1,2,4,8 (default: %(default)s)")
    parser.add_argument("--per-expert", default="128", help="sizes of pilots, as 64,128 (default: %(default)s)")
    parser.add_argument("--measured", type=int, default=0, help="pilots of the tiny pool on real vLLM")
    parser.add_argument("--again", action="store_true", help="only write the report and the figure again")
    parser.add_argument("--out", type=Path, help="folder (default: results/multirun/quote_study)")
    return parser


if __name__ == "__main__":
    with exit_with_message():
        main()

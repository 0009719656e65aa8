"""What prefill ahead of time earns, where it pays, and where it only moves work.

    python experiments/prefill_ahead.py simulate  one layer alone, by load, and in batches: three tables
    python experiments/prefill_ahead.py real      time to the first token on real vLLM, on two cores: real.json
    python experiments/prefill_ahead.py report    prefill_ahead.md and the figure, of what is there

All write into results/multirun/prefill_ahead unless --out names a folder; the first two report too. ``simulate`` takes
3 minutes, ``real`` 8.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.studies.rows import rows_csv  # noqa: E402
from mosaic.config.places import own_folder, write_file  # noqa: E402

REAL = "real.json"


def simulate(options: argparse.Namespace) -> None:
    """Simulate one layer alone, by load, and in batches."""
    from experiments.studies.read_ahead_study import (
        BatchRow,
        LayerRow,
        LoadRow,
        batch_rows,
        layer_rows,
        load_rows,
    )

    write_file(options.out / "batch.csv", rows_csv(BatchRow, batch_rows()))
    write_file(options.out / "load.csv", rows_csv(LoadRow, load_rows()))
    write_file(options.out / "layer.csv", rows_csv(LayerRow, layer_rows()))
    report(options)


def real(options: argparse.Namespace) -> None:
    """Measure time to the first token on real vLLM: cold, and after its prompt was prefilled ahead."""
    from experiments.hardware.dummy_checkpoint import write_dummy_checkpoint
    from experiments.studies.read_ahead_real import measure_pairs

    folder = Path(mkdtemp(prefix="prefill-"))
    try:
        pairs = measure_pairs(folder, options.pairs, write_dummy_checkpoint)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_file(options.out / REAL, (json.dumps([asdict(pair) for pair in pairs], indent=1) + "\n"))
    report(options)


def report(options: argparse.Namespace) -> None:
    """Write the report and the figure of what is there."""
    from experiments.studies.read_ahead_report import figure_of, report_of
    from mosaic.figures.style import pdf_bytes, png_bytes

    write_file(options.out / "prefill_ahead.md", report_of(options.out))
    drawn = figure_of(options.out)
    if drawn is not None:
        write_file(options.out / "prefill_ahead.png", png_bytes(drawn))
        write_file(options.out / "prefill_ahead.pdf", pdf_bytes(drawn))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="prefill_ahead", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for run in (simulate, real, report):
        found = commands.add_parser(run.__name__, help=run.__doc__)
        found.set_defaults(run=run)
        found.add_argument(
            "--out", type=Path, default=own_folder("prefill_ahead"), help="folder (default: %(default)s)"
        )
    commands.choices["real"].add_argument("--pairs", type=int, default=5, help="of each size (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

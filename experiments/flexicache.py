"""A sparse KV cache: what it gives on a GPU.

    python experiments/flexicache.py throughput                             report, table and figure
    python experiments/flexicache.py throughput --hardware-out conf/hardware/flexicache_h100.yaml

Both write into results/multirun/flexicache unless --out names a folder.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.hardware.hardware_yaml import to_yaml  # noqa: E402
from experiments.studies.rows import to_csv  # noqa: E402
from experiments.studies.sparse_throughput import (  # noqa: E402
    ATTENTION_FRAC,
    all_rows,
    hardware_config,
    llama,
)
from experiments.studies.sparse_throughput_report import figure, report, table_of  # noqa: E402
from mosaic.config.places import own_folder, write_file  # noqa: E402
from mosaic.core.engine_options import Order  # noqa: E402
from mosaic.core.sparse_kv import SparseKv  # noqa: E402
from mosaic.figures.style import pdf_bytes, png_bytes  # noqa: E402

HARDWARE_HEADER = """\
# Written by
#   python experiments/flexicache.py throughput --hardware-out conf/hardware/flexicache_h100.yaml
# The GPU of FlexiCache's study (results/flexicache), and of nothing else. No H100 was measured: its times are derived
# from a data sheet, and the host time of a step is fitted to the throughput that FlexiCache's authors published for
# plain vLLM. Ordinary vLLM takes much less: measure your own H100 with experiments/measure_gpu.py.
# In microseconds: curves are count:time.
"""


def throughput(options: argparse.Namespace) -> None:
    """Fit an H100 to plain vLLM and predict FlexiCache on it."""
    kv = SparseKv()
    rows = all_rows(kv)
    drawn = figure(rows)
    write_file(options.out / "throughput.md", report(rows, kv))
    write_file(options.out / "throughput.csv", to_csv(table_of(rows)))
    write_file(options.out / "throughput.png", png_bytes(drawn))
    write_file(options.out / "throughput.pdf", pdf_bytes(drawn))
    if options.hardware_out:
        chosen = next(row for row in rows if (row.order, row.attention_frac) == (Order.PREFILL_FIRST, ATTENTION_FRAC))
        config: dict[str, Any] = {"_target_": "sim.hardware.hardware_from_config"}
        config |= hardware_config(chosen.fit, ATTENTION_FRAC, llama().shape)
        write_file(options.hardware_out, HARDWARE_HEADER + to_yaml(config))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flexicache", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    found = commands.add_parser("throughput", help=throughput.__doc__)
    found.set_defaults(run=throughput)
    found.add_argument("--hardware-out", type=Path, help="file of conf/hardware to write the fitted GPU to")
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, default=own_folder("flexicache"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

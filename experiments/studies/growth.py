"""How processor time and memory of a whole simulated run grow with its calls and with its GPUs.

Each run is a process of its own, from the start of Python to the last file of the run's folder: MMLU-Pro's batch with
more questions, and each expert's calls in proportion. Nothing is read from earlier measurements.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import lay_out, markdown
from mosaic.config.compose import compose_config
from mosaic.workloads.slot_table import scaled_slots

RUN = Path(__file__).parents[1] / "run.py"
NUM_CALLS = (10_000, 100_000, 1_000_000)
NUM_GPUS = (4, 64, 256)
COUNT = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status)
"""
"""Starts a run from a small process: Linux counts the memory of the process that forked it into its peak."""
LABELS = ("num_calls", "num_gpus", "scheduler")


class Used(NamedTuple):
    """What the process of a run took."""

    cpu_s: float
    peak_mib: float


AIMS = {100_000: Used(6.0, 300), 1_000_000: Used(60.0, 1200)}
"""By number of calls, on any number of GPUs."""
EARLIER = {
    "e0bd268": {
        (10_000, 4, "round_robin"): Used(3.09, 209),
        (100_000, 4, "round_robin"): Used(13.89, 550),
    },
    "2c6d034": {
        (10_000, 4, "round_robin"): Used(2.86, 186),
        (10_000, 64, "round_robin"): Used(2.94, 190),
        (10_000, 256, "round_robin"): Used(3.31, 207),
        (100_000, 4, "round_robin"): Used(8.61, 338),
        (100_000, 64, "round_robin"): Used(8.96, 337),
        (100_000, 256, "round_robin"): Used(9.39, 350),
        (1_000_000, 4, "round_robin"): Used(73.97, 1417),
        (1_000_000, 256, "round_robin"): Used(72.55, 1432),
        (10_000, 4, "ilp"): Used(2.90, 203),
        (100_000, 4, "ilp"): Used(8.65, 361),
        (1_000_000, 4, "ilp"): Used(73.59, 1439),
    },
}
"""By commit and labels, measured by the same runs on the machine of the committed table, where they were."""


def point(num_calls: int, num_gpus: int, scheduler: str) -> Point:
    """Scale MMLU-Pro's batch, three calls a question, to so many calls."""
    num_questions = num_calls // 3
    slots = scaled_slots(compose_config([])["workload"]["slots"], 3 * num_questions)
    listed = ",".join(f"{expert}:{count}" for expert, count in slots.items())
    return Point(
        labels=dict(zip(LABELS, (num_calls, num_gpus, scheduler), strict=True)),
        overrides=(
            f"scheduler={scheduler}",
            f"workload.num_questions={num_questions}",
            f"workload.slots={{{listed}}}",
            f"cluster.num_workers={num_gpus}",
            "profile.store=null",
        ),
    )


def measure(point: Point, seed: int) -> Row:
    """Run a point in a process of its own, and read what the system counted of it."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(RUN), *point.overrides, f"seed={seed}", f"hydra.run.dir={folder}/run"]
        counted = subprocess.run(
            [sys.executable, "-c", COUNT, *command], stdout=subprocess.PIPE, text=True, check=False
        )
    if counted.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with status {counted.returncode}")
    cpu_s, peak_kib = map(float, counted.stdout.split())
    return Used(cpu_s=cpu_s, peak_mib=peak_kib / 1024)._asdict()


def report(tables: Tables) -> str:
    """Write a line for each point, with what earlier commits took."""
    rows = [
        {**row, "calls_per_s": row["num_calls"] / row["cpu_s"], "aim": _show(AIMS.get(row["num_calls"]))}
        | {commit: _show(known.get(tuple(row[name] for name in LABELS))) for commit, known in EARLIER.items()}
        for row in tables["growth"].to_dicts()
    ]
    cells = {
        "calls": "{num_calls:,}",
        "GPUs": "{num_gpus}",
        "scheduler": "{scheduler}",
        "CPU seconds": "{cpu_s:.1f}",
        "calls per CPU second": "{calls_per_s:,.0f}",
        "peak MiB": "{peak_mib:,.0f}",
        "aim": "{aim}",
    }
    earlier = {f"at {commit}": f"{{{commit}}}" for commit in EARLIER}
    return f"{TEXT}\n\n{markdown(lay_out(rows, cells | earlier))}\n"


def _show(used: Used | None) -> str:
    return "" if used is None else f"{used.cpu_s:.3g} s, {used.peak_mib:,.0f} MiB"


TEXT = """Processor time and peak memory of whole runs, from the start of Python to the last file: MMLU-Pro's batch with
more questions, on simulated A100s. The machine had no other work; equal runs differ by some per cent.

A run of 10,000 calls takes what every run takes: imports, configuration, a sweep of the experts, the figure. With more
than 10,000 questions a run does not simulate aggregating every question."""

STUDY = Study(
    name="growth",
    about="Processor time and memory of whole simulated runs, from 10,000 to a million calls and from 4 to 256 GPUs.",
    title="Simulated runs of growing size",
    tables={
        "growth": Sweep(
            points=[
                *(point(num_calls, num_gpus, "round_robin") for num_calls in NUM_CALLS for num_gpus in NUM_GPUS),
                *(point(num_calls, 4, "ilp") for num_calls in NUM_CALLS),
            ],
            measure=measure,
            in_turn=True,
        )
    },
    report=report,
)

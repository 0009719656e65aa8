"""A replayed request log: simulated against measured times of every request.

    python -m experiments.figures.replay RUN_FOLDER [--log LOG.jsonl] [--out FILE.png]

prints the errors and draws the figure from a run folder and the log that it replayed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.analysis.replay import replay_errors, replay_table
from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    FONT_PT,
    MUTED,
    PALETTE,
    SMALL_PT,
    new_figure,
    png_bytes,
    style_axes,
)
from mosaic.core.errors import MosaicError, RunFolderError
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import CallKey
from mosaic.report.metrics import latency_s, mean, quantile, ttft_s
from mosaic.report.run_folder import read_config
from mosaic.workloads.request_log import measured_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_IN = 1.75
PANELS: tuple[tuple[str, Callable[[CallRecord], float | None], str, str], ...] = (
    ("Time to first token", ttft_s, "o", PALETTE[0]),
    ("Request latency", latency_s, "^", PALETTE[3]),
)


def draw_replay(records: Sequence[CallRecord], measured: Sequence[CallRecord]) -> bytes:
    """Draw simulated over measured TTFT and latency, a point per request, as a PNG of one column's width.

    Raises
    ------
    ValueError
        If the two do not cover the same calls.
    """
    replay_errors(records, measured)
    simulated_by_key = {record.key: record for record in records}
    figure = new_figure(HEIGHT_IN)
    for i, (title, metric, marker, colour) in enumerate(PANELS):
        axes = figure.add_axes((0.115 + i * 0.5, 0.175, 0.37, 0.37 * COLUMN_WIDTH_IN / HEIGHT_IN))
        points = [(metric(record), metric(simulated_by_key[record.key])) for record in measured]
        pairs = [(real, again) for real, again in points if real is not None and again is not None]
        _draw_panel(axes, title, pairs, marker, colour)
    return png_bytes(figure)


def _draw_panel(axes: "Axes", title: str, pairs: Sequence[tuple[float, float]], marker: str, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    style_axes(axes)
    limit_s = 1.05 * max(max(pair) for pair in pairs)
    axes.plot([0, limit_s], [0, limit_s], color=MUTED, linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
    axes.scatter(*zip(*pairs, strict=True), s=5, marker=marker, color=colour, alpha=0.55, linewidths=0, zorder=2)
    axes.set_xlim(0, limit_s)
    axes.set_ylim(0, limit_s)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("measured (s)", labelpad=1)
    axes.set_ylabel("simulated (s)", labelpad=1)
    axes.set_title(title, fontsize=FONT_PT, pad=3)
    axes.text(0.05, 0.96, _note(pairs), transform=axes.transAxes, fontsize=SMALL_PT, va="top", linespacing=1.3)


def _note(pairs: Sequence[tuple[float, float]]) -> str:
    """Error of the mean and the 90% quantile of a request's own absolute error."""
    real, again = mean(real for real, _ in pairs), mean(again for _, again in pairs)
    spread = quantile((abs(again - real) for real, again in pairs), 0.9)
    assert real is not None
    assert again is not None
    return f"mean {100 * (again / real - 1):+.1f}%\n90% within {spread:.2g} s"


def read_records(path: Path) -> tuple[CallRecord, ...]:
    """Read what a replay needs from calls.parquet.

    Raises
    ------
    RunFolderError
        If the file cannot be read or is not a run's.
    """
    import pyarrow.parquet as pq

    names = [name for name in CallRecord._fields if name != "key"]
    try:
        rows = pq.read_table(path).to_pylist()
        return tuple(
            CallRecord(
                key=CallKey(row["question"], row["node"], row["slot"]),
                **{**{name: row[name] for name in names}, "status": CallStatus(row["status"])},
            )
            for row in rows
        )
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path}: cannot be read as the calls of a run ({error})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the errors of a run folder that replayed a log, and draw its figure; return the exit status."""
    parser = argparse.ArgumentParser(prog="replay", description="Compare a replayed request log with its own times.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--log", type=Path, help="the log (default: workload.path of the run)")
    parser.add_argument("--out", type=Path, help="PNG to write (default: replay.png in the run folder)")
    options = parser.parse_args(arguments)
    out = options.out or options.folder / "replay.png"
    try:
        workload = read_config(options.folder).get("workload") or {}
        log = options.log or workload.get("path")
        if log is None:
            return _complain(f"{options.folder}: workload.path must be a request log, got a run of another workload")
        records = read_records(options.folder / "calls.parquet")
        measured = measured_records(log, expert=workload.get("expert", "log"))
        figure = draw_replay(records, measured)
        print(replay_table(replay_errors(records, measured)))
        out.write_bytes(figure)
    except (MosaicError, ValueError, TypeError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{out}: cannot be written ({error.strerror})")
    print(out)
    return 0


def _complain(message: str) -> int:
    print(f"replay: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""A replayed request log: simulated against measured times of every request."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from mosaic.core.results import CallRecord, RunResult
from mosaic.figures.style import DASH, MUTED, PALETTE, SMALL_PT, new_figure, number_axis, png_bytes, styled
from mosaic.report.metrics import latency_s, mean, quantile, ttft_s
from mosaic.report.replay import replay_errors, replay_table
from mosaic.workloads.request_log import measured_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_IN = 1.8
PANELS: tuple[tuple[str, Callable[[CallRecord], float | None], str, str], ...] = (
    ("Time to first token", ttft_s, "o", PALETTE[0]),
    ("Request latency", latency_s, "^", PALETTE[3]),
)


class ReplayReport(NamedTuple):
    """What a replay adds to the run's screen and to its folder."""

    table: str
    files: dict[str, bytes]
    """replay.json and replay.png."""


def report_replay(workload: Mapping[str, Any], result: RunResult) -> ReplayReport:
    """Compare a run with the log that its workload (``path`` and ``expert`` of its configuration) was read from.

    Raises
    ------
    ValueError, TypeError
        If the log cannot be read any more, or the run does not cover its requests.
    """
    measured = measured_records(workload["path"], expert=workload["expert"])
    records = result.calls
    errors = replay_errors(records, measured)
    rows = {name: {**asdict(error), "error_frac": error.error_frac} for name, error in errors.items()}
    files = {
        "replay.json": (json.dumps(rows, indent=1) + "\n").encode(),
        "replay.png": draw_replay(records, measured),
    }
    return ReplayReport(replay_table(errors), files)


@styled()
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
    for place, (title, metric, marker, colour) in enumerate(PANELS):
        axes = figure.add_subplot(1, len(PANELS), place + 1, aspect="equal")
        points = [(metric(record), metric(simulated_by_key[record.key])) for record in measured]
        pairs = [(real, again) for real, again in points if real is not None and again is not None]
        _draw_panel(axes, pairs, marker, colour)
        axes.set_title(title)
    return png_bytes(figure)


def _draw_panel(axes: "Axes", pairs: Sequence[tuple[float, float]], marker: str, colour: str) -> None:
    limit_s = 1.05 * max(max(pair) for pair in pairs)
    axes.plot([0, limit_s], [0, limit_s], color=MUTED, linewidth=0.6, linestyle=DASH, zorder=1)
    reals, agains = zip(*pairs, strict=True)
    axes.scatter(reals, agains, s=5, marker=marker, color=colour, alpha=0.55, linewidths=0, zorder=2)
    axes.set(xlim=(0, limit_s), ylim=(0, limit_s), xlabel="measured (s)", ylabel="simulated (s)")
    for axis in (axes.xaxis, axes.yaxis):
        number_axis(axis, 4)
    axes.text(0.05, 0.96, _note(pairs), transform=axes.transAxes, fontsize=SMALL_PT, va="top")


def _note(pairs: Sequence[tuple[float, float]]) -> str:
    """Error of the mean and the 90% quantile of a request's own absolute error."""
    real, again = mean(real for real, _ in pairs), mean(again for _, again in pairs)
    spread = quantile((abs(again - real) for real, again in pairs), 0.9)
    assert real is not None
    assert again is not None
    return f"mean {100 * (again / real - 1):+.1f}%\n90% within {spread:.2g} s"

"""Compares a replayed request log with its measurements: simulated against measured times of every request."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from mosaic.core.checks import require
from mosaic.core.results import SERVED, CallRecord, RunResult
from mosaic.figures.style import DASH, MUTED, PALETTE, SMALL_PT, new_figure, number_axis, png_bytes, styled
from mosaic.report.metrics import latency_s, mean, quantile, tpot_s, ttft_s
from mosaic.workloads.request_log import measured_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_IN = 1.8
OfCall: TypeAlias = Callable[[CallRecord], float | None]
PANELS: tuple[tuple[str, OfCall, str, str], ...] = (
    ("Time to first token", ttft_s, "o", PALETTE[0]),
    ("Request latency", latency_s, "^", PALETTE[3]),
)


MEDIAN = partial(quantile, q=0.5)
STATISTICS: Mapping[str, tuple[Callable[[Iterable[float | None]], float | None], OfCall]] = {
    "mean_latency_s": (mean, latency_s),
    "p50_latency_s": (MEDIAN, latency_s),
    "p99_latency_s": (partial(quantile, q=0.99), latency_s),
    "mean_tpot_s": (mean, tpot_s),
    "p50_tpot_s": (MEDIAN, tpot_s),
    "mean_ttft_s": (mean, ttft_s),
    "p50_ttft_s": (MEDIAN, ttft_s),
}


class ReplayError(NamedTuple):
    """One metric, simulated and measured, in seconds."""

    simulated_s: float
    measured_s: float

    @property
    def error_frac(self) -> float:
        """Signed error relative to the measurement."""
        return self.simulated_s / self.measured_s - 1


def replay_errors(records: Sequence[CallRecord], measured: Sequence[CallRecord]) -> dict[str, ReplayError]:
    """Compare a replay with the log's own times, metric by metric.

    Latency is measured from arrival to last token, and TTFT from arrival to first token. TPOT is (last - first) / (n -
    1). The makespan is from the first arrival to the last token.

    Raises
    ------
    ValueError
        If the two do not cover the same calls, or a metric is undefined.
    """
    simulated_keys, measured_keys = {record.key for record in records}, {record.key for record in measured}
    require(simulated_keys == measured_keys, "replay: calls", "those of the log", len(simulated_keys ^ measured_keys))
    simulated, real = replay_metrics(records), replay_metrics(measured)
    return {name: ReplayError(simulated_s=simulated[name], measured_s=real[name]) for name in simulated}


def replay_metrics(records: Sequence[CallRecord]) -> dict[str, float]:
    """Summarise records in seconds; latencies and makespan count from arrival.

    Raises
    ------
    ValueError
        If a metric is undefined.
    """
    served = [record for record in records if record.status in SERVED]
    metrics: dict[str, float] = {}
    for name, (summarise, value) in STATISTICS.items():
        found = summarise(map(value, served))
        if found is None:
            raise ValueError(f"replay: {name} must be defined, got no request that has one")
        metrics[name] = found
    ends = [record.finished_ts for record in records if record.finished_ts is not None]
    metrics["makespan_s"] = max(ends) - min(record.queued_ts for record in records)
    return metrics


def replay_table(errors: Mapping[str, ReplayError]) -> str:
    """Write the comparison as text.

    Examples
    --------
    >>> print(replay_table({"mean_ttft_s": ReplayError(simulated_s=1.02, measured_s=1.0)}))
    metric            simulated    measured    error
    mean_ttft_s          1.0200      1.0000    +2.0%
    """
    lines = [f"{'metric':<16} {'simulated':>10}  {'measured':>10}  {'error':>7}"]
    for name, error in errors.items():
        lines.append(
            f"{name:<16} {error.simulated_s:>10.4f}  {error.measured_s:>10.4f}  {100 * error.error_frac:>+6.1f}%"
        )
    return "\n".join(lines)


def report_replay(workload: Mapping[str, Any], result: RunResult) -> tuple[str, dict[str, bytes]]:
    """Compare a run with the log that its workload (``path`` and ``expert`` of its configuration) was read from.

    Returns a table for the run's screen, and replay.json and replay.png for its folder; nothing for a log with only
    arrivals and lengths. A log does not contain calls of later layers.

    Raises
    ------
    ValueError, TypeError
        If the log cannot be read any more, or the run does not cover its requests.
    """
    measured = measured_records(workload["path"], expert=workload["expert"])
    if not measured:
        return "", {}
    records = [record for record in result.calls if record.key.node in result.first_nodes]
    errors = replay_errors(records, measured)
    rows = {name: {**error._asdict(), "error_frac": error.error_frac} for name, error in errors.items()}
    files = {
        "replay.json": (json.dumps(rows, indent=1) + "\n").encode(),
        "replay.png": draw_replay(records, measured),
    }
    return replay_table(errors), files


@styled()
def draw_replay(records: Sequence[CallRecord], measured: Sequence[CallRecord]) -> bytes:
    """Draw simulated over measured TTFT and latency, a point per request, as a PNG of one column's width."""
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

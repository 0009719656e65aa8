"""Predicted against measured: every session and every makespan of a validation, with the bands that were aimed at."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from mosaic.figures.style import (
    DASH,
    INK,
    MARKERS,
    MUTED,
    SMALL_PT,
    fixed_axis,
    legend_below,
    new_figure,
    scheduler_colours,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT_IN = 3.6
BANDS = ((0.2, "#eeeeee"), (0.1, "#dadada"))
"""Relative errors, and the grey of each band."""
TICKS = [step * 10.0**power for power in range(-2, 5) for step in (1, 2, 5)]
TITLES = {
    "ilp": "ILP", "round_robin": "round robin", "data_parallel": "data parallel", "least_loaded": "least loaded",
    "fifo": "first in, first out",
}  # fmt: skip


class Point(NamedTuple):
    """A duration as the simulator has it, and as every repeat measured it, in seconds."""

    plan: str
    """Scheduler."""
    is_makespan: bool
    simulated_s: float
    measured_s: Sequence[float]


@styled()
def draw_validation(points: Sequence[Point]) -> "Figure":
    """Draw simulated over measured seconds: small marks are sessions, large open ones makespans; bars span repeats.

    The share of sessions on each side of the diagonal is written in the figure: a cloud on one side is a bias.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    plans = list(dict.fromkeys(point.plan for point in points))
    colours = scheduler_colours(plans)
    figure = new_figure(HEIGHT_IN)
    axes = figure.add_subplot(aspect="equal")
    _set_scales(axes, points)
    for point in sorted(points, key=lambda point: point.is_makespan):
        _draw_point(axes, point, MARKERS[plans.index(point.plan) % len(MARKERS)], colours[point.plan])
    axes.set_xlabel("measured (s)")
    axes.set_ylabel("simulated (s)")
    axes.text(0.97, 0.03, bias_text(points), transform=axes.transAxes, ha="right", va="bottom", fontsize=SMALL_PT)
    dot: dict[str, Any] = {"linestyle": "", "markersize": 4}
    handles: list[Line2D | Patch] = [
        Line2D([], [], marker=MARKERS[number % len(MARKERS)], color=colours[plan], label=TITLES.get(plan, plan), **dot)
        for number, plan in enumerate(plans)
    ]
    ring: dict[str, Any] = {"markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.1, "linestyle": ""}
    handles.append(Line2D([], [], marker="o", markeredgecolor=INK, label="makespan", **ring))
    handles += [Patch(facecolor=colour, label=f"within {error:.0%}") for error, colour in reversed(BANDS)]
    legend_below(figure, handles)
    return figure


def bias_text(points: Sequence[Point]) -> str:
    """Say on which side of the diagonal the sessions lie, and by how much on average."""
    errors = [point.simulated_s / fmean(point.measured_s) - 1 for point in points if not point.is_makespan]
    if not errors:
        return "no session"
    below = sum(error < 0 for error in errors)
    side, number = ("less", below) if 2 * below >= len(errors) else ("more", len(errors) - below)
    words = f"{number} of {len(errors)} sessions take {side} time in the simulator"
    return f"{words}\nthan measured; mean error {fmean(errors):+.1%}"


def _set_scales(axes: "Axes", points: Sequence[Point]) -> None:
    """Give both axes one logarithmic scale, and draw the diagonal and its bands over all of it."""
    values = [value for point in points for value in (point.simulated_s, *point.measured_s) if value > 0]
    low, high = min(values) / 1.3, max(values) * 1.3
    for error, colour in BANDS:
        edges = [(1 - error) * low, (1 - error) * high], [(1 + error) * low, (1 + error) * high]
        axes.fill_between([low, high], *edges, color=colour, zorder=0)
    axes.plot([low, high], [low, high], color=MUTED, linewidth=0.6, linestyle=DASH, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (axes.xaxis, axes.yaxis):
        fixed_axis(axis, [tick for tick in TICKS if low <= tick <= high])
    axes.grid(visible=False)


def _draw_point(axes: "Axes", point: Point, marker: str, colour: str) -> None:
    mean_s = fmean(point.measured_s)
    spans = [[mean_s - min(point.measured_s)], [max(point.measured_s) - mean_s]]
    is_makespan = point.is_makespan
    axes.errorbar(
        mean_s, point.simulated_s, xerr=spans, fmt=marker, markersize=8.0 if is_makespan else 3.4,
        markerfacecolor="none" if is_makespan else colour, markeredgecolor=colour,
        markeredgewidth=1.1 if is_makespan else 0.0, ecolor=colour, elinewidth=0.6,
        alpha=1.0 if is_makespan else 0.75, zorder=3 if is_makespan else 2,
    )  # fmt: skip

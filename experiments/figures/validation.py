"""Predicted against measured: every session and every makespan of a validation, with the bands that were aimed at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    INK,
    MUTED,
    PALETTE,
    add_legend,
    new_figure,
    style_axes,
)
from experiments.studies.validation import Foretold, PlanForetold

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT_IN = 3.2
SIDE_IN = 2.8
MARKERS = ("o", "^", "s", "v", "D", "P")
BANDS = ((0.2, "#eeeeee"), (0.1, "#dadada"))
"""Relative errors, and the grey of each band."""
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def draw_validation(plans: Sequence[PlanForetold]) -> "Figure":
    """Draw simulated over measured seconds: small marks are sessions, large open ones makespans; bars span repeats."""
    figure = new_figure(HEIGHT_IN)
    axes = figure.add_axes((0.13, 0.1, SIDE_IN / COLUMN_WIDTH_IN, SIDE_IN / HEIGHT_IN))
    style_axes(axes)
    _set_scales(axes, [each for plan in plans for each in (plan.makespan, *(s.whole for s in plan.sessions))])
    for number, plan in enumerate(plans):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        for session in plan.sessions:
            _draw_point(axes, session.whole, marker, colour, is_makespan=False)
        _draw_point(axes, plan.makespan, marker, colour, is_makespan=True)
    axes.set_xlabel("measured (s)", labelpad=1)
    axes.set_ylabel("simulated (s)", labelpad=1)
    _draw_legend(figure, plans)
    return figure


def _set_scales(axes: "Axes", points: Sequence[Foretold]) -> None:
    """Give both axes one logarithmic scale, and draw the diagonal and its bands over all of it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = [value for point in points for value in (point.simulated_s, *point.measured_s) if value > 0]
    low, high = min(values) / 1.3, max(values) * 1.3
    for error, colour in BANDS:
        edges = [(1 - error) * low, (1 - error) * high], [(1 + error) * low, (1 + error) * high]
        axes.fill_between([low, high], *edges, color=colour, linewidth=0, zorder=0)
    axes.plot([low, high], [low, high], color=MUTED, linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
    for axis, scale, limit in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        scale("log")
        limit(low, high)
        axis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_point(axes: "Axes", times: Foretold, marker: str, colour: str, *, is_makespan: bool) -> None:
    spans = [[times.mean_s - min(times.measured_s)], [max(times.measured_s) - times.mean_s]]
    axes.errorbar(
        times.mean_s,
        times.simulated_s,
        xerr=spans,
        fmt=marker,
        markersize=8.0 if is_makespan else 3.4,
        markerfacecolor="none" if is_makespan else colour,
        markeredgecolor=colour,
        markeredgewidth=1.1 if is_makespan else 0.0,
        ecolor=colour,
        elinewidth=0.6,
        alpha=1.0 if is_makespan else 0.75,
        zorder=3 if is_makespan else 2,
    )


def _draw_legend(figure: "Figure", plans: Sequence[PlanForetold]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [
        Line2D([], [], marker=MARKERS[number % len(MARKERS)], linestyle="", markersize=4,
               color=PALETTE[number % len(PALETTE)], label=plan.plan)
        for number, plan in enumerate(plans)
    ]  # fmt: skip
    handles += [
        Line2D([], [], marker="o", linestyle="", markersize=7, markerfacecolor="none", color=INK, label="makespan"),
        Patch(facecolor=BANDS[1][1], label="within 10%"),
        Patch(facecolor=BANDS[0][1], label="within 20%"),
    ]
    left, top = 0.15, (0.1 * HEIGHT_IN + SIDE_IN - 0.05) / HEIGHT_IN
    add_legend(figure, handles, loc="upper left", at=(left, top), ncols=1, handletextpad=0.6)

"""Early exits: what tells a right one from a wrong one, and what rules save and cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mosaic.figures.style import (
    INK,
    MARKERS,
    MUTED,
    PAGE_WIDTH_IN,
    PALETTE,
    bar_axis,
    legend_below,
    new_figure,
    number_axis,
    png_bytes,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_IN = 2.9


class Bar(NamedTuple):
    """A value with its 95% interval."""

    label: str
    value: float
    low: float
    high: float


class Point(NamedTuple):
    """A rule: what it saves, and what that does to the accuracy; each with its 95% interval."""

    rule: str
    saved_pct: tuple[float, float, float]
    change_pp: tuple[float, float, float]


@styled()
def draw_exits(aucs: Sequence[Bar], panels: Mapping[str, Sequence[Point]]) -> bytes:
    """Draw the signals on the left, where there are any, and a panel of rules for each setting."""
    from matplotlib.lines import Line2D

    figure = new_figure(HEIGHT_IN, PAGE_WIDTH_IN)
    axes = figure.subplots(1, bool(aucs) + len(panels), squeeze=False)[0]
    if aucs:
        _draw_aucs(axes[0], aucs)
        axes = axes[1:]
    rules = list(dict.fromkeys(point.rule for points in panels.values() for point in points))
    looks: dict[str, dict[str, Any]] = {
        rule: {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place], "markersize": 3.5}
        for place, rule in enumerate(rules)
    }
    for panel, (title, points) in zip(axes, panels.items(), strict=True):
        panel.axhline(0, color=MUTED, linewidth=0.6)
        for point in points:
            x, y = point.saved_pct, point.change_pp
            error = {"xerr": [[x[0] - x[1]], [x[2] - x[0]]], "yerr": [[y[0] - y[1]], [y[2] - y[0]]]}
            panel.errorbar(x[0], y[0], **error, elinewidth=0.7, linestyle="none", **looks[point.rule])
        panel.set_title(title)
        panel.set_xlabel("calls saved (%)")
        number_axis(panel.xaxis, 4)
        number_axis(panel.yaxis, 5)
    axes[0].set_ylabel("accuracy against asking all (pp)")
    legend_below(figure, [Line2D([], [], linestyle="none", label=rule, **look) for rule, look in looks.items()])
    return png_bytes(figure)


def _draw_aucs(axes: "Axes", aucs: Sequence[Bar]) -> None:
    axes.axvline(0.5, color=MUTED, linewidth=0.6)
    for row, one in enumerate(aucs):
        axes.plot([one.low, one.high], [row, row], color=MUTED, linewidth=1.2)
        axes.plot(one.value, row, color=INK, marker="o", markersize=3.5, linestyle="none")
    bar_axis(axes, [one.label for one in aucs])
    axes.set_ylim(len(aucs) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_title("tiny pool, after two agents")
    axes.set_xlabel("AUC for 'the exit is right'")

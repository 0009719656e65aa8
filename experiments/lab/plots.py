"""The common figure of a study: means with their 95% intervals, a line a policy, a panel a world."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.lab.estimate import Estimate
from experiments.lab.style import (
    COLUMN_WIDTH_IN,
    DASHES,
    INK,
    MARKERS,
    PAGE_WIDTH_IN,
    SMALL_PT,
    colour,
    legend_below,
    new_figure,
    number_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_IN = 1.9
"""Height of a panel."""
SHIFT = 0.07
"""Distance of markers that stand side by side, of that of two places on the axis."""


@styled()
def draw(
    rows: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    line: str,
    panel: str | None = None,
    *,
    x_label: str,
    y_label: str,
    lines: Sequence[str] = (),
    titles: Mapping[Any, str] | None = None,
    zero: bool = False,
) -> "Figure":
    """Draw means over an axis of few values, each value at a place of its own.

    Parameters
    ----------
    rows
        With an `Estimate`, or None, under ``y``.
    x, y, line, panel
        Names of the columns on the axes, of the lines and of the panels, which stand side by side.
    x_label, y_label
        With units.
    lines
        All lines in their order, which gives them their colours; none given: as they come.
    titles
        Of panels, where the value itself does not say it.
    zero
        Mark the zero of the y axis.
    """
    from matplotlib.lines import Line2D

    names = list(lines) or list(dict.fromkeys(row[line] for row in rows))
    places = {value: place for place, value in enumerate(dict.fromkeys(row[x] for row in rows))}
    panels = list(dict.fromkeys(row[panel] for row in rows)) if panel else [None]
    figure = new_figure(PANEL_IN + 0.9, COLUMN_WIDTH_IN if len(panels) == 1 else min(PAGE_WIDTH_IN, 3.0 * len(panels)))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": colour(number), "linestyle": DASHES[number % len(DASHES)], "marker": MARKERS[number]}
        for number, name in enumerate(names)
    }
    for axes, world in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        own = [row for row in rows if panel is None or row[panel] == world]
        for number, name in enumerate(names):
            means = {places[row[x]]: row[y] for row in own if row[line] == name and row[y] is not None}
            _draw_line(axes, means, SHIFT * (number - (len(names) - 1) / 2), looks[name])
        axes.set_xticks(range(len(places)), [str(value) for value in places])
        axes.set_xlabel(x_label)
        if world is not None:
            axes.set_title((titles or {}).get(world, str(world)), fontsize=SMALL_PT + 1)
        if zero:
            axes.axhline(0, color=INK, linewidth=0.6)
    figure.axes[0].set_ylabel(y_label)
    number_axis(figure.axes[0].yaxis)
    legend_below(figure, [Line2D([], [], label=name, markersize=3, **look) for name, look in looks.items()])
    return figure


def _draw_line(axes: "Axes", means: Mapping[int, Estimate], shift: float, look: Mapping[str, Any]) -> None:
    """Draw one line with its intervals."""
    if not means:
        return
    at = [place + shift for place in sorted(means)]
    known = [means[place] for place in sorted(means)]
    ends = [estimate.shown() or (estimate.mean, estimate.mean) for estimate in known]
    spans = [[estimate.mean - low for estimate, (low, _) in zip(known, ends, strict=True)],
             [high - estimate.mean for estimate, (_, high) in zip(known, ends, strict=True)]]  # fmt: skip
    axes.errorbar(at, [estimate.mean for estimate in known], spans, markersize=3, linewidth=0.9, capsize=1.5, **look)

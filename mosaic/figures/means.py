"""Draws the common figures: means with their 95% intervals, as lines over an axis or as labelled rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mosaic.comparison.estimate import Estimate
from mosaic.figures.style import (
    COLUMN_WIDTH_IN,
    INK,
    PAGE_WIDTH_IN,
    SMALL_PT,
    bar_axis,
    legend_below,
    line_looks,
    log_axis,
    new_figure,
    number_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_IN, STACKED_IN, ROW_IN = 1.9, 1.15, 0.2
"""Height of a panel beside others, of one above others, and of a labelled row."""
SHIFT_FRAC, ALL_SHIFTED_FRAC = 0.07, 0.7
"""Distance of adjacent markers, and the most that all of them take, relative to the distance of two values."""
Looks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes."""

    label: str
    """Of the axis of means, with its unit."""
    title: str = ""
    log: bool = False
    mark: float | None = None
    """Position of a thin line: the reference of the means."""


@styled()
def draw(
    rows: Iterable[Mapping[str, Any]],
    x: str,
    y: str,
    line: str,
    panel: str,
    *,
    x_label: str,
    panels: Mapping[Any, Panel],
    lines: Sequence[str],
    looks: Looks | None = None,
    stacked: bool = False,
) -> "Figure":
    """Draw means over an axis of few values, each value at its own position.

    Parameters
    ----------
    rows
        With an `Estimate`, or None, under ``y``.
    x, y, line, panel
        Names of the columns on the axes, of the lines and of the panels.
    x_label
        With its unit.
    panels
        By the value that chooses a panel's rows.
    lines
        In their order.
    looks
        Of the lines; None: their order gives them their colours.
    stacked
        Panels are above each other, with axes of their own; otherwise they are side by side and share one.
    """
    rows = [row for row in rows if row[y] is not None]
    places = {value: place for place, value in enumerate(dict.fromkeys(row[x] for row in rows))}
    looks = looks or line_looks(lines)
    if stacked:
        figure = new_figure(0.7 + STACKED_IN * len(panels))
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    else:
        figure = new_figure(PANEL_IN + 0.9, COLUMN_WIDTH_IN if len(panels) == 1 else PAGE_WIDTH_IN)
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (value, shown) in zip(every, panels.items(), strict=True):
        own = [row for row in rows if row[panel] == value]
        names = [name for name in lines if any(row[line] == name for row in own)]
        step = min(SHIFT_FRAC, ALL_SHIFTED_FRAC / max(1, len(names)))
        for number, name in enumerate(names):
            means = {places[row[x]]: row[y] for row in own if row[line] == name}
            at = [place + step * (number - (len(names) - 1) / 2) for place in means]
            _draw_means(axes, at, list(means.values()), looks[name], horizontal=False)
        axes.set_xticks(range(len(places)), [str(name) for name in places])
        axes.set_title(shown.title, fontsize=SMALL_PT + 1)
        _frame(axes, shown, horizontal=False)
        if not stacked or axes is every[-1]:
            axes.set_xlabel(x_label)
        if stacked or axes is every[0]:
            axes.set_ylabel(shown.label)
    _name_lines(figure, looks)
    return figure


@styled()
def draw_rows(
    rows: Iterable[Mapping[str, Any]],
    x: str,
    y: str,
    mark: str,
    panel: str,
    *,
    panels: Mapping[Any, Panel],
    names: Sequence[str],
    marks: Sequence[str],
) -> "Figure":
    """Draw one labelled row per name, with a marker for each value of ``mark``; panels are side by side.

    Parameters
    ----------
    rows
        With an `Estimate`, or None, under ``x``.
    x, y, mark, panel
        Names of the columns of the means, the rows, the markers and the panels.
    panels
        By the value that chooses a panel's rows.
    names, marks
        Rows from the top, and markers, in their order.
    """
    rows = [row for row in rows if row[x] is not None]
    looks = {name: {**look, "linestyle": ""} for name, look in line_looks(marks).items()}
    figure = new_figure(0.8 + ROW_IN * len(names), COLUMN_WIDTH_IN if len(panels) == 1 else PAGE_WIDTH_IN)
    step = ALL_SHIFTED_FRAC / len(marks)
    for axes, (value, shown) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        for number, each in enumerate(marks):
            means = {names.index(row[y]): row[x] for row in rows if row[mark] == each and row[panel] == value}
            at = [place + step * (number - (len(marks) - 1) / 2) for place in means]
            _draw_means(axes, at, list(means.values()), looks[each], horizontal=True)
        bar_axis(axes, names)
        axes.grid(axis="x")
        _frame(axes, shown, horizontal=True)
        axes.set_xlabel(shown.label)
    _name_lines(figure, looks)
    return figure


def _draw_means(
    axes: "Axes", at: Sequence[float], means: Sequence[Estimate], look: Mapping[str, Any], *, horizontal: bool
) -> None:
    """Draw means and their intervals at these positions."""
    if not means:
        return
    ends = [mean.shown() or (mean.mean, mean.mean) for mean in means]
    spans = [
        [mean.mean - low for mean, (low, _) in zip(means, ends, strict=True)],
        [high - mean.mean for mean, (_, high) in zip(means, ends, strict=True)],
    ]
    values = [mean.mean for mean in means]
    size: dict[str, Any] = {"markersize": 3, "linewidth": 0.9, "capsize": 1.5}
    if horizontal:
        axes.errorbar(values, at, xerr=spans, **size, **look)
    else:
        axes.errorbar(at, values, yerr=spans, **size, **look)


def _frame(axes: "Axes", panel: Panel, *, horizontal: bool) -> None:
    """Set the scale of the means, and their reference."""
    axis = axes.xaxis if horizontal else axes.yaxis
    if panel.log:
        (axes.set_xscale if horizontal else axes.set_yscale)("log")
        log_axis(axis)
    else:
        number_axis(axis)
    if panel.mark is not None:
        (axes.axvline if horizontal else axes.axhline)(panel.mark, color=INK, linewidth=0.6, zorder=0.9)


def _name_lines(figure: "Figure", looks: Looks) -> None:
    from matplotlib.lines import Line2D

    if len(looks) > 1:
        legend_below(figure, [Line2D([], [], label=name, markersize=3, **look) for name, look in looks.items()])

"""A sweep as a figure: a panel per measure, a line per policy with its 95% interval, named where it ends."""

from collections.abc import Mapping, Sequence
from math import log
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from experiments.analysis.ablation import Ablation, Row
from experiments.analysis.ablation_spec import Axis, Panel
from experiments.figures.end_labels import label_ends
from experiments.lab.estimate import MIN_SHOWN
from experiments.lab.style import (
    CHAR_IN,
    COLUMN_WIDTH_IN,
    MUTED,
    legend_below,
    line_looks,
    log_axis,
    new_figure,
    number_axis,
    pdf_bytes,
    png_bytes,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_IN, AROUND_IN, LINE_IN = 1.15, 0.5, 0.1
PLOT_IN = 2.3
"""Width of the axes, about, for what has room below them."""
MAX_LABEL_CHARS = 14
MAX_Y_LABEL_CHARS = 22
BESIDE, ALL_BESIDE = 0.12, 0.84
"""Distance of markers that stand side by side, of that of two categories, and the most that all of them take."""
Looks = Mapping[str, Mapping[str, Any]]


@styled()
def draw_ablation(ablation: Ablation) -> tuple[bytes, bytes]:
    """Draw all panels, one above the other; return a PNG and a PDF of one column's width."""
    from matplotlib.lines import Line2D

    spec = ablation.spec
    is_named = len(spec.lines) > 1
    title = wrap(spec.title, int(COLUMN_WIDTH_IN / (1.25 * CHAR_IN)))
    handles_in = LINE_IN * (1 + len(spec.lines)) / 2 if is_named and not spec.x.is_numeric else 0.0
    figure = new_figure(AROUND_IN + LINE_IN * len(title) + PANEL_IN * len(spec.panels) + handles_in)
    looks = line_looks([line.label for line in spec.lines], [str(line.where.get("scheduler")) for line in spec.lines])
    if not spec.x.is_numeric:  # no way leads from a category to the next
        looks = {line: look | {"linestyle": ""} for line, look in looks.items()}
    panels = figure.subplots(len(spec.panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(panels, spec.panels, strict=True):
        _draw_panel(axes, ablation, panel, looks)
        _frame(axes, ablation, panel)
        if is_named and spec.x.is_numeric:
            ends = {line: ablation.rows_of(panel, line)[-1].estimate.mean for line in ablation.lines_of(panel)}
            names = {line: "\n".join(wrap(line, MAX_LABEL_CHARS)) for line in ends}
            label_ends(axes, {names[line]: (end, looks[line]["color"]) for line, end in ends.items()}, PANEL_IN - 0.15)
    figure.suptitle("\n".join(title), x=0.02, ha="left", fontsize=6.5, fontweight="bold")
    panels[-1].set_xlabel(f"{spec.x.label}\n({_foot(ablation)})")
    if is_named and not spec.x.is_numeric:
        legend_below(figure, [Line2D([], [], label=line, **look) for line, look in looks.items()])
    return png_bytes(figure), pdf_bytes(figure)


def _foot(ablation: Ablation) -> str:
    counts = sorted({len(row.values) for row in ablation.rows})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[-1] < MIN_SHOWN:
        return "one seed, no interval" if counts == [1] else f"mean of {seeds} seeds, too few for an interval"
    return f"mean, 95% interval over {seeds} seeds"


def _draw_panel(axes: "Axes", ablation: Ablation, panel: Panel, looks: Looks) -> None:
    lines, axis = ablation.lines_of(panel), ablation.spec.x
    for number, line in enumerate(lines):
        rows = ablation.rows_of(panel, line)
        shift = 0.0 if axis.is_numeric else min(BESIDE, ALL_BESIDE / len(lines)) * (number - (len(lines) - 1) / 2)
        places = [_place(ablation, row) + shift for row in rows]
        _draw_intervals(axes, rows, places, looks[line]["color"], axis)
        axes.plot(
            places, [row.estimate.mean for row in rows], zorder=3,
            drawstyle="steps-mid" if axis.steps else "default", **looks[line],
        )  # fmt: skip


def _draw_intervals(axes: "Axes", rows: Sequence[Row], places: Sequence[float], colour: str, axis: Axis) -> None:
    known = [
        (place, *ends)
        for place, row in zip(places, rows, strict=True)
        if (ends := row.estimate.shown(*row.panel.bounds)) is not None
    ]
    if not known:
        return
    at, lows, highs = zip(*known, strict=True)
    if axis.is_numeric and len(known) > 1:
        axes.fill_between(at, lows, highs, color=colour, alpha=0.18, zorder=1, step="mid" if axis.steps else None)
    else:
        axes.vlines(at, lows, highs, color=colour, linewidth=1.6, alpha=0.4, zorder=1)


def _place(ablation: Ablation, row: Row) -> float:
    return float(row.x) if ablation.spec.x.is_numeric else float(ablation.xs.index(row.x))


def tick_labels(axis: Axis, xs: Sequence[Any], width_in: float = PLOT_IN) -> dict[float, str]:
    """Mark every value and write those that have room; categories break into lines."""
    if axis.ticks:
        return {float(tick.value): tick.label for tick in axis.ticks}
    if not axis.is_numeric:
        num_chars = max(4, int(width_in / len(xs) / CHAR_IN))
        return {
            float(place): "\n".join(wrap(axis.show(x), num_chars, break_long_words=False)) for place, x in enumerate(xs)
        }
    size = log if axis.scale == "log" else float
    span = size(xs[-1]) - size(xs[0]) or 1.0
    ticks: dict[float, str] = {}
    end_in = -1.0
    for x in xs:
        label = axis.show(x)
        middle_in, half_in = 0.9 * width_in * (size(x) - size(xs[0])) / span, 0.5 * CHAR_IN * (len(label) + 1)
        has_room = middle_in - half_in >= end_in
        ticks[float(x)] = label if has_room else ""
        end_in = middle_in + half_in if has_room else end_in
    return ticks


def _frame(axes: "Axes", ablation: Ablation, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    axis = ablation.spec.x
    if axis.scale == "log":
        axes.set_xscale("log")
    elif not axis.is_numeric:
        axes.set_xlim(-0.5, len(ablation.xs) - 0.5)
    ticks = tick_labels(axis, ablation.xs)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    if panel.scale == "log":
        axes.set_yscale("log")
        log_axis(axes.yaxis)
    else:
        number_axis(axes.yaxis)
    if panel.relative_to is not None:
        axes.axhline(1.0, color=MUTED, linewidth=0.6, zorder=0.9)
    axes.set_ylabel("\n".join(wrap(panel.label, MAX_Y_LABEL_CHARS)))

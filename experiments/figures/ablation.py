"""A sweep as a figure: a panel per measure, a line per policy with its 95% interval, named where it ends."""

from collections.abc import Mapping, Sequence
from math import log
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    FONT_PT,
    GRID,
    INK,
    MUTED,
    PALETTE,
    SMALL_PT,
    new_figure,
    pdf_bytes,
    png_bytes,
    style_axes,
)
from experiments.studies.ablation import Ablation, Row
from experiments.studies.ablation_spec import Axis, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP_IN, PANEL_IN, GAP_IN, TICK_LINE_IN, LEFT_IN, LINE_IN = 0.08, 1.05, 0.12, 0.11, 0.56, 0.1
CHAR_IN = 0.53 * SMALL_PT / 72
"""Mean width of a character of a sentence."""
NAME_CHAR_IN = 0.63 * SMALL_PT / 72
"""Of a name, which may be all capitals."""
MAX_LABEL_CHARS = 14
MAX_Y_LABEL_CHARS = 22
COLOUR_BY_SCHEDULER = {
    "ilp": PALETTE[0], "round_robin": PALETTE[3], "data_parallel": PALETTE[2], "least_loaded": PALETTE[5],
    "fifo": PALETTE[1],
}  # fmt: skip
"""The same in every figure."""
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D")


def draw_ablation(ablation: Ablation) -> tuple[bytes, bytes]:
    """Draw all panels, one above the other; return a PNG and a PDF of one column's width."""
    spec = ablation.spec
    labels = {line.label: wrap(line.label, MAX_LABEL_CHARS) for line in spec.lines}
    is_named = len(spec.lines) > 1
    longest = max(len(part) for label in labels.values() for part in label) if is_named else 0
    right_in = 0.1 + (0.06 + longest * NAME_CHAR_IN if is_named else 0.0)
    width_in = COLUMN_WIDTH_IN - LEFT_IN - right_in
    ticks = _tick_labels(spec.x, ablation.xs, width_in)
    title = wrap(spec.title, int((COLUMN_WIDTH_IN - 0.1) / CHAR_IN))
    tick_in = TICK_LINE_IN * max(label.count("\n") + 1 for label in ticks.values())
    foot_in = 0.06 + tick_in + 0.14 + LINE_IN
    top_in = TOP_IN + LINE_IN * len(title) + 0.03
    num_panels = len(spec.panels)
    height_in = top_in + num_panels * PANEL_IN + (num_panels - 1) * GAP_IN + foot_in
    figure = new_figure(height_in)
    looks = _looks(ablation)
    for number, panel in enumerate(spec.panels):
        bottom_in = height_in - top_in - (number + 1) * PANEL_IN - number * GAP_IN
        axes = figure.add_axes(
            (LEFT_IN / COLUMN_WIDTH_IN, bottom_in / height_in, width_in / COLUMN_WIDTH_IN, PANEL_IN / height_in)
        )
        style_axes(axes)
        _draw_panel(axes, ablation, panel, looks)
        _frame(axes, ablation, panel, ticks, is_last=number == num_panels - 1)
        if is_named:
            _name_lines(axes, ablation, panel, labels, looks)
    _write_around(figure, ablation, title, middle_in=LEFT_IN + width_in / 2)
    return png_bytes(figure), pdf_bytes(figure)


def _write_around(figure: "Figure", ablation: Ablation, title: Sequence[str], *, middle_in: float) -> None:
    """Write the title above the panels, and below them what is on the axis and what the intervals are."""
    look = {"transform": figure.dpi_scale_trans, "color": INK}
    top_in = figure.get_figheight() - TOP_IN
    for number, part in enumerate(title):
        figure.text(
            0.05, top_in - LINE_IN * (number + 0.4), part, va="center", fontsize=SMALL_PT, fontweight="bold", **look
        )
    figure.text(middle_in, 0.06 + LINE_IN, ablation.spec.x.label, ha="center", fontsize=FONT_PT, **look)
    figure.text(middle_in, 0.04, _foot(ablation), ha="center", fontsize=SMALL_PT, **(look | {"color": MUTED}))


def _foot(ablation: Ablation) -> str:
    counts = sorted({len(row.values) for row in ablation.rows})
    if counts == [1]:
        return "one seed, no interval"
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean, 95% interval over {seeds} seeds"


def _looks(ablation: Ablation) -> dict[str, dict[str, Any]]:
    """Choose colour, dash and marker of each line: by scheduler, where the lines differ in it."""
    lines = ablation.spec.lines
    schedulers = [str(line.where.get("scheduler")) for line in lines]
    looks: dict[str, dict[str, Any]] = {}
    for place, (line, scheduler) in enumerate(zip(lines, schedulers, strict=True)):
        if len(set(schedulers)) > 1 or len(lines) == 1:
            same = schedulers[:place].count(scheduler)
            colour = COLOUR_BY_SCHEDULER.get(scheduler, PALETTE[(place + 6) % len(PALETTE)])
        else:
            same, colour = place, PALETTE[place % len(PALETTE)]
        dash, marker = DASHES[same % len(DASHES)], MARKERS[same % len(MARKERS)]
        looks[line.label] = {"color": colour, "linestyle": dash, "marker": marker}
    return looks


def _draw_panel(axes: "Axes", ablation: Ablation, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    lines = ablation.lines_of(panel)
    for number, line in enumerate(lines):
        rows, look = ablation.rows_of(panel, line), dict(looks[line])
        places = [_place(ablation, row) for row in rows]
        if not ablation.spec.x.is_numeric:
            # NOTE: categories have no way between them, so markers stand side by side and no line joins them.
            look["linestyle"] = ""
            places = [place + 0.12 * (number - (len(lines) - 1) / 2) for place in places]
        means = [row.estimate.mean for row in rows]
        _draw_intervals(axes, rows, places, look["color"], is_band=ablation.spec.x.is_numeric)
        axes.plot(places, means, linewidth=1.0, markersize=2.6, markeredgewidth=0, zorder=3, **look)


def _draw_intervals(axes: "Axes", rows: Sequence[Row], places: Sequence[float], colour: str, *, is_band: bool) -> None:
    known = [
        (place, found.low, found.high)
        for place, row in zip(places, rows, strict=True)
        if (found := row.estimate).low is not None
    ]
    if not known:
        return
    at, lows, highs = zip(*known, strict=True)
    if is_band and len(known) > 1:
        axes.fill_between(at, lows, highs, color=colour, alpha=0.18, linewidth=0, zorder=1)
    else:
        axes.vlines(at, lows, highs, color=colour, linewidth=1.6, alpha=0.4, zorder=1)


def _place(ablation: Ablation, row: Row) -> float:
    return float(row.x) if ablation.spec.x.is_numeric else float(ablation.xs.index(row.x))


def _tick_labels(axis: Axis, xs: Sequence[Any], width_in: float) -> dict[float, str]:
    """Mark every value and write those that have room; categories break into lines."""
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


def _frame(axes: "Axes", ablation: Ablation, panel: Panel, ticks: Mapping[float, str], *, is_last: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    axis = ablation.spec.x
    if axis.scale == "log":
        axes.set_xscale("log")
    elif not axis.is_numeric:
        axes.set_xlim(-0.5, len(ablation.xs) - 0.5)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ticks), list(ticks.values()) if is_last else [""] * len(ticks), fontsize=SMALL_PT)
    if panel.scale == "log":
        _mark_log_axis(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", labelsize=SMALL_PT)
    axes.tick_params(which="minor", width=0.4, length=1.2, color=MUTED)
    if panel.relative_to is not None:
        axes.axhline(1.0, color=MUTED, linewidth=0.6, zorder=0.9)
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.annotate(
        "\n".join(wrap(panel.label, MAX_Y_LABEL_CHARS)), (0, 0.5), xycoords=("figure fraction", "axes fraction"),
        xytext=(2.5, 0), textcoords="offset points", rotation=90, ha="left", va="center", multialignment="center",
        fontsize=FONT_PT, color=INK, linespacing=1.0, annotation_clip=False,
    )  # fmt: skip


def _mark_log_axis(axes: "Axes") -> None:
    """Write 1, 2 and 5 of each decade, which leaves at least two numbers on a short axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _name_lines(
    axes: "Axes",
    ablation: Ablation,
    panel: Panel,
    labels: Mapping[str, Sequence[str]],
    looks: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write each line's name to the right of its last point, moved up or down where names would overlap."""
    lines = ablation.lines_of(panel)
    if not lines:
        return
    ends = {line: ablation.rows_of(panel, line)[-1].estimate.mean for line in lines}
    heights = {line: len(labels[line]) * 0.095 / PANEL_IN for line in lines}
    wanted = {line: axes.transAxes.inverted().transform(axes.transData.transform((1, ends[line])))[1] for line in lines}
    for line, place in spread(wanted, heights).items():
        colour = looks[line]["color"]
        axes.plot([1.0, 1.035], [wanted[line], place], transform=axes.transAxes, clip_on=False, color=colour,
                  linewidth=0.6, linestyle=looks[line]["linestyle"])  # fmt: skip
        axes.text(1.045, place, "\n".join(labels[line]), transform=axes.transAxes, va="center", linespacing=0.95,
                  fontsize=SMALL_PT, color=_darker(colour))  # fmt: skip


def _darker(colour: str) -> str:
    """Mix a colour with the ink, since type is thinner than a line."""
    parts = zip((colour[1:3], colour[3:5], colour[5:7]), (INK[1:3], INK[3:5], INK[5:7]), strict=True)
    return "#" + "".join(f"{round(0.75 * int(own, 16) + 0.25 * int(ink, 16)):02x}" for own, ink in parts)


def spread(wanted: Mapping[str, float], heights: Mapping[str, float]) -> dict[str, float]:
    """Move names apart so that none covers another, each as near to where it belongs as the others allow.

    Names keep their order; those that touch form a block, which stands where its members are nearest on average.

    Examples
    --------
    >>> spread({"a": 0.5, "b": 0.5, "c": 0.9}, {"a": 0.2, "b": 0.2, "c": 0.1})
    {'b': 0.4, 'a': 0.6, 'c': 0.9}
    """
    blocks: list[tuple[list[str], float]] = []  # names from the bottom, and the block's lower end
    rank = {name: -place for place, name in enumerate(wanted)}  # of equals the first stands on top
    for name in sorted(wanted, key=lambda name: (wanted[name], rank[name])):
        members, low = [name], wanted[name] - heights[name] / 2
        while blocks and low < blocks[-1][1] + sum(heights[other] for other in blocks[-1][0]) - 1e-9:
            members = [*blocks.pop()[0], *members]
            low = _block_start(members, wanted, heights)
        blocks.append((members, low))
    places = {}
    for members, low in blocks:
        for name in members:
            places[name] = round(low + heights[name] / 2, 9)
            low += heights[name]
    return places


def _block_start(members: Sequence[str], wanted: Mapping[str, float], heights: Mapping[str, float]) -> float:
    before, total = 0.0, 0.0
    for name in members:
        total += wanted[name] - (before + heights[name] / 2)
        before += heights[name]
    return total / len(members)

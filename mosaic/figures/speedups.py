"""Draws speedups over a baseline: a row per policy, a block per world, a dot per seed, mean and interval."""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from mosaic.comparison.pairing import METRICS, Comparison, Row
from mosaic.figures.style import (
    COLUMN_WIDTH_IN,
    INK,
    MUTED,
    PAGE_HEIGHT_IN,
    PAGE_WIDTH_IN,
    PALETTE,
    SMALL_PT,
    beside,
    new_figure,
    number_axis,
    png_bytes,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_IN, AROUND_IN = 0.11, 0.5
NARROW_CHARS, WIDE_CHARS = 34, 72
"""Longest line of a label in a figure of a column's and of a page's width."""
NARROW_LINES, MAX_LINES = 50, int((PAGE_HEIGHT_IN - AROUND_IN) / LINE_IN)


@styled()
def draw_speedups(comparison: Comparison) -> bytes:
    """Draw a comparison as a PNG of a column's width, or of a page's if there is much to compare.

    Raises
    ------
    ValueError
        If nothing was compared, or a page is too short.
    """
    rows = [row for row in comparison.rows if not row["is_baseline"] and row["speedup"] is not None]
    if not rows:
        raise ValueError(f"no policy has a run beside one of {comparison.baseline}")
    sizes = ((COLUMN_WIDTH_IN, NARROW_CHARS, NARROW_LINES), (PAGE_WIDTH_IN, WIDE_CHARS, MAX_LINES))
    layouts = [(width_in, [wrap(row["policy"], size) for row in rows], limit) for width_in, size, limit in sizes]
    num_cases = len({row["case"] for row in rows})
    fitting = [layout for layout in layouts if sum(map(len, layout[1])) + num_cases <= layout[2]]
    if not fitting:
        raise ValueError(f"{len(rows)} policies do not fit on a page: give fewer folders")
    width_in, labels, _ = fitting[0]
    num_lines = sum(map(len, labels)) + num_cases
    figure = new_figure(AROUND_IN + LINE_IN * num_lines, width_in)
    axes = figure.add_subplot()
    _draw_rows(axes, rows, labels, num_lines)
    every = [1.0, *(value for row in rows for value in (*row["ratios"], *(row["speedup"].shown() or ())))]
    margin = 0.05 * (max(every) - min(every)) or 0.05
    axes.set_xlim(max(0.0, min(every) - margin), max(every) + margin)
    number_axis(axes.xaxis)
    is_shown = any(row["speedup"].shown() for row in rows)
    about = f"(geometric mean, {'95% interval, ' if is_shown else ''}a dot per seed)"
    what = wrap(f"speedup over {comparison.baseline}, {METRICS[comparison.metric]}", int(width_in / 0.055))
    figure.supxlabel("\n".join([*what, about]), fontsize=7)
    return png_bytes(figure)


def _draw_rows(axes: "Axes", rows: Sequence[Row], labels: Sequence[Sequence[str]], num_lines: int) -> None:
    """Place rows from the top, in units of a line, with the name of their world above the first of each."""
    at, case = 0.0, None
    places = []
    for row, label in zip(rows, labels, strict=True):
        if row["case"] != case:
            case = row["case"]
            axes.annotate(
                case, (0, at + 0.5), (-4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", ha="right", fontsize=SMALL_PT, fontweight="bold",
            )  # fmt: skip
            at += 1
        places.append(at + len(label) / 2)
        _draw_row(axes, places[-1], row)
        at += len(label)
    axes.set_ylim(num_lines, 0)
    axes.set_yticks(places, ["\n".join(label) for label in labels], linespacing=1.0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.axvline(1.0, color=INK, linewidth=0.7, zorder=0.9)


def _draw_row(axes: "Axes", place: float, row: Row) -> None:
    found = row["speedup"]
    if (ends := found.shown()) is not None:
        axes.plot(ends, [place] * 2, color=PALETTE[0], linewidth=3.0, alpha=0.35, solid_capstyle="butt")
    axes.plot(row["ratios"], [place] * len(row["ratios"]), ".", color=MUTED, markersize=2.6)
    axes.plot([found.mean], [place], "|", color=PALETTE[0], markersize=6, markeredgewidth=1.4)
    beside(axes, f"{found.mean:.2f}x", 1.0, place, xycoords=("axes fraction", "data"))

"""Speedups over a baseline: a row per policy, a block per workload, a dot per seed, mean and interval."""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from experiments.analysis.pairing import Comparison, Row
from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    FONT_PT,
    GRID,
    INK,
    MUTED,
    PALETTE,
    SMALL_PT,
    new_figure,
    png_bytes,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_IN, TOP_IN, BOTTOM_IN, RIGHT_IN = 0.145, 0.06, 0.36, 0.42
MAX_LABEL_CHARS = 30
CHAR_IN = 0.56 * SMALL_PT / 72
"""Mean width of a character of a label."""


def draw_speedups(comparison: Comparison) -> bytes:
    """Draw a comparison as a PNG of one column's width."""
    others = [row for row in comparison.rows if not row.is_baseline and row.speedup is not None]
    rows = others or [row for row in comparison.rows if row.speedup is not None]
    places, heads, num_lines = _layout(rows)
    labels = [_label(row) for row in rows]
    longest = max((len(line) for label in labels for line in label), default=0)
    left_in = min(1.7, 0.16 + longest * CHAR_IN)
    height_in = TOP_IN + BOTTOM_IN + ROW_IN * num_lines
    figure = new_figure(height_in)
    axes = figure.add_axes(
        (
            left_in / COLUMN_WIDTH_IN,
            BOTTOM_IN / height_in,
            1 - (left_in + RIGHT_IN) / COLUMN_WIDTH_IN,
            ROW_IN * num_lines / height_in,
        )
    )
    style_axes(axes)
    for place, row in zip(places, rows, strict=True):
        _draw_row(axes, place, row)
    for place, case in heads:
        axes.annotate(
            case, (0, place), xycoords=("figure fraction", "data"), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=SMALL_PT, fontweight="bold", color=INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(places, ["\n".join(label) for label in labels], fontsize=SMALL_PT, linespacing=1.05)
    _frame(axes, rows, num_lines, comparison)
    return png_bytes(figure)


def _label(row: Row) -> list[str]:
    return wrap(row.policy, MAX_LABEL_CHARS, break_long_words=True)


def _layout(rows: Sequence[Row]) -> tuple[list[float], list[tuple[float, str]], float]:
    """Place rows from the top in units of a line; a block of equal case has its name above it."""
    places: list[float] = []
    heads: list[tuple[float, str]] = []
    at = 0.0
    for index, row in enumerate(rows):
        if index == 0 or rows[index - 1].case != row.case:
            at += 0.3 if heads else 0.0
            heads.append((at + 0.5, row.case))
            at += 1.0
        height = 0.3 + 0.75 * len(_label(row))
        places.append(at + height / 2)
        at += height
    return places, heads, at + 0.2


def _draw_row(axes: "Axes", place: float, row: Row) -> None:
    assert row.speedup is not None
    if row.speedup_low is not None and row.speedup_high is not None:
        axes.plot(
            [row.speedup_low, row.speedup_high],
            [place, place],
            color=PALETTE[0],
            linewidth=3.0,
            alpha=0.35,
            solid_capstyle="butt",
        )
    axes.plot(row.ratios, [place] * len(row.ratios), ".", color=MUTED, markersize=2.4, markeredgewidth=0)
    axes.plot([row.speedup], [place], "|", color=PALETTE[0], markersize=7, markeredgewidth=1.6)
    axes.annotate(
        f"{row.speedup:.2f}x", (1, place), xycoords=("axes fraction", "data"), xytext=(3, 0),
        textcoords="offset points", va="center", fontsize=SMALL_PT, color=INK, annotation_clip=False,
    )  # fmt: skip


def _frame(axes: "Axes", rows: Sequence[Row], num_lines: float, comparison: Comparison) -> None:
    from matplotlib.ticker import MaxNLocator

    shown = [1.0, *(ratio for row in rows for ratio in row.ratios)]
    shown += [end for row in rows for end in (row.speedup_low, row.speedup_high) if end is not None]
    margin = 0.05 * (max(shown) - min(shown)) or 0.05
    axes.set_xlim(min(shown) - margin, max(shown) + margin)
    axes.set_ylim(num_lines, 0)
    axes.axvline(1.0, color=INK, linewidth=0.7, zorder=0.9)
    axes.grid(axis="x", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    what = "end-to-end speedup" if comparison.metric == "end_to_end_s" else "speedup"
    axes.annotate(
        f"{what} over {comparison.baseline} (mean, 95% interval, seeds)",
        (0.5, 0), xycoords="figure fraction", xytext=(0, 3), textcoords="offset points",
        ha="center", va="bottom", fontsize=FONT_PT, color=INK, annotation_clip=False,
    )  # fmt: skip

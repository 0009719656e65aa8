"""What the calibrated gate earns: skip share against accepted loss, a panel per world, a line per question count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    from matplotlib.figure import Figure

PANEL_IN, GAP_IN, TOP_IN, BOTTOM_IN, LEFT_IN, RIGHT_IN = 1.0, 0.24, 0.46, 0.31, 0.5, 0.31
"""Beside each panel stand the labels of its levels."""
NUM_COLUMNS = 2
STYLES = {"plurality": "-", "weighted": (0, (2.5, 1.2))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Mean skip share by accepted loss."""

    num_questions: int
    confidence: str
    accepted_pp: tuple[float, ...]
    skip_frac: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A world."""

    name: str
    lines: tuple[Line, ...]
    levels: Mapping[str, float]
    """Skip shares of the published thresholds, by label."""


def draw_gates(panels: Sequence[Panel]) -> bytes:
    """Draw the panels as a PNG of one column's width."""
    num_rows = -(-len(panels) // NUM_COLUMNS)
    height_in = TOP_IN + BOTTOM_IN + num_rows * PANEL_IN + (num_rows - 1) * GAP_IN
    width_in = (COLUMN_WIDTH_IN - LEFT_IN - NUM_COLUMNS * RIGHT_IN) / NUM_COLUMNS
    figure = new_figure(height_in)
    numbers = list(dict.fromkeys(line.num_questions for panel in panels for line in panel.lines))
    colours = dict(zip(numbers, PALETTE, strict=False))
    for place, panel in enumerate(panels):
        row, column = divmod(place, NUM_COLUMNS)
        left = LEFT_IN + column * (width_in + RIGHT_IN)
        bottom = height_in - TOP_IN - (row + 1) * PANEL_IN - row * GAP_IN
        box = (left / COLUMN_WIDTH_IN, bottom / height_in, width_in / COLUMN_WIDTH_IN, PANEL_IN / height_in)
        axes = figure.add_axes(box)
        _draw_panel(axes, panel, colours)
        _label_axes(axes, panel, is_left=column == 0, is_bottom=row == num_rows - 1)
    _legend(figure, colours, height_in)
    middle_in = BOTTOM_IN + (height_in - TOP_IN - BOTTOM_IN) / 2
    figure.text(
        0.012, middle_in / height_in, "questions skipped (mean of calibrations)", rotation=90, ha="left", va="center",
        fontsize=FONT_PT, color=INK,
    )  # fmt: skip
    figure.text(
        0.5 + (LEFT_IN - RIGHT_IN) / 2 / COLUMN_WIDTH_IN, 0.03 / height_in, "accepted accuracy loss (pp)",
        ha="center", va="bottom", fontsize=FONT_PT, color=INK,
    )  # fmt: skip
    return png_bytes(figure)


def _draw_panel(axes: "Axes", panel: Panel, colours: Mapping[int, str]) -> None:
    style_axes(axes)
    axes.set_xscale("log")
    for label, level in panel.levels.items():
        axes.axhline(level, color=MUTED, linewidth=0.5, zorder=1)
        axes.annotate(
            label, (1, level), xycoords=("axes fraction", "data"), xytext=(2, 0), textcoords="offset points",
            ha="left", va="center", fontsize=SMALL_PT, color=MUTED, annotation_clip=False,
        )  # fmt: skip
    for line in panel.lines:
        axes.plot(
            line.accepted_pp, line.skip_frac, color=colours[line.num_questions], linestyle=STYLES[line.confidence],
            linewidth=1.0, marker="o", markersize=2.0, markeredgewidth=0, zorder=3, clip_on=False,
        )  # fmt: skip


def _label_axes(axes: "Axes", panel: Panel, *, is_left: bool, is_bottom: bool) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    accepted = sorted({value for line in panel.lines for value in line.accepted_pp})
    axes.set_xlim(accepted[0] / 1.25, accepted[-1] * 1.25)
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(FixedLocator(accepted))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:g}" for value in accepted] if is_bottom else [])
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if not is_left:
        axes.set_yticklabels([])
    axes.grid(axis="y", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_title(panel.name, fontsize=FONT_PT, fontweight="bold", color=INK, loc="left", pad=3)


def _legend(figure: "Figure", colours: Mapping[int, str], height_in: float) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=1.2) for colour in colours.values()]
    handles += [Line2D([], [], color=INK, linewidth=1.0, linestyle=style) for style in STYLES.values()]
    labels = [*(f"{number:,} questions" for number in colours), *(f"{name} confidence" for name in STYLES)]
    half = len(colours)
    for start, end, top_in in ((0, half, 0.01), (half, len(labels), 0.14)):
        figure.legend(
            handles[start:end], labels[start:end], loc="upper center", bbox_to_anchor=(0.5, 1 - top_in / height_in),
            ncols=end - start, fontsize=SMALL_PT, frameon=False, handlelength=1.8, columnspacing=1.2, labelcolor=INK,
            borderpad=0, handletextpad=0.5,
        )  # fmt: skip

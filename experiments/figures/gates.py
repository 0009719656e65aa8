"""What the calibrated gate earns: skip share against accepted loss, a panel per world, a line per question count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mosaic.figures.style import (
    COLUMN_WIDTH_IN,
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    SMALL_PT,
    fixed_axis,
    legend_below,
    new_figure,
    number_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_IN, AROUND_IN = 1.25, 0.5
NUM_COLUMNS = 2
DASHES: dict[str, Any] = {"plurality": "-", "weighted": (0, (2.5, 1.2))}
WIDTHS_PT = (1.9, 1.3, 0.7)
"""Lines that lie on one another are seen, since the first are the widest."""
LOW_FRAC = 0.4
"""A panel whose lines all stay below has an axis of its own."""


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


@styled()
def draw_gates(panels: Sequence[Panel]) -> "Figure":
    """Draw the panels in two columns, with one legend."""
    from matplotlib.lines import Line2D

    num_rows = -(-len(panels) // NUM_COLUMNS)
    figure = new_figure(AROUND_IN + num_rows * PANEL_IN, COLUMN_WIDTH_IN)
    numbers = sorted({line.num_questions for panel in panels for line in panel.lines})
    looks: dict[int, dict[str, Any]] = {
        number: {"color": PALETTE[place], "marker": MARKERS[place], "linewidth": WIDTHS_PT[min(place, 2)]}
        for place, number in enumerate(numbers)
    }
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(num_rows, NUM_COLUMNS, place + 1)
        _draw_panel(axes, panel, looks)
        if place % NUM_COLUMNS == 0:
            axes.set_ylabel("questions skipped (%)")
        if place + NUM_COLUMNS >= len(panels):
            axes.set_xlabel("accepted loss of accuracy (pp)")
    handles = [Line2D([], [], label=f"{number:,} questions", **look) for number, look in looks.items()]
    kinds = dict.fromkeys(line.confidence for panel in panels for line in panel.lines)
    handles += [Line2D([], [], color=INK, linestyle=DASHES[kind], label=f"{kind} confidence") for kind in kinds]
    legend_below(figure, handles)
    return figure


def _draw_panel(axes: "Axes", panel: Panel, looks: Mapping[int, Mapping[str, Any]]) -> None:
    for line in sorted(panel.lines, key=lambda line: line.num_questions):
        shares = [100 * share for share in line.skip_frac]
        axes.plot(line.accepted_pp, shares, linestyle=DASHES[line.confidence], clip_on=False, zorder=3,
                  **looks[line.num_questions])  # fmt: skip
    accepted = sorted({value for line in panel.lines for value in line.accepted_pp})
    axes.set_xscale("log")
    axes.set_xlim(accepted[0] / 1.25, accepted[-1] * 1.25)
    fixed_axis(axes.xaxis, accepted)
    highest = max(share for line in panel.lines for share in line.skip_frac)
    axes.set_ylim(0, 100 if highest > LOW_FRAC else 115 * highest or 1.0)
    number_axis(axes.yaxis)
    axes.set_title(panel.name)
    beyond = []
    for label, level in panel.levels.items():
        if 100 * level > axes.get_ylim()[1]:
            beyond.append(f"{label}: {level:.0%}")
            continue
        axes.axhline(100 * level, color=MUTED, linewidth=0.6, zorder=1)
        axes.annotate(label, (1, 100 * level), (2, 0), xycoords=("axes fraction", "data"), va="center",
                      textcoords="offset points", fontsize=SMALL_PT, color=MUTED)  # fmt: skip
    if beyond:
        axes.text(0.03, 0.97, "above: " + ", ".join(beyond), va="top", fontsize=SMALL_PT, color=MUTED,
                  transform=axes.transAxes)  # fmt: skip

"""Quotes against what batches took: a line a pilot from P50 to P90, a dot where the truth was."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mosaic.figures.style import COLUMN_WIDTH_IN, INK, MUTED, bar_axis, legend_below, new_figure, png_bytes, styled

DOT: Mapping[str, Any] = {
    "color": INK, "marker": "o", "linestyle": "none", "markersize": 3.0, "markeredgecolor": INK, "markeredgewidth": 0.6,
}  # fmt: skip


class Quoted(NamedTuple):
    """A pilot, in seconds."""

    label: str
    p50_s: float
    p90_s: float
    truth_s: float


@styled()
def draw_quotes(pilots: Sequence[Quoted]) -> bytes:
    """Draw pilots in groups of their labels, all relative to P50."""
    from matplotlib.lines import Line2D

    figure = new_figure(0.9 + 0.075 * len(pilots), COLUMN_WIDTH_IN)
    axes = figure.subplots()
    labels = list(dict.fromkeys(pilot.label for pilot in pilots))
    middles = []
    row = 0
    for label in labels:
        own = sorted((pilot for pilot in pilots if pilot.label == label), key=lambda one: one.truth_s / one.p50_s)
        middles.append(row + (len(own) - 1) / 2)
        for pilot in own:
            is_under = pilot.truth_s <= pilot.p90_s
            axes.plot([1, pilot.p90_s / pilot.p50_s], [row, row], color=MUTED, linewidth=1.2, zorder=1)
            face = INK if is_under else "white"
            axes.plot(pilot.truth_s / pilot.p50_s, row, **DOT, markerfacecolor=face, zorder=2)
            row += 1
        row += 1
    bar_axis(axes, labels)
    axes.set_yticks(middles, labels)
    axes.set_ylim(row - 0.5, -1)
    axes.axvline(1, color=INK, linewidth=0.6)
    axes.set_xlabel("time over quoted P50")
    handles = [
        Line2D([], [], color=MUTED, linewidth=1.2, label="P50 to P90"),
        Line2D([], [], **DOT, label="truth"),
        Line2D([], [], **DOT, markerfacecolor="white", label="above P90"),
    ]
    legend_below(figure, handles)
    return png_bytes(figure)

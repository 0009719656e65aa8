"""Throughput of a full and a sparse KV cache by output length: published points, and the range that was simulated."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mosaic.figures.style import (
    INK,
    MUTED,
    PALETTE,
    fixed_axis,
    legend_below,
    new_figure,
    number_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND_ALPHA = 0.3


class Line(NamedTuple):
    """One quantity at several output lengths."""

    name: str
    output_tokens: Sequence[int]
    low: Sequence[float]
    high: Sequence[float]
    published: Sequence[float]


@styled()
def draw_sparse_throughput(throughputs: Sequence[Line], ratio: Line) -> "Figure":
    """Draw tokens per second above, and below them the ratio."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure = new_figure(3.3)
    above, below = figure.subplots(2, 1, sharex=True)
    for place, line in enumerate(throughputs):
        _draw(above, line, PALETTE[place])
        above.annotate(line.name, (line.output_tokens[-1], line.published[-1]), (-4, 13), textcoords="offset points",
                       ha="right", fontsize=7, color=PALETTE[place])  # fmt: skip
    above.set_ylabel("tokens/s")
    above.set_ylim(0, 1.2 * max(max(line.high) for line in throughputs))
    number_axis(above.yaxis)
    _draw(below, ratio, INK)
    below.set_ylabel(ratio.name)
    below.set_ylim(1, 1.08 * max(*ratio.high, *ratio.published))
    below.set_xlabel("output tokens of a request")
    fixed_axis(below.xaxis, ratio.output_tokens)
    band = Patch(facecolor=MUTED, alpha=BAND_ALPHA, label="simulated, range of what is assumed")
    dots = Line2D([], [], color=MUTED, marker="o", linestyle="none", label="published")
    legend_below(figure, [dots, band])
    return figure


def _draw(axes: "Axes", line: Line, colour: str) -> None:
    axes.fill_between(line.output_tokens, line.low, line.high, color=colour, alpha=BAND_ALPHA, linewidth=0)
    axes.plot(line.output_tokens, line.published, color=colour, marker="o", linestyle="none")


def line_of(name: str, values: Mapping[int, Sequence[float]], published: Mapping[int, float]) -> Line:
    """Take least and largest value at every output length."""
    tokens = sorted(values)
    lows, highs = [min(values[count]) for count in tokens], [max(values[count]) for count in tokens]
    return Line(name, tokens, lows, highs, [published[count] for count in tokens])

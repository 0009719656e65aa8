"""Prefill ahead of time: what it saves of one layer by output length, and what it changes by load."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mosaic.figures.style import DASH, INK, MUTED, PAGE_WIDTH_IN, PALETTE, fixed_axis, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """One quantity in per cent with its 95% interval; a dashed one is a variant of the one of the same name."""

    name: str
    is_dashed: bool
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@styled()
def draw_prefill_ahead(
    saved: Sequence[Curve], published_frac: tuple[float, float], changes: Sequence[Curve], rates: Sequence[str]
) -> "Figure":
    """Draw savings by output tokens with the published band on the left, changes by rate on the right."""
    figure = new_figure(2.7, PAGE_WIDTH_IN)
    left, right = figure.subplots(1, 2)
    low, high = (100 * frac for frac in published_frac)
    left.axhspan(low, high, color=MUTED, alpha=0.2, linewidth=0)
    left.text(max(saved[0].x), high, "published maximum, +- 5 points", fontsize=6, ha="right", va="bottom", color=MUTED)
    _lines(left, saved)
    left.set_xscale("log", base=2)
    fixed_axis(left.xaxis, [int(x) for x in saved[0].x])
    left.set_xlabel("output tokens of a call (fixed_tokens)")
    left.set_ylabel("time of the layer saved, %")
    left.set_ylim(0, None)
    left.legend(fontsize=6, title="solid: order knows nothing\ndashed: shortest first", title_fontsize=6)
    _lines(right, changes)
    right.axhline(0, color=INK, linewidth=0.6)
    right.set_xticks(range(len(rates)), rates)
    right.set_xlabel("questions per second")
    right.set_ylabel("change with prefill ahead, %")
    right.legend(fontsize=6, title="solid: the reader has a GPU\ndashed: it shares a writer's", title_fontsize=6)
    return figure


def _lines(axes: "Axes", curves: Sequence[Curve]) -> None:
    names = list(dict.fromkeys(curve.name for curve in curves))
    for curve in curves:
        colour = PALETTE[names.index(curve.name)]
        label = None if curve.is_dashed else curve.name
        style = DASH if curve.is_dashed else "-"
        axes.plot(curve.x, curve.mean, color=colour, linestyle=style, marker="o", markersize=2.5, label=label)
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)

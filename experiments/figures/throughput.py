"""Throughput against shard size: a panel per pool, a curve per expert with the 95% interval of its mean."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from experiments.figures.end_labels import label_ends
from mosaic.comparison.estimate import Estimate
from mosaic.figures.style import (
    MUTED,
    expert_colours,
    fixed_axis,
    legend_below,
    new_figure,
    number_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves: TypeAlias = Mapping[str, Mapping[str, Mapping[int, Estimate]]]
"""Output tokens per second by pool, expert and shard size, over sessions."""

PANEL_IN, AROUND_IN = 1.4, 0.35
BAND_ALPHA = 0.18


@styled()
def draw_throughput(curves: Curves) -> "Figure":
    """Draw every pool's experts, each named at the end of its curve; a band is the 95% interval of the mean."""
    from matplotlib.patches import Patch

    colours = expert_colours([name for experts in curves.values() for name in experts])
    figure = new_figure(AROUND_IN + PANEL_IN * len(curves))
    for place, (pool, experts) in enumerate(curves.items()):
        axes = figure.add_subplot(len(curves), 1, place + 1)
        _draw_panel(axes, experts, colours)
        axes.set_title(pool)
        axes.set_ylabel("output tok/s")
    axes.set_xlabel("shard size (calls of a session)")
    band = Patch(facecolor=MUTED, alpha=2 * BAND_ALPHA, label="95% interval of the mean over sessions")
    legend_below(figure, [band])
    return figure


def _draw_panel(axes: "Axes", experts: Mapping[str, Mapping[int, Estimate]], colours: Mapping[str, str]) -> None:
    top = 0.0
    for name, sizes in experts.items():
        axes.plot(list(sizes), [found.mean for found in sizes.values()], color=colours[name], marker="o", zorder=3)
        known = [(size, *ends) for size, found in sizes.items() if (ends := found.shown(least=0.0))]
        if known:
            at, lows, highs = zip(*known, strict=True)
            axes.fill_between(at, lows, highs, color=colours[name], alpha=BAND_ALPHA)
        top = max(top, *(found.mean for found in sizes.values()), *(high for _, _, high in known))
    shards = sorted({size for sizes in experts.values() for size in sizes})
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.9 * shards[0], 1.03 * shards[-1])
    axes.set_ylim(0, 1.06 * top)
    fixed_axis(axes.xaxis, shards[:: 1 if len(shards) < 6 else 2])
    number_axis(axes.yaxis)
    last = {name: (sizes[max(sizes)].mean, colours[name]) for name, sizes in experts.items()}
    label_ends(axes, last, PANEL_IN - 0.35)

"""What a budget of pages costs: loss and agreement, by which heads are protected."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mosaic.comparison.estimate import Estimate
from mosaic.figures.style import MARKERS, PALETTE, fixed_axis, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, Sequence[Estimate]]
"""By which heads are protected, along the budgets."""
SHIFT_FRAC = 0.04
"""Markers of two series stand beside each other."""


@styled()
def draw_kv_quality(budgets: Sequence[int], losses: Series, agreements: Series) -> "Figure":
    """Draw the NLL above the dense model's and the share of tokens that stay, with 95% intervals over texts."""
    from matplotlib.lines import Line2D

    figure = new_figure(3.2)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw(above, budgets, losses, 1.0)
    above.set_ylabel("NLL above dense\n(nats)")
    above.set_ylim(bottom=0)
    _draw(below, budgets, agreements, 100.0)
    below.set_ylabel("same top token\n(%)")
    below.set_ylim(top=100)
    below.set_xlabel("budget (pages of 16 tokens)")
    below.set_xscale("log", base=2)
    fixed_axis(below.xaxis, sorted(budgets))
    legend_below(
        figure,
        [
            Line2D(
                [], [], color=PALETTE[place], marker=MARKERS[place], linestyle="none", label=f"{name} heads unstable"
            )
            for place, name in enumerate(losses)
        ],
    )
    return figure


def _draw(axes: "Axes", budgets: Sequence[int], series: Series, scale: float) -> None:
    for place, (_, found) in enumerate(series.items()):
        at = [budget * (1 + SHIFT_FRAC * (2 * place - 1)) for budget in budgets]
        means = [scale * entry.mean for entry in found]
        ends = [entry.shown() or (entry.mean, entry.mean) for entry in found]
        down = [scale * (entry.mean - low) for entry, (low, _) in zip(found, ends, strict=True)]
        up = [scale * (high - entry.mean) for entry, (_, high) in zip(found, ends, strict=True)]
        axes.errorbar(
            at, means, yerr=[down, up], color=PALETTE[place], marker=MARKERS[place], linestyle="none", capsize=2
        )

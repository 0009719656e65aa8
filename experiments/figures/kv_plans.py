"""Plans that choose KV caches: the expert stage against the paper's, and what a gate shows of lost answers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.lab.estimate import Estimate
from experiments.lab.style import DASH, INK, MARKERS, MUTED, PALETTE, legend_below, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN = 0.2


@styled()
def draw_kv_plans(
    stages: Mapping[str, Estimate], falls: Mapping[str, Mapping[float, Estimate]], limits: Mapping[str, float]
) -> "Figure":
    """Draw two panels.

    Parameters
    ----------
    stages
        Seconds of the expert stage as a share of the paper's, by plan.
    falls
        By what is watched, how far it falls at each loss of right answers.
    limits
        Falls that one batch shows, by what is watched.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(1.9 + ROW_IN * len(stages) + 0.5)
    above, below = figure.subplots(2, 1, height_ratios=[ROW_IN * len(stages), 1.6])
    _draw_stages(above, stages)
    for place, (label, curve) in enumerate(falls.items()):
        means = [100 * found.mean for found in curve.values()]
        ends = [found.shown() or (found.mean, found.mean) for found in curve.values()]
        below.plot([100 * loss for loss in curve], means, color=PALETTE[place], marker=MARKERS[place])
        lows, highs = [100 * low for low, _ in ends], [100 * high for _, high in ends]
        below.fill_between([100 * loss for loss in curve], lows, highs, color=PALETTE[place], alpha=0.2)
        for watched, limit in limits.items():
            if watched.split()[0] == label.split()[0]:
                below.axhline(100 * limit, color=PALETTE[place], linestyle=DASH, linewidth=0.8)
    below.set_xscale("log")
    below.set_xlabel("right answers lost by sparse calls\nbeyond their budget (%)")
    below.set_ylabel("fall (points)")
    below.set_ylim(bottom=0)
    shown = [0.5, 1, 2, 5, 10, 20, 50]
    below.set_xticks(shown, [f"{loss:g}" for loss in shown])
    below.minorticks_off()
    lines = [
        Line2D([], [], color=PALETTE[place], marker=MARKERS[place], label=label) for place, label in enumerate(falls)
    ]
    legend_below(figure, [*lines, Line2D([], [], color=MUTED, linestyle=DASH, label="seen in one batch")])
    return figure


def _draw_stages(axes: "Axes", stages: Mapping[str, Estimate]) -> None:
    for place, found in enumerate(stages.values()):
        low, high = found.shown() or (found.mean, found.mean)
        axes.errorbar(
            [100 * found.mean], [place], xerr=[[100 * (found.mean - low)], [100 * (high - found.mean)]],
            color=PALETTE[0], marker="o", linestyle="none", capsize=2,
        )  # fmt: skip
    axes.axvline(100, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(stages)), list(stages))
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.set_xlabel("expert stage, % of the paper's ILP")

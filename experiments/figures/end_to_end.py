"""End-to-end wall time of both stages: the baseline and MOSAIC, as published and as simulated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic.figures.style import (
    INK,
    MUTED,
    PALETTE,
    bar_axis,
    beside,
    legend_below,
    new_figure,
    number_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR_IN, HEAD_IN, AROUND_IN = 0.13, 0.2, 0.5
EXPERTS, AGGREGATOR = PALETTE[0], PALETTE[1]
PALE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One wall of both stages, in seconds."""

    benchmark: str
    """As it is shown."""
    policy: str
    is_published: bool
    experts_s: float
    aggregator_s: float
    total_low_s: float | None = None
    """95% interval of the mean total; None: a single value."""
    total_high_s: float | None = None
    speedup: float | None = None
    """Over the baseline beside it."""

    @property
    def total_s(self) -> float:
        """Both stages."""
        return self.experts_s + self.aggregator_s


@styled()
def draw_end_to_end(bars: Sequence[Bar]) -> "Figure":
    """Draw the bars in their order, a panel per benchmark on one axis; published ones pale."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    groups = [[bar for bar in bars if bar.benchmark == name] for name in dict.fromkeys(bar.benchmark for bar in bars)]
    figure = new_figure(AROUND_IN + HEAD_IN * len(groups) + BAR_IN * len(bars))
    panels = figure.subplots(
        len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [len(group) for group in groups]}
    )[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        bar_axis(axes, [f"{bar.policy}, {'published' if bar.is_published else 'simulated'}" for bar in group])
        axes.set_title(group[0].benchmark)
        for place, bar in enumerate(group):
            _draw_bar(axes, place, bar)
    axes.set_xlim(0, 1.02 * max(max(bar.total_s, bar.total_high_s or 0.0) for bar in bars))
    number_axis(axes.xaxis)
    axes.set_xlabel("end-to-end wall time (s)")
    stages = (("experts", EXPERTS), ("aggregator", AGGREGATOR))
    handles = [
        Patch(
            facecolor=colour, alpha=PALE if is_pale else 1.0, label=f"{name}, {'published' if is_pale else 'simulated'}"
        )
        for is_pale in (True, False)
        for name, colour in stages
    ]
    interval = Line2D([], [], color=INK, linewidth=0.9, label="95% interval")
    legend_below(figure, [*handles, *([interval] if any(bar.total_low_s is not None for bar in bars) else [])])
    return figure


def end_to_end_rows(bars: Sequence[Bar]) -> list[tuple[object, ...]]:
    """The bars, with a head."""
    names = (
        "benchmark", "policy", "is_published", "experts_s", "aggregator_s", "total_s", "total_low_s", "total_high_s",
        "speedup",
    )  # fmt: skip
    return [names, *(tuple(getattr(bar, name) for name in names) for bar in bars)]


def _draw_bar(axes: "Axes", place: float, bar: Bar) -> None:
    alpha = PALE if bar.is_published else 1.0
    axes.barh(place, bar.experts_s, height=0.78, color=EXPERTS, alpha=alpha)
    axes.barh(place, bar.aggregator_s, left=bar.experts_s, height=0.78, color=AGGREGATOR, alpha=alpha)
    end_s = bar.total_s
    if bar.total_low_s is not None and bar.total_high_s is not None:
        axes.plot([max(0.0, bar.total_low_s), bar.total_high_s], [place, place], color=INK, linewidth=0.9)
        end_s = max(end_s, bar.total_high_s)
    speedup = "" if bar.speedup is None else f"  {bar.speedup:.2f}x"
    beside(axes, f"{bar.total_s:,.0f} s{speedup}", end_s, place, color=MUTED if bar.is_published else INK)

"""End-to-end wall time of both stages: the baseline and MOSAIC, as published and as simulated."""

from collections.abc import Sequence
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
    add_legend,
    new_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR_IN, GROUP_GAP_IN, HEAD_IN = 0.125, 0.08, 0.15
TOP_IN, BOTTOM_IN, LEFT_IN, RIGHT_IN = 0.2, 0.3, 1.08, 0.62
EXPERTS, AGGREGATOR = PALETTE[0], PALETTE[1]


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


def draw_end_to_end(bars: Sequence[Bar]) -> "Figure":
    """Draw the bars in their order, a block per benchmark; published ones pale."""
    places, heads, height = _layout(bars)
    height_in = TOP_IN + height + BOTTOM_IN
    figure = new_figure(height_in)
    axes = figure.add_axes(
        (
            LEFT_IN / COLUMN_WIDTH_IN,
            BOTTOM_IN / height_in,
            1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN,
            height / height_in,
        )
    )
    style_axes(axes)
    for place, bar in zip(places, bars, strict=True):
        _draw_bar(axes, place, bar)
    for place, benchmark in heads:
        axes.annotate(
            benchmark, (0, place), xycoords=("figure fraction", "data"), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=SMALL_PT, fontweight="bold", color=INK, annotation_clip=False,
        )  # fmt: skip
    labels = [f"{bar.policy}, {'published' if bar.is_published else 'simulated'}" for bar in bars]
    axes.set_yticks(places, labels, fontsize=SMALL_PT)
    _frame(axes, bars, height)
    _legend(figure, height_in)
    return figure


def end_to_end_rows(bars: Sequence[Bar]) -> list[tuple[object, ...]]:
    """The bars, with a head."""
    names = (
        "benchmark", "policy", "is_published", "experts_s", "aggregator_s", "total_s", "total_low_s", "total_high_s",
        "speedup",
    )  # fmt: skip
    return [names, *(tuple(getattr(bar, name) for name in names) for bar in bars)]


def _layout(bars: Sequence[Bar]) -> tuple[list[float], list[tuple[float, str]], float]:
    """Place bars and the heads of their blocks from the top, in inches."""
    places: list[float] = []
    heads: list[tuple[float, str]] = []
    at = 0.0
    for index, bar in enumerate(bars):
        if index == 0 or bars[index - 1].benchmark != bar.benchmark:
            at += GROUP_GAP_IN if heads else 0.0
            heads.append((at + HEAD_IN / 2, bar.benchmark))
            at += HEAD_IN
        places.append(at + BAR_IN / 2)
        at += BAR_IN
    return places, heads, at


def _draw_bar(axes: "Axes", place: float, bar: Bar) -> None:
    alpha = 0.4 if bar.is_published else 1.0
    size = {"height": 0.78 * BAR_IN, "alpha": alpha, "linewidth": 0}
    axes.barh(place, bar.experts_s, color=EXPERTS, **size)
    axes.barh(place, bar.aggregator_s, left=bar.experts_s, color=AGGREGATOR, **size)
    end_s = bar.total_s
    if bar.total_low_s is not None and bar.total_high_s is not None:
        axes.plot([bar.total_low_s, bar.total_high_s], [place, place], color=INK, linewidth=0.9)
        end_s = max(end_s, bar.total_high_s)
    speedup = "" if bar.speedup is None else f"  {bar.speedup:.2f}x"
    axes.annotate(
        f"{bar.total_s:,.0f} s{speedup}", (end_s, place), xytext=(2, 0), textcoords="offset points", va="center",
        fontsize=SMALL_PT, color=MUTED if bar.is_published else INK, annotation_clip=False,
    )  # fmt: skip


def _frame(axes: "Axes", bars: Sequence[Bar], height: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(height, 0)
    axes.set_xlim(0, 1.02 * max(max(bar.total_s, bar.total_high_s or 0.0) for bar in bars))
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(axis="x", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_xlabel("end-to-end wall time (s), mean and 95% interval", labelpad=1, fontsize=FONT_PT)


def _legend(figure: "Figure", height_in: float) -> None:
    from matplotlib.patches import Patch

    add_legend(
        figure,
        [Patch(facecolor=EXPERTS, label="experts"), Patch(facecolor=AGGREGATOR, label="aggregator")],
        loc="upper left",
        at=(LEFT_IN / COLUMN_WIDTH_IN, 1 - 0.03 / height_in),
    )

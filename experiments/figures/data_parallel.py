"""Two policies against each other, pool by pool: load, generate and idle per worker, which add up to the makespan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from experiments.analysis.pairing import t_interval
from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    GRID,
    INK,
    MUTED,
    SMALL_PT,
    add_legend,
    new_figure,
    style_axes,
)
from experiments.studies.paper_data import WorkerTimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Policies: TypeAlias = Mapping[str, Mapping[str, Sequence[WorkerTimes]]]
"""Runs by pool and policy (as they are shown), one per seed."""

BAR_IN, HEAD_IN, TICKS_IN, TOP_IN, LABEL_IN, LEGEND_IN = 0.16, 0.17, 0.17, 0.02, 0.13, 0.16
LEFT_IN, RIGHT_IN = 0.72, 0.78
BAR = 0.72
HATCH = "/" * 9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """Seconds per worker under one policy in one pool: means over workers and seeds, which add up to the makespan."""

    pool: str
    policy: str
    load_s: float
    generate_s: float
    makespan_s: float
    low_s: float | None
    """95% interval of the mean makespan; None: one seed."""
    high_s: float | None
    num_seeds: int

    @property
    def idle_s(self) -> float:
        """What is left."""
        return max(0.0, self.makespan_s - self.load_s - self.generate_s)

    @property
    def end_s(self) -> float:
        """Where the drawn bar ends."""
        return self.makespan_s if self.high_s is None else max(self.makespan_s, self.high_s)


def draw_data_parallel(pools: Policies) -> "Figure":
    """Draw a panel per pool, each with its own axis of seconds, and a bar per policy."""
    bars = _bars(pools)
    groups = [[bar for bar in bars if bar.pool == pool] for pool in dict.fromkeys(bar.pool for bar in bars)]
    plots_in = [BAR_IN * len(group) for group in groups]
    height_in = TOP_IN + (HEAD_IN + TICKS_IN) * len(groups) + sum(plots_in) + LABEL_IN + LEGEND_IN
    figure = new_figure(height_in)
    at_in = height_in - TOP_IN
    for group, plot_in in zip(groups, plots_in, strict=True):
        at_in -= HEAD_IN + plot_in
        width = 1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN
        axes = figure.add_axes((LEFT_IN / COLUMN_WIDTH_IN, at_in / height_in, width, plot_in / height_in))
        _draw_panel(axes, group, is_last=group is groups[-1])
        at_in -= TICKS_IN
    _draw_legend(figure, height_in)
    return figure


def data_parallel_rows(pools: Policies) -> list[tuple[object, ...]]:
    """The drawn values, with a head."""
    head = (
        "pool", "policy", "load_s_per_worker", "idle_s_per_worker", "generate_s_per_worker", "makespan_s",
        "makespan_low_s", "makespan_high_s", "num_seeds",
    )  # fmt: skip
    values = attrgetter(
        "pool", "policy", "load_s", "idle_s", "generate_s", "makespan_s", "low_s", "high_s", "num_seeds"
    )
    return [head, *map(values, _bars(pools))]


def _bars(pools: Policies) -> list[_Bar]:
    bars = []
    for pool, policies in pools.items():
        for policy, runs in policies.items():
            if not runs:
                raise ValueError(f"data parallel: {pool}.{policy} must have at least one run, got {runs!r}")
            walls_s = [times.makespan_s for times in runs]
            low_s, high_s = t_interval(walls_s)
            bars.append(
                _Bar(
                    pool=pool,
                    policy=policy,
                    load_s=fmean(fmean(times.load_s) for times in runs),
                    generate_s=fmean(fmean(times.generate_s) for times in runs),
                    makespan_s=fmean(walls_s),
                    low_s=low_s,
                    high_s=high_s,
                    num_seeds=len(runs),
                )
            )
    return bars


def _draw_panel(axes: "Axes", bars: Sequence[_Bar], *, is_last: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style_axes(axes)
    for place, bar in enumerate(bars):
        _draw_bar(axes, place, bar)
    axes.set_xlim(0, 1.02 * max(bar.end_s for bar in bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_yticks(range(len(bars)), [bar.policy for bar in bars], fontsize=SMALL_PT)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(axis="x", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    if is_last:
        axes.set_xlabel("seconds per worker, up to the makespan", labelpad=1)
    axes.annotate(
        bars[0].pool, (0, 1), xycoords="axes fraction", xytext=(72 * (0.05 - LEFT_IN), 2), textcoords="offset points",
        va="bottom", fontsize=SMALL_PT, fontweight="bold", color=INK, annotation_clip=False,
    )  # fmt: skip


def _draw_bar(axes: "Axes", place: int, bar: _Bar) -> None:
    axes.barh(place, bar.load_s, height=BAR, facecolor="white", edgecolor=MUTED, hatch=HATCH, linewidth=0.4)
    axes.barh(place, bar.generate_s, left=bar.load_s, height=BAR, color=MUTED, linewidth=0)
    axes.barh(
        place, bar.idle_s, left=bar.load_s + bar.generate_s, height=BAR, facecolor="white", edgecolor=MUTED,
        linewidth=0.4,
    )  # fmt: skip
    if bar.low_s is not None and bar.high_s is not None:
        axes.errorbar(
            bar.makespan_s, place, xerr=[[bar.makespan_s - bar.low_s], [bar.high_s - bar.makespan_s]], color=INK,
            linewidth=0.9, capsize=1.6, capthick=0.9, zorder=4,
        )  # fmt: skip
    share = 100 * bar.idle_s / bar.makespan_s
    axes.annotate(
        f"{bar.makespan_s:,.0f} s, idle {share:.0f}%", (bar.end_s, place), xytext=(3, 0), textcoords="offset points",
        va="center", fontsize=SMALL_PT, color=INK, annotation_clip=False,
    )  # fmt: skip


def _draw_legend(figure: "Figure", height_in: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor="white", edgecolor=MUTED, hatch=HATCH, linewidth=0.4, label="load"),
        Patch(facecolor=MUTED, linewidth=0, label="generate"),
        Patch(facecolor="white", edgecolor=MUTED, linewidth=0.4, label="idle"),
        Line2D([], [], color=INK, linewidth=0.9, label="makespan, 95% interval"),
    ]
    add_legend(
        figure,
        handles,
        loc="lower center",
        at=(0.5, 0.02 / height_in),
        handlelength=1.4,
        columnspacing=0.9,
        handletextpad=0.4,
    )

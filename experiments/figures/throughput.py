"""Throughput against shard size: a panel per pool, a curve per expert with the 95% interval of its mean."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    GRID,
    INK,
    SMALL_PT,
    expert_colours,
    new_figure,
    style_axes,
)
from experiments.studies.throughput import SizeMean, ThroughputPoint, size_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves: TypeAlias = Mapping[str, Mapping[str, Sequence[ThroughputPoint]]]
"""Sessions by pool and expert."""

PLOT_IN, HEAD_IN, TICKS_IN, TOP_IN, LABEL_IN = 1.15, 0.17, 0.17, 0.02, 0.15
LEFT_IN, RIGHT_IN = 0.5, 0.55
NAME_IN = 1.3 * SMALL_PT / 72
"""Least distance of two names."""


def draw_throughput(curves: Curves) -> "Figure":
    """Draw every pool's experts, each named at the end of its curve."""
    colours = expert_colours([name for experts in curves.values() for name in experts])
    height_in = TOP_IN + (HEAD_IN + PLOT_IN + TICKS_IN) * len(curves) + LABEL_IN
    figure = new_figure(height_in)
    at_in = height_in - TOP_IN
    for pool, experts in curves.items():
        at_in -= HEAD_IN + PLOT_IN
        width = 1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN
        axes = figure.add_axes((LEFT_IN / COLUMN_WIDTH_IN, at_in / height_in, width, PLOT_IN / height_in))
        means = {name: size_means(points) for name, points in experts.items()}
        _draw_panel(axes, pool, means, colours)
        at_in -= TICKS_IN
    axes.set_xlabel("shard size (calls of a session)", labelpad=1)
    return figure


def throughput_rows(curves: Curves) -> list[tuple[object, ...]]:
    """Every session measured, those with a limit relaxed among them, with a head."""
    names = tuple(ThroughputPoint.__dataclass_fields__)
    rows = [
        (pool, *(getattr(point, name) for name in names))
        for pool, experts in curves.items()
        for points in experts.values()
        for point in points
    ]
    return [("pool", *names), *rows]


def _draw_panel(axes: "Axes", pool: str, means: Mapping[str, Sequence[SizeMean]], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    style_axes(axes)
    for name, sizes in means.items():
        _draw_curve(axes, sizes, colours[name])
    shards = sorted({size.shard_size for sizes in means.values() for size in sizes})
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.9 * shards[0], 1.03 * shards[-1])
    axes.set_ylim(0, 1.06 * max(size.high_tok_per_s or size.output_tok_per_s for s in means.values() for size in s))
    axes.set_xticks(shards[:: 1 if len(shards) < 6 else 2], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_formatter(thousands)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel("output tok/s", labelpad=2)
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    _name_curves(axes, {name: sizes[-1].output_tok_per_s for name, sizes in means.items()}, colours)
    axes.annotate(
        pool, (0, 1), xycoords="axes fraction", xytext=(72 * (0.05 - LEFT_IN), 3), textcoords="offset points",
        va="bottom", fontsize=SMALL_PT, fontweight="bold", color=INK, annotation_clip=False,
    )  # fmt: skip


def _draw_curve(axes: "Axes", sizes: Sequence[SizeMean], colour: str) -> None:
    shards = [size.shard_size for size in sizes]
    axes.plot(
        shards, [size.output_tok_per_s for size in sizes], color=colour, linewidth=1.1, marker="o", markersize=2.2,
        markeredgewidth=0, zorder=3,
    )  # fmt: skip
    bands = [(size.low_tok_per_s, size.high_tok_per_s) for size in sizes]
    known = [(shard, low, high) for shard, (low, high) in zip(shards, bands, strict=True) if low is not None]
    if known:
        axes.fill_between(*zip(*known, strict=True), color=colour, alpha=0.18, linewidth=0)


def _name_curves(axes: "Axes", ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Write the names beside the ends, pushed apart where ends are close and joined to them by a thin line."""
    scale = PLOT_IN / axes.get_ylim()[1]
    places = spread([value * scale for value in ends.values()], NAME_IN, PLOT_IN)
    for (name, end), place in zip(ends.items(), places, strict=True):
        axes.annotate(
            name, (1, end), xycoords=("axes fraction", "data"), xytext=(9, 72 * (place - end * scale)),
            textcoords="offset points", va="center", fontsize=SMALL_PT, color=colours[name], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(places: Sequence[float], distance: float, top: float) -> list[float]:
    """Move places apart to a least distance, in their order, as little as it takes from the lowest up.

    Those that would end above ``top`` are moved down again.

    Examples
    --------
    >>> spread([1.0, 5.0, 1.5], 2.0, 6.0)
    [1.0, 5.0, 3.0]
    >>> spread([5.0, 5.5], 2.0, 6.0)
    [4.0, 6.0]
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for below, index in pairwise(order):
        moved[index] = max(moved[index], moved[below] + distance)
    limit = top
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - distance
    return moved

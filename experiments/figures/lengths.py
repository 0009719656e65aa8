"""Output lengths: a panel per pool, a row per expert, quantiles on a logarithmic axis, means written beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    GRID,
    INK,
    MUTED,
    SMALL_PT,
    add_legend,
    expert_colours,
    new_figure,
    style_axes,
)
from mosaic.report.metrics import quantile

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lengths: TypeAlias = Mapping[str, Mapping[str, Sequence[int]]]
"""Output tokens of every call, by pool and expert."""
Means: TypeAlias = Mapping[str, Mapping[str, float]]
"""Mean output tokens, by pool and expert."""

ROW_IN, HEAD_IN, AXIS_IN, LEGEND_IN = 0.135, 0.17, 0.3, 0.16
LEFT_IN, RIGHT_IN, TOP_IN = 0.5, 0.74, 0.02
BOX = 0.62
"""Height of a box; a row is 1 high."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COLUMNS_IN = (0.36, 0.7)
"""Right ends of the two columns of means, from the axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What is drawn of one expert in one pool, in tokens."""

    pool: str
    expert: str
    num_calls: int
    mean: float
    quantiles: tuple[float, ...]
    longest: int
    published: float | None


def draw_lengths(lengths: Lengths, published: Means | None = None) -> "Figure":
    """Draw the lengths of every pool and expert in their order; published means are marked where there are any."""
    rows = _rows(lengths, published or {})
    colours = expert_colours([row.expert for row in rows])
    pools = [[row for row in rows if row.pool == pool] for pool in dict.fromkeys(row.pool for row in rows)]
    height_in = TOP_IN + HEAD_IN * len(pools) + ROW_IN * len(rows) + AXIS_IN + LEGEND_IN
    figure = new_figure(height_in)
    limits = _limits(rows)
    at_in = height_in - TOP_IN
    for group in pools:
        at_in -= HEAD_IN + ROW_IN * len(group)
        axes = figure.add_axes(
            (
                LEFT_IN / COLUMN_WIDTH_IN,
                at_in / height_in,
                1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN,
                ROW_IN * len(group) / height_in,
            )
        )
        _draw_panel(axes, group, colours, limits, is_last=group is pools[-1])
    _draw_legend(figure, height_in, any(row.published is not None for row in rows))
    return figure


def length_rows(lengths: Lengths, published: Means | None = None) -> list[tuple[object, ...]]:
    """The drawn values, with a head; missing is None."""
    names = tuple(f"p{round(100 * q)}_tokens" for q in QUANTILES)
    head = ("pool", "expert", "num_calls", "mean_tokens", *names, "max_tokens", "published_mean_tokens")
    rows = [
        (row.pool, row.expert, row.num_calls, row.mean, *row.quantiles, row.longest, row.published)
        for row in _rows(lengths, published or {})
    ]
    return [head, *rows]


def _rows(lengths: Lengths, published: Means) -> list[_Row]:
    rows = []
    for pool, by_expert in lengths.items():
        for expert, tokens in by_expert.items():
            if not tokens:
                raise ValueError(f"lengths: {pool}.{expert} must have at least one call, got {tokens!r}")
            found = tuple(quantile(tokens, q) for q in QUANTILES)
            rows.append(
                _Row(
                    pool=pool,
                    expert=expert,
                    num_calls=len(tokens),
                    mean=sum(tokens) / len(tokens),
                    quantiles=tuple(value for value in found if value is not None),
                    longest=max(tokens),
                    published=published.get(pool, {}).get(expert),
                )
            )
    return rows


def _limits(rows: Sequence[_Row]) -> tuple[float, float]:
    return 0.8 * min((row.quantiles[0] for row in rows), default=1.0), 1.25 * max(
        (row.longest for row in rows), default=10
    )


def _draw_panel(
    axes: "Axes", rows: Sequence[_Row], colours: Mapping[str, str], limits: tuple[float, float], *, is_last: bool
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    style_axes(axes)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for place, row in enumerate(rows):
        _draw_row(axes, place, row, colours[row.expert])
    axes.set_yticks(range(len(rows)), [row.expert for row in rows], fontsize=SMALL_PT)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}") if is_last else NullFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=1.2, width=0.4, color=MUTED)
    axes.grid(axis="x", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    if is_last:
        axes.set_xlabel("output tokens of a call", labelpad=1)
    _write(axes, rows[0].pool, (-LEFT_IN + 0.05, 0.03), ha="left", weight="bold", at=(0, 1))
    _write(axes, "mean", (COLUMNS_IN[0], 0.03), at=(1, 1), colour=MUTED)
    if any(row.published is not None for row in rows):
        _write(axes, "publ.", (COLUMNS_IN[1], 0.03), at=(1, 1), colour=MUTED)


def _draw_row(axes: "Axes", place: int, row: _Row, colour: str) -> None:
    from matplotlib.patches import Rectangle

    low, first, median, third, high = row.quantiles
    axes.plot([low, high], [place, place], color=colour, linewidth=0.9, solid_capstyle="butt")
    axes.add_patch(
        Rectangle(
            (first, place - BOX / 2), third - first, BOX, facecolor=colour, edgecolor="none", alpha=0.55, zorder=2
        )
    )
    axes.plot([median, median], [place - BOX / 2, place + BOX / 2], color=colour, linewidth=1.2, solid_capstyle="butt")
    axes.plot([row.longest], [place], ".", color=colour, markersize=2.5, markeredgewidth=0)
    if row.published is not None:
        axes.plot(
            [row.published], [place], "o", markersize=4.6, markerfacecolor="none", markeredgecolor=INK,
            markeredgewidth=0.6, zorder=4,
        )  # fmt: skip
    axes.plot([row.mean], [place], "D", color=INK, markersize=2.4, markeredgewidth=0, zorder=5)
    _write(axes, f"{row.mean:,.0f}", (COLUMNS_IN[0], 0), at=(1, place), va="center")
    if row.published is not None:
        _write(axes, f"{row.published:,.0f}", (COLUMNS_IN[1], 0), at=(1, place), va="center", colour=MUTED)


def _write(
    axes: "Axes",
    text: str,
    offset_in: tuple[float, float],
    *,
    at: tuple[float, float],
    ha: str = "right",
    va: str = "bottom",
    weight: str = "normal",
    colour: str = INK,
) -> None:
    """Write beside the axes: ``at`` is a corner of them, or with ``va="center"`` a row at their side."""
    axes.annotate(
        text,
        at,
        xycoords=("axes fraction", "data") if va == "center" else "axes fraction",
        xytext=(72 * offset_in[0], 72 * offset_in[1]),
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=SMALL_PT,
        fontweight=weight,
        color=colour,
        annotation_clip=False,
    )


def _draw_legend(figure: "Figure", height_in: float, has_published: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Artist] = [
        Patch(facecolor=MUTED, alpha=0.55, linewidth=0, label="middle half"),
        Line2D([], [], color=MUTED, linewidth=0.9, label="5 to 95%"),
        Line2D([], [], color=MUTED, linestyle="", marker=".", markersize=3, label="longest"),
        Line2D([], [], color=INK, linestyle="", marker="D", markersize=2.4, label="mean"),
    ]
    if has_published:
        handles.append(
            Line2D(
                [], [], linestyle="", marker="o", markersize=4.6, markerfacecolor="none", markeredgecolor=INK,
                markeredgewidth=0.6, label="published mean",
            )
        )  # fmt: skip
    add_legend(
        figure,
        handles,
        loc="lower center",
        at=(0.5, 0.02 / height_in),
        handlelength=1.2,
        handleheight=0.7,
        columnspacing=0.9,
        handletextpad=0.4,
    )

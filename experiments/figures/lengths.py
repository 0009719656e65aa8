"""Output lengths: a panel per pool, a row per expert, quantiles on a logarithmic axis, means written beside them."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from mosaic.figures.style import (
    INK,
    MUTED,
    SMALL_PT,
    bar_axis,
    expert_colours,
    legend_below,
    new_figure,
    styled,
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

ROW_IN, HEAD_IN, AROUND_IN = 0.135, 0.2, 0.45
BOX = 0.62
"""Height of a box; a row is 1 high."""
BOX_ALPHA = 0.55
Row: TypeAlias = dict[str, Any]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COLUMNS_PT = (26, 50)
"""Right ends of the two columns of means, from the axes."""
MEAN: dict[str, Any] = {"linestyle": "", "marker": "D", "color": INK, "markersize": 2.4}
PUBLISHED: dict[str, Any] = {
    "linestyle": "", "marker": "o", "markersize": 4.6, "markerfacecolor": "none", "markeredgecolor": INK,
    "markeredgewidth": 0.6,
}  # fmt: skip


@styled()
def draw_lengths(lengths: Lengths, published: Means | None = None) -> "Figure":
    """Draw the lengths of every pool and expert in their order; published means are marked where there are any."""
    rows = _rows(lengths, published or {})
    colours = expert_colours([row["expert"] for row in rows])
    pools = [[row for row in rows if row["pool"] == pool] for pool in dict.fromkeys(row["pool"] for row in rows)]
    figure = new_figure(AROUND_IN + HEAD_IN * len(pools) + ROW_IN * len(rows))
    panels = figure.subplots(
        len(pools), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [len(group) for group in pools]}
    )[:, 0]
    for axes, group in zip(panels, pools, strict=True):
        _draw_panel(axes, group, colours)
    axes.set_xlim(0.8 * min(row["p5_tokens"] for row in rows), 1.25 * max(row["max_tokens"] for row in rows))
    axes.set_xlabel("output tokens of a call")
    legend_below(figure, _handles(any(row["published_mean_tokens"] is not None for row in rows)))
    return figure


def length_rows(lengths: Lengths, published: Means | None = None) -> list[tuple[object, ...]]:
    """The drawn values, with a head; missing is None."""
    rows = _rows(lengths, published or {})
    return [tuple(rows[0]), *(tuple(row.values()) for row in rows)]


def _rows(lengths: Lengths, published: Means) -> list[Row]:
    """Measure every expert of every pool, in tokens."""
    rows = []
    for pool, by_expert in lengths.items():
        for expert, tokens in by_expert.items():
            if not tokens:
                raise ValueError(f"lengths: {pool}.{expert} must have at least one call, got {tokens!r}")
            row: Row = {"pool": pool, "expert": expert, "num_calls": len(tokens), "mean_tokens": fmean(tokens)}
            row |= {f"p{round(100 * q)}_tokens": quantile(tokens, q) for q in QUANTILES}
            row |= {"max_tokens": max(tokens), "published_mean_tokens": published.get(pool, {}).get(expert)}
            rows.append(row)
    return rows


def _draw_panel(axes: "Axes", rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    bar_axis(axes, [row["expert"] for row in rows])
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(rows[0]["pool"])
    _write(
        axes, ("mean", "publ." if any(row["published_mean_tokens"] for row in rows) else ""), 1.0, MUTED, at_head=True
    )
    for place, row in enumerate(rows):
        _draw_row(axes, place, row, colours[row["expert"]])
        _write(
            axes,
            (
                f"{row['mean_tokens']:,.0f}",
                f"{row['published_mean_tokens']:,.0f}" if row["published_mean_tokens"] else "",
            ),
            place,
            INK,
        )


def _write(axes: "Axes", texts: Sequence[str], place: float, colour: str, *, at_head: bool = False) -> None:
    """Write a line of the two columns on the right."""
    for text, right_pt, own in zip(texts, COLUMNS_PT, (colour, MUTED), strict=True):
        if text:
            axes.annotate(
                text, (1, place), (right_pt, 3 if at_head else 0), textcoords="offset points",
                xycoords="axes fraction" if at_head else ("axes fraction", "data"), ha="right",
                va="bottom" if at_head else "center", fontsize=SMALL_PT, color=own, annotation_clip=False,
            )  # fmt: skip


def _draw_row(axes: "Axes", place: int, row: Row, colour: str) -> None:
    low, first, median, third, high = (row[f"p{round(100 * q)}_tokens"] for q in QUANTILES)
    box = [place - BOX / 2, place + BOX / 2]
    axes.plot([low, high], [place, place], color=colour, linewidth=0.9, solid_capstyle="butt")
    axes.fill_betweenx(box, first, third, color=colour, alpha=BOX_ALPHA, zorder=2)
    axes.plot([median, median], box, color=colour, linewidth=1.2, solid_capstyle="butt")
    axes.plot([row["max_tokens"]], [place], ".", color=colour, markersize=2.5)
    if row["published_mean_tokens"] is not None:
        axes.plot([row["published_mean_tokens"]], [place], zorder=4, **PUBLISHED)
    axes.plot([row["mean_tokens"]], [place], zorder=5, **MEAN)


def _handles(has_published: bool) -> "list[Artist]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    upright: dict[str, Any] = {"linestyle": "", "marker": "|", "markersize": 5, "markeredgewidth": 1.2}
    handles: list[Artist] = [
        Patch(facecolor=MUTED, alpha=BOX_ALPHA, label="middle half"),
        Line2D([], [], color=MUTED, label="median", **upright),
        Line2D([], [], color=MUTED, linewidth=0.9, label="5 to 95%"),
        Line2D([], [], color=MUTED, linestyle="", marker=".", markersize=2.5, label="longest"),
        Line2D([], [], label="mean", **MEAN),
    ]
    return [*handles, *([Line2D([], [], label="published mean", **PUBLISHED)] if has_published else [])]

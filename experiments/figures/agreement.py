"""Output length by agreement: how many tokens the questions cost on which the three experts agree more or less."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

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
from mosaic.report.metrics import quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Buckets: TypeAlias = Mapping[str, Sequence[float]]
"""Mean output tokens of each question's calls, by agreement."""

HEIGHT_IN, TOP_IN, BOTTOM_IN = 2.05, 0.08, 0.64
LEFT_IN, VIOLIN_IN, BETWEEN_IN, ECDF_IN = 0.56, 1.3, 0.45, 1.0
LINE_PT = 1.25 * SMALL_PT
SHADES = ("#b8b8b8", "#8a8a8a", "#4a4a4a")
"""Greys, since colours are the experts': the darker, the less agreement."""
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1)))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_DENSITY_POINTS = 128


def draw_agreement(buckets: Buckets, published: Mapping[str, float] | None = None) -> "Figure":
    """Draw violins beside the cumulative shares; means are marked, published ones where there are any.

    Raises
    ------
    ValueError
        If there are more buckets than shades, or none has a question.
    """
    if len(buckets) > len(SHADES) or not any(buckets.values()):
        sizes = {name: len(values) for name, values in buckets.items()}
        raise ValueError(f"agreement: buckets must be 1 to {len(SHADES)}, not all empty, got {sizes}")
    published = published or {}
    figure = new_figure(HEIGHT_IN)
    height = (HEIGHT_IN - TOP_IN - BOTTOM_IN) / HEIGHT_IN
    violins, shares = (
        figure.add_axes((left / COLUMN_WIDTH_IN, BOTTOM_IN / HEIGHT_IN, width / COLUMN_WIDTH_IN, height))
        for left, width in ((LEFT_IN, VIOLIN_IN), (LEFT_IN + VIOLIN_IN + BETWEEN_IN, ECDF_IN))
    )
    _draw_violins(violins, buckets, published)
    _draw_shares(shares, buckets)
    _draw_legend(figure, has_published=bool(published.keys() & buckets.keys()))
    return figure


def agreement_rows(buckets: Buckets, published: Mapping[str, float] | None = None) -> list[tuple[object, ...]]:
    """A row per bucket, with a head; missing is None."""
    names = tuple(f"p{round(100 * q)}_tokens" for q in QUANTILES)
    rows = [
        (
            name,
            len(values),
            fmean(values) if values else None,
            (published or {}).get(name),
            *(quantile(values, q) for q in QUANTILES),
        )
        for name, values in buckets.items()
    ]
    return [("agreement", "num_questions", "mean_tokens", "published_mean_tokens", *names), *rows]


def density(log_tokens: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Estimate a density by Gaussian kernels of Scott's width.

    Returns
    -------
    tuple of np.ndarray
        Points between the least and the greatest value, and the density there relative to its peak; (num_points,) both.
    """
    values = np.asarray(log_tokens)
    width = float(values.std()) * len(values) ** -0.2 or 0.05
    points = np.linspace(values.min(), values.max(), NUM_DENSITY_POINTS)
    heights = np.exp(-0.5 * ((points[:, None] - values[None, :]) / width) ** 2).sum(axis=1)
    return points, heights / heights.max()


def _draw_violins(axes: "Axes", buckets: Buckets, published: Mapping[str, float]) -> None:
    style_axes(axes)
    axes.set_yscale("log")
    for place, ((name, values), shade) in enumerate(zip(buckets.items(), SHADES, strict=False)):
        if not values:
            continue
        points, widths = density(np.log(values).tolist())
        axes.fill_betweenx(np.exp(points), place - 0.4 * widths, place + 0.4 * widths, color=shade, linewidth=0)
        low, high = quantile(values, 0.25), quantile(values, 0.75)
        axes.plot([place, place], [low, high], color="white", linewidth=2.2, solid_capstyle="butt")
        if name in published:
            axes.plot(
                [place], [published[name]], "o", markersize=5, markerfacecolor="none", markeredgecolor=INK,
                markeredgewidth=0.7, zorder=4,
            )  # fmt: skip
        axes.plot([place], [fmean(values)], "D", color=INK, markersize=2.6, markeredgewidth=0, zorder=5)
    _log_ticks(axes.yaxis)
    axes.set_ylabel("tokens per call", labelpad=1)
    axes.set_xlim(-0.5, len(buckets) - 0.5)
    axes.set_xticks(range(len(buckets)), list(buckets))
    axes.tick_params(axis="x", length=0)
    _write_numbers(axes, buckets, published)
    axes.grid(axis="y", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)


def _write_numbers(axes: "Axes", buckets: Buckets, published: Mapping[str, float]) -> None:
    """Write the numbers of each bucket below its name, a line each."""
    lines = {
        "questions": [f"{len(values):,}" for values in buckets.values()],
        "mean": [f"{fmean(values):,.0f}" if values else "" for values in buckets.values()],
    }
    if published.keys() & buckets.keys():
        lines["publ. mean"] = [f"{published[name]:,.0f}" if name in published else "" for name in buckets]
    look = {"textcoords": "offset points", "va": "top", "fontsize": SMALL_PT, "annotation_clip": False}
    for number, (head, texts) in enumerate(lines.items()):
        down_pt = -11.0 - number * LINE_PT
        axes.annotate(head, (0, 0), xycoords="axes fraction", xytext=(-2, down_pt), ha="right", color=MUTED, **look)
        for place, text in enumerate(texts):
            axes.annotate(
                text, (place, 0), xycoords=("data", "axes fraction"), xytext=(0, down_pt), ha="center", color=INK,
                **look,
            )  # fmt: skip


def _draw_shares(axes: "Axes", buckets: Buckets) -> None:
    style_axes(axes)
    axes.set_xscale("log")
    for (name, values), shade, dash in zip(buckets.items(), SHADES, DASHES, strict=False):
        if values:
            ordered = sorted(values)
            shares = [100 * (place + 1) / len(ordered) for place in range(len(ordered))]
            axes.step(ordered, shares, where="post", color=shade, linestyle=dash, linewidth=1.2, label=name)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100])
    _log_ticks(axes.xaxis)
    axes.set_ylabel("questions below (%)", labelpad=1)
    axes.set_xlabel("tokens per call", labelpad=1)
    axes.legend(
        loc="lower right", fontsize=SMALL_PT, frameon=False, borderpad=0, borderaxespad=0.2, handlelength=1.6,
        labelspacing=0.2, handletextpad=0.4,
    )  # fmt: skip
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)


def _log_ticks(axis: "Axis") -> None:
    """Mark decades, thousands as k: the axes are narrow."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=1.2, width=0.4, color=MUTED)


def _draw_legend(figure: "Figure", *, has_published: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor="white", edgecolor=MUTED, linewidth=0.4, label="middle half of the questions"),
        Line2D([], [], color=INK, linestyle="", marker="D", markersize=2.6, label="mean"),
    ]
    if has_published:
        handles.append(
            Line2D(
                [], [], linestyle="", marker="o", markersize=5, markerfacecolor="none", markeredgecolor=INK,
                markeredgewidth=0.7, label="published mean",
            )
        )  # fmt: skip
    add_legend(
        figure,
        handles,
        loc="lower center",
        at=(0.5, 0.02 / HEIGHT_IN),
        handlelength=1.2,
        handleheight=0.7,
        handletextpad=0.4,
    )

"""Output length by agreement: how many tokens the questions cost on which the three experts agree more or less."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mosaic.figures.style import INK, MUTED, SMALL_PT, legend_below, new_figure, styled
from mosaic.report.metrics import quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Buckets: TypeAlias = Mapping[str, Sequence[float]]
"""Mean output tokens of each question's calls, by agreement."""
Floats: TypeAlias = npt.NDArray[np.float64]

HEIGHT_IN = 2.1
SHADES = ("#c4c4c4", "#8f8f8f", "#4a4a4a")
"""Greys, since colours are the experts': the darker, the less agreement."""
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1)))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_DENSITY_POINTS = 128
HALF: dict[str, Any] = {"color": "#0072b2", "linewidth": 2.0, "solid_capstyle": "butt"}
MEAN: dict[str, Any] = {
    "linestyle": "", "marker": "D", "color": "white", "markersize": 3.0, "markeredgecolor": INK, "markeredgewidth": 0.6,
}  # fmt: skip
PUBLISHED: dict[str, Any] = MEAN | {"marker": "o", "markersize": 5.5, "markerfacecolor": "none"}
"""One look in the plot and in the legend."""


@styled()
def draw_agreement(buckets: Buckets, published: Mapping[str, float] | None = None) -> "Figure":
    """Draw violins beside the cumulative shares; means are marked, published ones where there are any.

    Raises
    ------
    ValueError
        If there are more buckets than shades, or none has a question.
    """
    from matplotlib.lines import Line2D

    if len(buckets) > len(SHADES) or not any(buckets.values()):
        sizes = {name: len(values) for name, values in buckets.items()}
        raise ValueError(f"agreement: buckets must be 1 to {len(SHADES)}, not all empty, got {sizes}")
    known = {name: mean for name, mean in (published or {}).items() if name in buckets}
    figure = new_figure(HEIGHT_IN)
    violins, shares = figure.subplots(1, 2, width_ratios=(1.3, 1))
    _draw_violins(violins, buckets, known)
    _draw_shares(shares, buckets)
    handles = [Line2D([], [], label="middle half of the questions", **HALF), Line2D([], [], label="mean", **MEAN)]
    legend_below(figure, [*handles, *([Line2D([], [], label="published mean", **PUBLISHED)] if known else [])])
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


def density(log_tokens: Sequence[float]) -> tuple[Floats, Floats]:
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
    axes.set_yscale("log")
    for place, ((name, values), shade) in enumerate(zip(buckets.items(), SHADES, strict=False)):
        if not values:
            continue
        points, widths = density(np.log(values).tolist())
        axes.fill_betweenx(np.exp(points), place - 0.4 * widths, place + 0.4 * widths, color=shade)
        axes.plot([place, place], np.quantile(values, (0.25, 0.75)), **HALF)
        if name in published:
            axes.plot([place], [published[name]], zorder=4, **PUBLISHED)
        axes.plot([place], [fmean(values)], zorder=5, **MEAN)
    _log_ticks(axes.yaxis)
    axes.set_ylabel("output tokens of a call")
    axes.set_xlim(-0.5, len(buckets) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    means = {name: f"{fmean(values):,.0f}" if values else "" for name, values in buckets.items()}
    heads, cells = ["questions", "mean"], {name: [f"{len(buckets[name]):,}", means[name]] for name in buckets}
    if published:
        heads.append("publ. mean")
        cells = {name: [*own, f"{published[name]:,.0f}" if name in published else ""] for name, own in cells.items()}
    axes.set_xticks(range(len(buckets)), ["\n".join([name, *own]) for name, own in cells.items()])
    axes.annotate(
        "\n".join(["", *heads]), (0, 0), (-3, -4), xycoords="axes fraction", textcoords="offset points",
        ha="right", va="top", multialignment="right", fontsize=SMALL_PT, color=MUTED,
    )  # fmt: skip


def _draw_shares(axes: "Axes", buckets: Buckets) -> None:
    axes.set_xscale("log")
    for (name, values), shade, dash in zip(buckets.items(), SHADES, DASHES, strict=False):
        if values:
            shares = 100 * (np.arange(len(values)) + 1) / len(values)
            axes.step(sorted(values), shares, where="post", color=shade, linestyle=dash, label=name)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100])
    _log_ticks(axes.xaxis)
    axes.set_ylabel("questions below (%)")
    axes.set_xlabel("output tokens of a call")
    axes.legend(loc="lower right")


def _log_ticks(axis: "Axis") -> None:
    """Mark decades, thousands as k: the axes are narrow."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())

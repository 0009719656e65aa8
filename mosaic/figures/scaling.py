"""Time against the number of GPUs: a panel per world, a line per policy with its 95% interval."""

from typing import TYPE_CHECKING

from mosaic.comparison.pairing import METRICS, estimate_of
from mosaic.figures.style import (
    INK,
    fixed_axis,
    legend_below,
    line_looks,
    log_axis,
    new_figure,
    png_bytes,
    styled,
)

if TYPE_CHECKING:
    import polars as pl

PANEL_IN, ROW_IN, AROUND_IN = 1.45, 0.12, 0.2


@styled()
def draw_scaling(scaling: "pl.DataFrame", metric: str) -> bytes:
    """Draw the time of every policy that was run on several numbers of workers as a PNG of one column's width."""
    from matplotlib.lines import Line2D

    worlds = scaling["world"].unique(maintain_order=True).to_list()
    policies = scaling.select("policy", "scheduler").unique(maintain_order=True).rows()
    looks = line_looks(*map(list, zip(*policies, strict=True)))
    figure = new_figure(AROUND_IN + PANEL_IN * len(worlds) + ROW_IN * len(policies))
    for place, world in enumerate(worlds):
        axes = figure.add_subplot(len(worlds), 1, place + 1)
        for policy, look in looks.items():
            rows = [row for row in scaling.to_dicts() if (row["world"], row["policy"]) == (world, policy)]
            numbers = [row["num_workers"] for row in rows]
            ends = [(n, estimate_of(row, "time_s").shown(least=0.0)) for n, row in zip(numbers, rows, strict=True)]
            axes.vlines(
                [n for n, end in ends if end], [end[0] for _, end in ends if end], [end[1] for _, end in ends if end],
                color=look["color"], linewidth=2.0, alpha=0.3,
            )  # fmt: skip
            axes.plot(numbers, [row["time_s"] for row in rows], **look)
        axes.set_xscale("log")
        fixed_axis(axes.xaxis, sorted(set(scaling["num_workers"])))
        axes.set_yscale("log")
        log_axis(axes.yaxis)
        axes.set_title(world)
        axes.set_ylabel(f"{METRICS[metric]} (s)")
    axes.set_xlabel("GPUs")
    axes.xaxis.label.set_color(INK)
    legend_below(figure, [Line2D([], [], label=policy, **look) for policy, look in looks.items()])
    return png_bytes(figure)

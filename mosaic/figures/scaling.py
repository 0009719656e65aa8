"""Time against the number of GPUs: a panel per world, a line per policy with its 95% interval."""

from typing import TYPE_CHECKING

from mosaic.comparison.pairing import METRICS, estimate_of
from mosaic.figures.means import Panel, draw
from mosaic.figures.style import line_looks, png_bytes

if TYPE_CHECKING:
    import polars as pl


def draw_scaling(scaling: "pl.DataFrame", metric: str) -> bytes:
    """Draw the time of every policy that was run on several numbers of workers as a PNG of one column's width."""
    rows = [row | {"mean": estimate_of(row, "time_s")} for row in scaling.sort("num_workers").to_dicts()]
    policies, schedulers = zip(*scaling.select("policy", "scheduler").unique(maintain_order=True).rows(), strict=True)
    label, worlds = f"{METRICS[metric]} (s)", scaling["world"].unique(maintain_order=True)
    figure = draw(
        rows,
        "num_workers",
        "mean",
        "policy",
        "world",
        x_label="GPUs",
        panels={world: Panel(label=label, title=world, log=True) for world in worlds},
        lines=policies,
        looks=line_looks(policies, schedulers),
        stacked=True,
    )
    return png_bytes(figure)

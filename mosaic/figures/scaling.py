"""Draws time against the number of GPUs: a panel per world, a line per policy with its 95% interval."""

from collections.abc import Sequence

from mosaic.comparison.pairing import METRICS, Row
from mosaic.figures.means import Panel, draw
from mosaic.figures.style import line_looks, png_bytes


def draw_scaling(scaling: Sequence[Row], metric: str) -> bytes:
    """Draw the time of every policy that was run on several numbers of workers as a PNG of one column's width."""
    policies, schedulers = zip(*dict.fromkeys((row["policy"], row["scheduler"]) for row in scaling), strict=True)
    label, worlds = f"{METRICS[metric]} (s)", dict.fromkeys(row["world"] for row in scaling)
    figure = draw(
        sorted(scaling, key=lambda row: row["num_workers"]),
        "num_workers",
        "time_s",
        "policy",
        "world",
        x_label="GPUs",
        panels={world: Panel(label=label, title=world, log=True) for world in worlds},
        lines=policies,
        looks=line_looks(policies, schedulers),
        stacked=True,
    )
    return png_bytes(figure)

"""Bars of how workers spend a run: load hatched, generate grey, idle white."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mosaic.figures.style import LOAD_HATCH, MUTED, load_patch

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

IDLE_EDGE = "#aaaaaa"
LOOKS: tuple[dict[str, Any], ...] = (
    {"facecolor": "white", "edgecolor": MUTED, "hatch": LOAD_HATCH, "linewidth": 0.4},
    {"facecolor": MUTED},
    {"facecolor": "white", "edgecolor": IDLE_EDGE, "linewidth": 0.4},
)


def draw_bar(axes: "Axes", place: float, parts: Sequence[float], height: float) -> None:
    """Stack load, generate and idle from the left; what has no width is left out."""
    left = 0.0
    for part, look in zip(parts, LOOKS, strict=True):
        if part > 0:
            axes.barh(place, part, left=left, height=height, **look)
        left += part


def bar_handles(idle_label: str = "idle") -> "list[Artist]":
    """Make the legend's entries, drawn as the bars are."""
    from matplotlib.patches import Patch

    return [load_patch(), Patch(**LOOKS[1], label="generate"), Patch(**LOOKS[2], label=idle_label)]

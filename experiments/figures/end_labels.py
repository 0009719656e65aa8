"""Names at the right ends of lines, moved apart where they would cover each other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mosaic.figures.style import INK, SMALL_PT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_IN = 1.25 * SMALL_PT / 72
"""Height of a line of a name."""


def label_ends(axes: "Axes", ends: Mapping[str, tuple[float, str]], panel_in: float) -> None:
    """Write each line's name beside its end, joined to it by a thin line; the axes' limits must stand.

    Ends are value and colour by name, which may have several lines; ``panel_in`` is the least height of the axes.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = {name: float(to_axes.transform((1, value))[1]) for name, (value, _) in ends.items()}
    heights = {name: (name.count("\n") + 1) * LINE_IN / panel_in for name in ends}
    for name, place in spread(wanted, heights).items():
        colour = ends[name][1]
        axes.annotate(
            name, (1, wanted[name]), (1.045, place), xycoords="axes fraction", textcoords="axes fraction",
            va="center", fontsize=SMALL_PT, color=_darker(colour), linespacing=0.95, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _darker(colour: str) -> str:
    """Mix a colour with the ink, since type is thinner than a line."""
    parts = zip((colour[1:3], colour[3:5], colour[5:7]), (INK[1:3], INK[3:5], INK[5:7]), strict=True)
    return "#" + "".join(f"{round(0.75 * int(own, 16) + 0.25 * int(ink, 16)):02x}" for own, ink in parts)


def spread(wanted: Mapping[str, float], heights: Mapping[str, float]) -> dict[str, float]:
    """Move names apart so that none covers another, each as near to where it belongs as the others allow.

    Names keep their order. Less the heights below them their places must not fall from name to name, and the nearest
    such places are an isotonic regression.

    Examples
    --------
    >>> spread({"a": 0.5, "b": 0.5, "c": 0.9}, {"a": 0.2, "b": 0.2, "c": 0.1})
    {'b': 0.4, 'a': 0.6, 'c': 0.9}
    """
    from scipy.optimize import isotonic_regression

    names = list(wanted)[::-1]  # of equals the first stands on top
    order = sorted(names, key=lambda name: wanted[name])
    sizes = [heights[name] for name in order]
    below = [sum(sizes[:place]) + size / 2 for place, size in enumerate(sizes)]
    free = [wanted[name] - height for name, height in zip(order, below, strict=True)]
    moved = isotonic_regression(free).x.tolist() if free else []
    return {name: round(place + height, 9) for name, place, height in zip(order, moved, below, strict=True)}

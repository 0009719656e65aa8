"""Writes names beside the markers of a scatter plot, where they cover neither each other nor a marker."""

from collections.abc import Iterator, Sequence
from math import hypot
from typing import TYPE_CHECKING, NamedTuple

from experiments.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Where a name may stand as seen from its marker, best first."""
GAPS_PT = (1.5, 5.0)
"""Between marker and name; the near places are tried first."""


class PointLabel(NamedTuple):
    """A name and the point it belongs to, in data coordinates."""

    text: str
    x: float
    y: float


class _Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def covers(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def distance(self, x: float, y: float) -> float:
        return hypot(max(self.left - x, 0, x - self.right), max(self.bottom - y, 0, y - self.top))

    def holds(self, other: "_Box") -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


def place_labels(axes: "Axes", labels: Sequence[PointLabel], *, marker_pt: float, font_pt: float) -> bool:
    """Write as many names as find room inside the axes; tell whether all did.

    Markers with the most neighbours choose first, since they have the least choice.
    """
    from matplotlib.patheffects import withStroke

    pixels = axes.figure.dpi / 72
    half = marker_pt * pixels / 2
    frame = _Box(*axes.get_window_extent().extents)
    centers = [tuple(axes.transData.transform((label.x, label.y))) for label in labels]
    taken = [_Box(x - half, y - half, x + half, y + half) for x, y in centers]
    reach = 30 * pixels

    def num_neighbours(place: int) -> int:
        x, y = centers[place]
        return sum(abs(x - a) < reach and abs(y - b) < reach for a, b in centers)

    all_fit = True
    for place in sorted(range(len(labels)), key=num_neighbours, reverse=True):
        name = axes.annotate(
            labels[place].text, labels[place][1:], xytext=(0, 0), textcoords="offset pixels", va="bottom",
            fontsize=font_pt, color=INK, zorder=4,
        )  # fmt: skip
        name.set_path_effects([withStroke(linewidth=1.2, foreground="white")])
        candidates = _places(centers[place], name.get_window_extent().size, half, pixels)
        box = next((box for box in candidates if frame.holds(box) and _is_clear(box, place, centers, taken)), None)
        if box is None:
            name.remove()
            all_fit = False
        else:
            name.set_position((box.left - centers[place][0], box.bottom - centers[place][1]))
            taken.append(box)
    return all_fit


def _is_clear(box: _Box, place: int, centers: Sequence[tuple[float, float]], taken: Sequence[_Box]) -> bool:
    """Tell whether a name covers nothing, and stands nearer to its own marker than to any other."""
    away = [box.distance(*center) for center in centers]
    return away[place] <= min(away) and not any(box.covers(other) for other in taken)


def _places(center: tuple[float, float], size: tuple[float, float], half: float, pixels: float) -> Iterator[_Box]:
    (x, y), (width, height) = center, size
    for gap_pt in GAPS_PT:
        away = half + gap_pt * pixels
        for dx, dy in DIRECTIONS:
            left = x - width / 2 + dx * (width / 2 + (away if dy == 0 else 0.6 * away))
            bottom = y - height / 2 + dy * (height / 2 + (away if dx == 0 else 0.6 * away))
            yield _Box(left, bottom, left + width, bottom + height)

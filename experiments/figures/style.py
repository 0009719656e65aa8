"""One look for every figure: column width, type sizes and a colour per expert that never changes."""

from collections.abc import Sequence
from colorsys import hls_to_rgb
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_WIDTH_IN = 3.4
"""One column of a two-column paper; every figure is drawn at the size it is printed."""
DPI = 250
FONT_PT = 7.0
SMALL_PT = 6.0

INK = "#222222"
MUTED = "#6e6e6e"
GRID = "#dddddd"

PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7",
    "#f0e442", "#332288", "#882255", "#999933", "#44aa99", "#8c8c8c",
)  # fmt: skip
"""Okabe and Ito's colours, then Tol's muted ones: told apart with any of the common colour deficiencies."""


def expert_colours(names: Sequence[str]) -> dict[str, str]:
    """Give every expert of a pool its colour, by its place in the pool.

    The place and not the order of appearance decides, so an expert keeps its colour in every figure of
    the pool. Beyond the palette hues advance by the golden angle.

    Examples
    --------
    >>> expert_colours(["LlamaR1", "QwenR1"])
    {'LlamaR1': '#0072b2', 'QwenR1': '#e69f00'}
    """
    names = list(dict.fromkeys(names))
    return {name: PALETTE[place] if place < len(PALETTE) else _hue(place) for place, name in enumerate(names)}


def _hue(place: int) -> str:
    rgb = hls_to_rgb((place * 0.381966) % 1.0, (0.35, 0.5, 0.65)[place % 3], 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def text_colour(background: str) -> str:
    """Choose black or white, whichever contrasts more with a colour given as #rrggbb."""
    linear = [_linear(int(background[i : i + 2], 16) / 255) for i in (1, 3, 5)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def _linear(part: float) -> float:
    """Undo the sRGB transfer function (WCAG 2)."""
    return part / 12.92 if part <= 0.04045 else float(((part + 0.055) / 1.055) ** 2.4)


def new_figure(height_in: float, width_in: float = COLUMN_WIDTH_IN) -> "Figure":
    """Make an empty figure on the Agg canvas; pyplot and its global state are not used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout=None)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: "Axes") -> None:
    """Keep the two axes that carry numbers, thin, in the figure's type size."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_linewidth(0.5)
        axes.spines[side].set_color(MUTED)
    axes.tick_params(labelsize=FONT_PT, width=0.5, length=2, color=MUTED, labelcolor=INK, pad=2)
    axes.xaxis.label.set_size(FONT_PT)
    axes.yaxis.label.set_size(FONT_PT)


def png_bytes(figure: "Figure") -> bytes:
    """Render a figure; equal figures are equal bytes, since no version or date is embedded."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()

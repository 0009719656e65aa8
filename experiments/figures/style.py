"""One look for every figure: column width, type sizes and a colour per expert that never changes."""

from collections.abc import Sequence
from colorsys import hls_to_rgb
from io import BytesIO
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.artist import Artist
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
    "#332288", "#8c8c8c", "#882255", "#8b5a2b", "#999933", "#661100",
)  # fmt: skip
"""Okabe and Ito's colours without the yellow, which is too pale for lines on white, then muted ones.

Chosen so that the experts of each published pool are told apart with any of the common colour deficiencies.
"""
PUBLISHED_EXPERTS = (
    "LlamaR1", "QwenR1", "Gemma", "Exaone", "GLM", "Qwen", "DLER", "OREAL", "Skywork", "Stratos", "Llama", "Granite",
)  # fmt: skip
"""The paper's experts; each has the colour at its place in the palette, in every pool."""


def expert_colours(names: Sequence[str]) -> dict[str, str]:
    """Give every expert of a pool its colour.

    A published expert has one colour in all pools. Any other takes the next place that the published ones
    among the names leave free, so it keeps its colour in every figure of its pool. Beyond the palette
    hues advance by the golden angle.

    Examples
    --------
    >>> expert_colours(["LlamaR1", "QwenR1"])
    {'LlamaR1': '#0072b2', 'QwenR1': '#e69f00'}
    >>> expert_colours(["Mine", "QwenR1", "Yours"])
    {'Mine': '#0072b2', 'QwenR1': '#e69f00', 'Yours': '#009e73'}
    """
    names = list(dict.fromkeys(names))
    places = {name: PUBLISHED_EXPERTS.index(name) for name in names if name in PUBLISHED_EXPERTS}
    taken = set(places.values())
    free = (place for place in count() if place not in taken)
    places |= {name: next(free) for name in names if name not in places}
    return {name: _colour(places[name]) for name in names}


def _colour(place: int) -> str:
    return PALETTE[place] if place < len(PALETTE) else _hue(place)


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


def add_legend(
    figure: "Figure",
    handles: "Sequence[Artist]",
    *,
    loc: str,
    at: tuple[float, float],
    ncols: int | None = None,
    handlelength: float = 1.6,
    handleheight: float = 0.8,
    columnspacing: float = 1.2,
    handletextpad: float = 0.5,
) -> None:
    """Draw a legend without a frame, its corner (or middle) ``loc`` at a place in fractions of the figure.

    Lengths are in units of the type size; without a number of columns it is one row.
    """
    figure.legend(
        handles=list(handles),
        loc=loc,
        bbox_to_anchor=at,
        ncols=len(handles) if ncols is None else ncols,
        fontsize=SMALL_PT,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=handlelength,
        handleheight=handleheight,
        columnspacing=columnspacing,
        labelspacing=0.25,
        handletextpad=handletextpad,
    )


def png_bytes(figure: "Figure") -> bytes:
    """Render a figure; equal figures are equal bytes, since no version or date is embedded."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def pdf_bytes(figure: "Figure") -> bytes:
    """Write a figure as PDF with its text as text (TrueType); equal figures are equal bytes."""
    from matplotlib import rc_context

    buffer = BytesIO()
    undated = dict.fromkeys(("CreationDate", "Creator", "Producer"))
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format="pdf", metadata=undated)
    return buffer.getvalue()

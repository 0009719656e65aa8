"""Defines the common look of all figures: the style file, a fixed colour per expert, and shared functions."""

from collections.abc import Iterator, Sequence
from colorsys import hls_to_rgb
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.patches import Patch

STYLE = Path(__file__).with_name("mosaic.mplstyle")
COLUMN_WIDTH_IN = 3.4
"""One column of a two-column paper; every figure is drawn at its printed size."""
PAGE_WIDTH_IN = 7.0
PAGE_HEIGHT_IN = 9.0
SMALL_PT = 6.0
CHAR_IN = 0.56 * SMALL_PT / 72
"""Mean width of a character of the small type."""

INK = "#222222"
MUTED = "#6e6e6e"
LOAD_HATCH = "/" * 9
DASH = (0, (3, 2))

PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7",
    "#332288", "#8c8c8c", "#882255", "#8b5a2b", "#999933", "#661100",
)  # fmt: skip
"""Okabe and Ito's colours without the yellow, then muted ones, as in the style file.

Chosen so that the experts of each published pool can be distinguished with any of the common colour deficiencies.
"""
PUBLISHED_EXPERTS = (
    "LlamaR1", "QwenR1", "Gemma", "Exaone", "GLM", "Qwen", "DLER", "OREAL", "Skywork", "Stratos", "Llama", "Granite",
)  # fmt: skip
"""The paper's experts; each has the colour at its index in the palette, in every pool."""
SCHEDULER_COLOURS = dict(
    zip(
        ("ilp", "fifo", "data_parallel", "round_robin", "least_loaded"),
        (*PALETTE[:4], PALETTE[5]),
        strict=True,
    )
)
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")


_styles: list[Any] = []
"""The style while it is set: setting it again inside, as every part of a figure does, takes a millisecond each."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw or save with the project's style, as ``with`` or decorator; the process's own settings are kept."""
    from matplotlib import rc_context

    if _styles:
        yield
        return
    with rc_context(_settings()):
        _styles.append(_settings())
        try:
            yield
        finally:
            _styles.clear()


@cache
def _settings() -> Any:
    from matplotlib import rc_params_from_file

    return rc_params_from_file(STYLE, use_default_template=False)


def expert_colours(names: Sequence[str]) -> dict[str, str]:
    """Give every expert of a pool its colour.

    A published expert has one colour in all pools. Any other expert takes the next index that the published ones among
    the names leave free. So it keeps its colour in every figure of its pool. Beyond the palette, hues advance by the
    golden angle.

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
    return {name: colour(places[name]) for name in names}


def colour(place: int) -> str:
    """Return a colour of the palette; beyond it hues advance by the golden angle."""
    if place < len(PALETTE):
        return PALETTE[place]
    rgb = hls_to_rgb((place * 0.381966) % 1.0, (0.35, 0.5, 0.65)[place % 3], 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def scheduler_colours(names: Sequence[str]) -> dict[str, str]:
    """Give each known scheduler its fixed colour, and others the remaining ones."""
    others = [name for name in dict.fromkeys(names) if name not in SCHEDULER_COLOURS]
    return SCHEDULER_COLOURS | {name: colour(6 + place) for place, name in enumerate(others)}


def line_looks(names: Sequence[str], schedulers: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Choose colour, dash and marker of lines: colours by scheduler, where these are given and differ."""
    schedulers = schedulers or [""] * len(names)
    by_scheduler = len(set(schedulers)) > 1 or (len(names) == 1 and schedulers[0] in SCHEDULER_COLOURS)
    colours = scheduler_colours(schedulers)
    looks: dict[str, dict[str, Any]] = {}
    for place, (name, scheduler) in enumerate(zip(names, schedulers, strict=True)):
        same = schedulers[:place].count(scheduler) if by_scheduler else place
        own = colours[scheduler] if by_scheduler else colour(place)
        looks[name] = {"color": own, "linestyle": DASHES[same % len(DASHES)], "marker": MARKERS[same % len(MARKERS)]}
    return looks


def text_colour(background: str) -> str:
    """Choose black or white, whichever contrasts more with a colour given as #rrggbb."""
    parts = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else float(((part + 0.055) / 1.055) ** 2.4) for part in parts]  # WCAG 2
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


@styled()
def new_figure(height_in: float, width_in: float = COLUMN_WIDTH_IN) -> "Figure":
    """Make an empty figure on the Agg canvas; pyplot and its global state are not used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)
    return figure


def bar_axis(axes: "Axes", names: Sequence[str]) -> None:
    """Name rows of horizontal bars from the top; only the axis that carries numbers is drawn."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)


def number_axis(axis: "Axis", num_ticks: int = 5) -> None:
    """Mark round numbers, with grouped thousands."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def log_axis(axis: "Axis") -> None:
    """Write 1, 2 and 5 of each decade, which leaves two numbers on a short logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def beside(axes: "Axes", text: str, value: float, place: float, **look: Any) -> None:
    """Write to the right of a bar's end."""
    axes.annotate(text, (value, place), (2.5, 0), textcoords="offset points", va="center", fontsize=SMALL_PT, **look)


def load_patch() -> "Patch":
    """Make the swatch of a load, hatched as loads are drawn."""
    from matplotlib.patches import Patch

    return Patch(facecolor="white", edgecolor=MUTED, hatch=LOAD_HATCH, linewidth=0.4, label="load")


def legend_below(figure: "Figure", handles: "Sequence[Artist]", **look: Any) -> "Legend":
    """Draw a legend below everything, in as many columns as fit."""
    num_columns = num_legend_columns(handles, figure.get_figwidth())
    return figure.legend(handles=list(handles), ncols=num_columns, **({"loc": "outside lower center"} | look))


def num_legend_columns(handles: "Sequence[Artist]", width_in: float) -> int:
    """Count the columns that fit."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    return max(1, min(len(handles), int(width_in / (0.3 + longest * CHAR_IN))))


@styled()
def lay_out(figure: "Figure") -> None:
    """Compute the layout once: otherwise saving would draw twice, and differently the next time."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


@styled()
def png_bytes(figure: "Figure") -> bytes:
    """Render a figure; equal figures are equal bytes, since no version or date is embedded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = BytesIO()
    lay_out(figure)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer, metadata={"Software": None}, pil_kwargs={"compress_level": 2})
    return buffer.getvalue()


@styled()
def pdf_bytes(figure: "Figure") -> bytes:
    """Write a figure as PDF with its text as text (TrueType); equal figures are equal bytes."""
    buffer = BytesIO()
    lay_out(figure)
    figure.savefig(buffer, format="pdf", metadata=dict.fromkeys(("CreationDate", "Creator", "Producer")))
    return buffer.getvalue()

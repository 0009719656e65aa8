"""Time against accuracy: a panel per workload, a marker per policy, 95% intervals in both directions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from experiments.analysis.tradeoff_points import Estimate, Outcome
from experiments.figures.point_labels import PointLabel, place_labels
from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    FONT_PT,
    GRID,
    INK,
    MUTED,
    PALETTE,
    SMALL_PT,
    new_figure,
    png_bytes,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_IN, HEAD_IN, TICKS_IN, LEFT_IN, RIGHT_IN, ENTRY_ROW_IN = 1.35, 0.17, 0.2, 0.46, 0.08, 0.13
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
MARKER_PT = 4.0
LINE_IN = 0.1
"""Of the small type below the axis."""
CHAR_IN = 0.56 * SMALL_PT / 72
"""Mean width of a character of the legend."""
MINUTES_FROM_S = 600.0
"""Longest time from which the axis counts in minutes."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One marker of the legend with its name."""

    text: str
    colour: str
    marker: str

    @property
    def width_in(self) -> float:
        return 0.26 + len(self.text) * CHAR_IN


class _Scale:
    """What colours, shapes and the unit of time mean, equal in all panels."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.schedulers = list(dict.fromkeys(outcome.scheduler for outcome in outcomes))
        self.settings = list(dict.fromkeys(_setting(outcome) for outcome in outcomes))
        longest_s = max(max(_ends(outcome.end_to_end_s)) for outcome in outcomes)
        self.unit, self.unit_s = ("min", 60.0) if longest_s >= MINUTES_FROM_S else ("s", 1.0)

    def colour(self, scheduler: str) -> str:
        return PALETTE[self.schedulers.index(scheduler) % len(PALETTE)]

    def marker(self, setting: str) -> str:
        place = self.settings.index(setting)
        return MARKERS[place] if place < len(MARKERS) else f"${place + 1}$"

    def label(self, outcome: Outcome) -> str:
        """Name a marker by what its colour does not already say."""
        return _setting(outcome) if len(self.settings) > 1 else outcome.scheduler

    def legend(self, *, direct: bool) -> list[list[_Entry]]:
        """List what colours and shapes mean, unless labels at the markers say it, in rows that fit the column."""
        colours = [_Entry(name, self.colour(name), "o") for name in self.schedulers]
        shapes = [_Entry(name or "(no setting)", MUTED, self.marker(name)) for name in self.settings]
        show_colours = len(self.schedulers) > 1 and (len(self.settings) > 1 or not direct)
        show_shapes = len(self.settings) > 1 and not direct
        return [*_rows(colours if show_colours else []), *_rows(shapes if show_shapes else [])]


def _setting(outcome: Outcome) -> str:
    """Name a policy without its scheduler, and its gate without saying that it is one."""
    return " ".join(part.removeprefix("gate=").removeprefix("aggregator=") for part in outcome.setting.split(" "))


def _ends(estimate: Estimate | None) -> Iterator[float]:
    return (value for value in estimate or () if value is not None)


def _rows(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    rows: list[list[_Entry]] = []
    for entry in entries:
        fits = rows and sum(other.width_in for other in rows[-1]) + entry.width_in <= COLUMN_WIDTH_IN - RIGHT_IN
        if fits:
            rows[-1].append(entry)
        else:
            rows.append([entry])
    return rows


def draw_tradeoff(outcomes: Sequence[Outcome]) -> bytes:
    """Draw policies, each with its time and its accuracy, as a PNG of one column's width.

    Colour tells the scheduler, shape the rest of a policy. Markers are labelled directly where all names
    find room without covering each other or a marker; else a legend explains the shapes.
    """
    figure, all_fit = _draw(outcomes, direct=True)
    if not all_fit:
        figure, _ = _draw(outcomes, direct=False)
    return png_bytes(figure)


def _draw(outcomes: Sequence[Outcome], *, direct: bool) -> "tuple[Figure, bool]":
    scale = _Scale(outcomes)
    legend = scale.legend(direct=direct)
    cases = list(dict.fromkeys(outcome.case for outcome in outcomes))
    panel_in = HEAD_IN + PLOT_IN + TICKS_IN
    foot = _foot(outcomes)
    top_in = 0.06 + LINE_IN * len(foot) + ENTRY_ROW_IN + panel_in * len(cases)
    height_in = top_in + 0.05 + ENTRY_ROW_IN * len(legend)
    figure = new_figure(height_in)
    _draw_legend(figure, legend, height_in)
    all_fit = True
    for place, case in enumerate(cases):
        bottom_in = top_in - panel_in * place - HEAD_IN - PLOT_IN
        width = 1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN
        axes = figure.add_axes((LEFT_IN / COLUMN_WIDTH_IN, bottom_in / height_in, width, PLOT_IN / height_in))
        labels = _draw_panel(axes, [outcome for outcome in outcomes if outcome.case == case], scale)
        all_fit &= not direct or place_labels(axes, labels, marker_pt=MARKER_PT, font_pt=SMALL_PT)
    _draw_foot(figure, foot, scale)
    return figure, all_fit


def _draw_legend(figure: "Figure", rows: Sequence[Sequence[_Entry]], height_in: float) -> None:
    from matplotlib.lines import Line2D

    inches = figure.dpi_scale_trans
    for number, row in enumerate(rows):
        left_in, middle_in = 0.1, height_in - 0.05 - ENTRY_ROW_IN * (number + 0.5)
        for entry in row:
            figure.add_artist(
                Line2D(
                    [left_in], [middle_in], transform=inches, linestyle="", marker=entry.marker, color=entry.colour,
                    markersize=MARKER_PT, markeredgewidth=0,
                )
            )  # fmt: skip
            figure.text(
                left_in + 0.06, middle_in, entry.text, transform=inches, va="center", fontsize=SMALL_PT, color=INK
            )
            left_in += entry.width_in


def _draw_panel(axes: "Axes", outcomes: Sequence[Outcome], scale: _Scale) -> list[PointLabel]:
    """Draw one workload; return the labels that its markers would carry."""
    style_axes(axes)
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    labels, times, accuracies = [], [], []
    for outcome in outcomes:
        assert outcome.end_to_end_s is not None
        assert outcome.accuracy_frac is not None
        time = [None if value is None else value / scale.unit_s for value in outcome.end_to_end_s]
        accuracy = [None if value is None else 100 * value for value in outcome.accuracy_frac]
        look = {"color": scale.colour(outcome.scheduler), "linewidth": 1.2, "alpha": 0.4, "solid_capstyle": "butt"}
        if time[1] is not None:
            axes.plot(time[1:], [accuracy[0]] * 2, **look)
            axes.plot([time[0]] * 2, accuracy[1:], **look)
        axes.plot(
            [time[0]], [accuracy[0]], linestyle="", marker=scale.marker(_setting(outcome)), color=look["color"],
            markersize=MARKER_PT, markeredgewidth=0.4, markeredgecolor="white", zorder=3,
        )  # fmt: skip
        labels.append(PointLabel(scale.label(outcome), time[0], accuracy[0]))
        times += [value for value in time if value is not None]
        accuracies += [value for value in accuracy if value is not None]
    _frame(axes, times, accuracies)
    axes.annotate(
        outcomes[0].case, (0, 1), xycoords="axes fraction", xytext=(-LEFT_IN * 72 + 6, 4), textcoords="offset points",
        va="bottom", fontsize=SMALL_PT, fontweight="bold", color=INK,
    )  # fmt: skip
    return labels


def _frame(axes: "Axes", times: Sequence[float], accuracies: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    for values, limit, axis, num_ticks, margin_frac in (
        (times, axes.set_xlim, axes.xaxis, 7, 0.13),  # names stand beside their markers
        (accuracies, axes.set_ylim, axes.yaxis, 5, 0.08),
    ):
        margin = margin_frac * (max(values) - min(values)) or 0.02 * max(values) or 1.0
        limit(min(values) - margin, max(values) + margin)
        axis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.set_ylabel("accuracy (%)", fontsize=FONT_PT, color=INK, labelpad=2)


def _foot(outcomes: Sequence[Outcome]) -> list[str]:
    """Say in small type what the intervals are, and which skip shares are no measurement."""
    seeds = sorted({outcome.num_seeds for outcome in outcomes})
    over = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    lines = ["one seed, no interval" if seeds == [1] else f"mean, 95% interval over {over} (paired changes: see table)"]
    num_cases = len({outcome.case for outcome in outcomes})
    for source in sorted({outcome.skip_frac_source for outcome in outcomes if outcome.skip_frac_source} - {"measured"}):
        cases = list(dict.fromkeys(outcome.case for outcome in outcomes if outcome.skip_frac_source == source))
        lines.append(
            f"skip shares and levels of accuracy are {source}"
            + ("" if len(cases) == num_cases else f" on {', '.join(cases)}")
        )
    num_characters = int((COLUMN_WIDTH_IN - 2 * RIGHT_IN) / CHAR_IN)
    return [part for line in lines for part in wrap(line, num_characters)]


def _draw_foot(figure: "Figure", lines: Sequence[str], scale: _Scale) -> None:
    look = {"transform": figure.dpi_scale_trans, "ha": "center"}
    middle_in, bottom_in = COLUMN_WIDTH_IN / 2, 0.04
    for line in reversed(lines):
        figure.text(middle_in, bottom_in, line, fontsize=SMALL_PT, color=MUTED, **look)
        bottom_in += LINE_IN
    figure.text(middle_in, bottom_in + 0.02, f"end-to-end time ({scale.unit})", fontsize=FONT_PT, color=INK, **look)

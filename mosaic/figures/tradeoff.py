"""Draws time against accuracy: a panel per world, a marker per policy, 95% intervals in both directions."""

from collections import Counter
from collections.abc import Sequence
from math import ceil
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from mosaic.comparison.pairing import Row
from mosaic.figures.style import (
    CHAR_IN,
    COLUMN_WIDTH_IN,
    MARKERS,
    MUTED,
    PAGE_WIDTH_IN,
    legend_below,
    new_figure,
    number_axis,
    png_bytes,
    scheduler_colours,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_IN, ROW_IN, AROUND_IN = 1.5, 0.12, 0.45
MARKER_PT = 4.0
RING_PT = 3.2
"""By how much a marker is larger when it is drawn as a ring around another one."""
NEAR_FRAC = 0.012
"""Share of an axis within which two markers overlap."""
MINUTES_FROM_S = 600.0
"""Longest time from which on the axis counts in minutes."""


def tradeoff_rows(rows: Sequence[Row]) -> list[Row]:
    """Keep rows with both coordinates, in worlds whose second stages differ: only these have a trade-off.

    Raises
    ------
    ValueError
        With the reason why there is nothing to draw.
    """
    known = [row for row in rows if row["accuracy_frac"] is not None and row["end_to_end_s"] is not None]
    num_stages = Counter(case for case, _ in {(row["case"], row["second_stage"]) for row in known})
    shown = [row for row in known if num_stages[row["case"]] > 1]
    if not known:
        raise ValueError("no run knows its accuracy")
    if not shown:
        raise ValueError("in no world gates or aggregators differ, so that there is no accuracy to trade for time")
    return shown


@styled()
def draw_tradeoff(rows: Sequence[Row]) -> bytes:
    """Draw policies, each with its time and its accuracy, as a PNG; colour shows the scheduler, shape the rest.

    Markers on one spot are drawn as rings around each other.
    """
    from matplotlib.lines import Line2D

    cases = list(dict.fromkeys(row["case"] for row in rows))
    colours = scheduler_colours([row["scheduler"] for row in rows])
    settings = list(dict.fromkeys(setting_of(row) for row in rows))
    markers = {name: MARKERS[i] if i < len(MARKERS) else f"${i + 1}$" for i, name in enumerate(settings)}
    longest_s = max(row["end_to_end_s"].mean for row in rows)
    unit, unit_s = ("min", 60.0) if longest_s >= MINUTES_FROM_S else ("s", 1.0)
    num_columns = 1 if len(cases) == 1 else 2
    width_in = COLUMN_WIDTH_IN if num_columns == 1 else PAGE_WIDTH_IN
    point: dict[str, Any] = {"linestyle": "", "markersize": MARKER_PT}
    schedulers = dict.fromkeys(row["scheduler"] for row in rows)
    handles = [Line2D([], [], marker="o", color=colours[name], label=name, **point) for name in schedulers]
    handles += [Line2D([], [], marker=markers[name], color=MUTED, label=name, **point) for name in settings]
    foot = [part for line in _foot(rows) for part in wrap(line, int(width_in / CHAR_IN))]
    num_rows = ceil(len(cases) / num_columns)
    figure = new_figure(AROUND_IN + num_rows * PANEL_IN + ROW_IN * (len(handles) + len(foot)) / num_columns, width_in)
    for place, case in enumerate(cases):
        axes = figure.add_subplot(num_rows, num_columns, place + 1)
        _draw_panel(axes, [row for row in rows if row["case"] == case], colours, markers, unit_s)
        axes.set_title(case)
        axes.set_xlabel(f"end-to-end time ({unit})")
        axes.set_ylabel("accuracy (%)")
    legend_below(figure, handles, title="\n".join(foot)).get_title().set_multialignment("center")
    return png_bytes(figure)


def setting_of(row: Row) -> str:
    """Name a policy without its scheduler, and its gate without the word gate."""
    parts = row["policy"].removeprefix(row["scheduler"]).split()
    return " ".join(part.removeprefix("gate=").removeprefix("aggregator=") for part in parts) or "(no setting)"


def _draw_panel(
    axes: "Axes", rows: Sequence[Row], colours: dict[str, str], markers: dict[str, str], unit_s: float
) -> None:
    points = [(row["end_to_end_s"].mean / unit_s, 100 * row["accuracy_frac"].mean) for row in rows]
    ends: list[tuple[float, float]] = list(points)
    for row, (time, accuracy) in zip(rows, points, strict=True):
        look: dict[str, Any] = {
            "color": colours[row["scheduler"]],
            "linewidth": 1.2,
            "alpha": 0.4,
            "solid_capstyle": "butt",
        }
        if across := row["end_to_end_s"].shown(least=0.0):
            axes.plot([end / unit_s for end in across], [accuracy] * 2, **look)
            ends += [(end / unit_s, accuracy) for end in across]
        if up := row["accuracy_frac"].shown(least=0.0, most=1.0):
            axes.plot([time] * 2, [100 * end for end in up], **look)
            ends += [(time, 100 * end) for end in up]
    spans = [max(values) - min(values) for values in zip(*ends, strict=True)]
    for place, (row, (time, accuracy)) in enumerate(zip(rows, points, strict=True)):
        num_below = sum(
            abs(time - x) <= NEAR_FRAC * spans[0] and abs(accuracy - y) <= NEAR_FRAC * spans[1]
            for x, y in points[:place]
        )
        colour = colours[row["scheduler"]]
        axes.plot(
            [time], [accuracy], marker=markers[setting_of(row)], color=colour, zorder=3,
            markersize=MARKER_PT + RING_PT * num_below, markerfacecolor="none" if num_below else colour,
            markeredgewidth=0.8 if num_below else 0.3, markeredgecolor=colour if num_below else "white",
        )  # fmt: skip
    axes.margins(0.08)
    number_axis(axes.xaxis)
    number_axis(axes.yaxis)


def _foot(rows: Sequence[Row]) -> list[str]:
    """Explain in small type what the intervals are, and which skip shares are not measured."""
    seeds = sorted({row["num_known"] for row in rows})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    if seeds[-1] == 1:
        lines = ["one seed, no interval"]
    elif seeds[-1] == 2:
        lines = [f"mean over {over} seeds, too few for an interval"]
    else:
        lines = [f"mean, 95% interval over {over} seeds (paired changes: see table)"]
    num_cases = len({row["case"] for row in rows})
    for source in sorted({row["skip_frac_source"] for row in rows} - {"measured", None}):
        cases = list(dict.fromkeys(row["case"] for row in rows if row["skip_frac_source"] == source))
        where = "" if len(cases) == num_cases else f" on {', '.join(cases)}"
        lines.append(f"skip shares and levels of accuracy are {source}{where}")
    return lines

"""Draws the timeline of a run: a lane per worker, load hatched, generation solid, idle blank, makespan marked.

A session over several workers is one box over their lanes. If an aggregator runs, the barrier before it is marked by
the end of the expert stage. A dotted line marks the resumption of an interrupted run, and a cross a lost worker.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mosaic.core.results import RunResult, SessionRecord
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.figures.style import (
    COLUMN_WIDTH_IN,
    DASH,
    INK,
    LOAD_HATCH,
    MUTED,
    SMALL_PT,
    bar_axis,
    expert_colours,
    legend_below,
    load_patch,
    new_figure,
    num_legend_columns,
    number_axis,
    png_bytes,
    styled,
    text_colour,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LEFT_IN, RIGHT_IN, AXIS_IN, ROW_IN = 0.43, 0.03, 0.33, 0.11
"""Margins beside the lanes and below them, and the height of a row of marks or of the legend."""
BAR = 0.74
"""Height of a bar; a lane is 1 high."""
Box: TypeAlias = tuple[tuple[float, float], ...]
"""Its corners."""
RESUMED_LOOK: Mapping[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (0.8, 1.2)), "zorder": 3}
LOST_LOOK: Mapping[str, Any] = {
    "color": INK, "linestyle": "none", "marker": "X", "markersize": 6, "markeredgecolor": "white", "zorder": 4,
}  # fmt: skip


@styled()
def draw_timeline(
    result: RunResult, *, experts: Sequence[str], predicted_makespan_s: float | None = None, pilot_s: float = 0.0
) -> bytes:
    """Draw a run as a PNG of one column's width.

    The names of the experts, in the pool's order, fix the colours. The predicted makespan is a thin dashed mark, if it
    is known. Makespans are counted from the end of a pilot, which is marked too.
    """
    sessions, num_workers = result.sessions, result.num_workers
    lane_in = max(0.07, min(0.26, 5.0 / num_workers))
    colours = expert_colours([*experts, *(session.expert for session in sessions)])
    makespan_s = max((session.end_ts for session in sessions), default=0.0)
    predicted_ts = pilot_s + (predicted_makespan_s or 0.0)
    limit_s = max(makespan_s, predicted_ts, *(loss.ts for loss in result.lost_workers)) * 1.015 or 1.0
    inches_per_s = (COLUMN_WIDTH_IN - LEFT_IN - RIGHT_IN) / limit_s
    names = {session.session: _name_in_box(session, inches_per_s, lane_in) for session in sessions}
    marks = _marks(sessions, makespan_s, predicted_makespan_s, pilot_s)
    handles = _legend(result, names, colours)
    num_rows = -(-len(handles) // num_legend_columns(handles, COLUMN_WIDTH_IN))
    above_in, below_in = ROW_IN * len(marks) + 0.03, AXIS_IN + ROW_IN * num_rows
    height_in = above_in + num_workers * lane_in + below_in
    figure = new_figure(height_in)
    # NOTE: every run draws this, and finding the positions takes as long as a third of the drawing: they are given.
    figure.set_layout_engine("none")
    width, height = 1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN, num_workers * lane_in / height_in
    axes = figure.add_axes((LEFT_IN / COLUMN_WIDTH_IN, below_in / height_in, width, height))
    draw_lanes(axes, sessions, colours, num_workers, limit_s)
    for session in sessions:
        _label(axes, session, names[session.session], colours[session.expert])
    for resumption in result.resumptions:
        axes.axvline(resumption.ts, **RESUMED_LOOK)
    axes.plot([loss.ts for loss in result.lost_workers], [loss.worker for loss in result.lost_workers], **LOST_LOOK)
    step = max(1, round(0.12 / lane_in))
    axes.set_yticks(range(0, num_workers, step), [f"worker {worker}" for worker in range(0, num_workers, step)])
    axes.set_xlabel("time (s)")
    for row, mark in enumerate(marks):
        _draw_mark(axes, *mark, row, limit_s)
    legend_below(figure, handles, loc="lower center")
    return png_bytes(figure)


def _legend(result: RunResult, names: Mapping[int, str | None], colours: Mapping[str, str]) -> "list[Artist]":
    """Make the entries of the legend: experts without a name in a box, and disturbances of the run."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    sessions, resumptions = result.sessions, result.resumptions
    named = {session.expert for session in sessions if names[session.session]}
    present = {session.expert for session in sessions}
    handles: list[Artist] = [load_patch()]
    handles += [Patch(facecolor=colours[name], label=name) for name in colours if name in present - named]
    if any(session.node != PROPOSE and not names[session.session] for session in sessions):
        handles.append(Patch(facecolor="none", edgecolor=INK, linewidth=0.6, label="aggregator (outlined)"))
    if resumptions:
        times = f" {len(resumptions)} times" if len(resumptions) > 1 else ""
        handles.append(Line2D([], [], **RESUMED_LOOK, label=f"resumed{times}"))
    if result.lost_workers:
        handles.append(Line2D([], [], **LOST_LOOK, label="worker lost"))
    return handles


def draw_lanes(
    axes: "Axes", sessions: Sequence[SessionRecord], colours: Mapping[str, str], num_workers: int, limit_s: float
) -> None:
    """Draw all bars as few collections; an artist per bar would cost a second for long runs."""
    import numpy as np
    from matplotlib.collections import PathCollection, PolyCollection
    from matplotlib.path import Path as Outline

    bar_axis(axes, [str(worker) for worker in range(num_workers)])
    axes.set_xlim(0, limit_s)
    number_axis(axes.xaxis, 6)
    bars = [(session, lanes) for session in sessions for lanes in _lanes(session)]
    loads = [(session, lanes) for session, lanes in bars if session.load_s > 0]
    serves = [_box(session.start_ts, session.end_ts, lanes) for session, lanes in bars]
    waits = [_box(session.load_start_ts, session.start_ts, lanes) for session, lanes in loads]
    inside, around = ([colours[session.expert] for session, _ in own] for own in (bars, loads))
    # NOTE: every outline with hatches costs as much as a hundred boxes, so boxes that cannot touch form one outline.
    outlines = [Outline.make_compound_path_from_polys(np.array(boxes)) for boxes in apart(waits, loads)]
    for collection in (
        PolyCollection(serves, facecolors=inside, edgecolors="white", linewidths=0.25, zorder=2),
        PathCollection(outlines, facecolors="white", edgecolors=MUTED, hatch=LOAD_HATCH, linewidths=0.4, zorder=2),
        PolyCollection(waits, facecolors="none", edgecolors=around, linewidths=0.7, zorder=2),
    ):
        axes.add_collection(collection, autolim=False)


def apart(boxes: Sequence[Box], bars: Sequence[tuple[SessionRecord, tuple[int, int]]]) -> list[list[Box]]:
    """Group boxes so that no two of a group share a lane; boxes that share one keep their order."""
    groups: list[list[Box]] = []
    num_drawn: Counter[int] = Counter()
    for box, (_, (first, last)) in zip(boxes, bars, strict=True):
        lanes = range(first, last + 1)
        turn = max(num_drawn[lane] for lane in lanes)
        num_drawn |= Counter(dict.fromkeys(lanes, turn + 1))
        if turn == len(groups):
            groups.append([])
        groups[turn].append(box)
    return groups


def _lanes(session: SessionRecord) -> list[tuple[int, int]]:
    """Group a session's workers into ranges of neighbours, first and last of each."""
    runs: list[tuple[int, int]] = []
    for worker in sorted(session.workers):
        if runs and worker == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], worker)
        else:
            runs.append((worker, worker))
    return runs


def _box(start_ts: float, end_ts: float, lanes: tuple[int, int]) -> Box:
    low, high = lanes[0] - BAR / 2, lanes[1] + BAR / 2
    return (start_ts, low), (end_ts, low), (end_ts, high), (start_ts, high)


def _name_in_box(session: SessionRecord, inches_per_s: float, lane_in: float) -> str | None:
    """Choose the name that fits into a session's box, on two lines if the box is high enough; None: none does."""
    width_in = (session.end_ts - session.start_ts) * inches_per_s if lane_in >= 1.35 * SMALL_PT / 72 else 0.0
    names = [session.expert]
    if session.node == AGGREGATE:
        first, last = _lanes(session)[0]
        two_lines = [f"{session.expert}\naggregates", "aggre-\ngator"] if last > first else []
        names = [f"{session.expert} aggregates", "aggregator", *two_lines]
    longest = {name: max(map(len, name.split("\n"))) for name in names}
    return next((name for name in names if (longest[name] * 0.6 + 0.9) * SMALL_PT / 72 <= width_in), None)


def _label(axes: "Axes", session: SessionRecord, name: str | None, colour: str) -> None:
    """Name a session in its box, the first one if its workers are no neighbours; outline an unnamed aggregator."""
    first, last = _lanes(session)[0]
    if name is not None:
        middle_s, place = (session.start_ts + session.end_ts) / 2, (first + last) / 2 + 0.04
        look: dict[str, Any] = {"fontsize": SMALL_PT, "color": text_colour(colour), "in_layout": False}
        axes.text(middle_s, place, name, ha="center", va="center", **look)
    elif session.node == AGGREGATE:
        left, right = session.load_start_ts, session.end_ts
        low, high = first - BAR / 2, last + BAR / 2
        axes.plot([left, right, right, left, left], [low, low, high, high, low], color=INK, linewidth=0.6, zorder=3)


def _marks(
    sessions: Sequence[SessionRecord], makespan_s: float, predicted_s: float | None, pilot_s: float
) -> list[tuple[float, str, bool]]:
    """List instants to mark from the lowest row up: seconds, text, and whether it is only a prediction."""
    ends = [session.end_ts for session in sessions if session.node == PROPOSE]
    has_stages = bool(ends) and len(ends) < len(sessions)
    marks = []
    if predicted_s is not None:
        marks.append((pilot_s + predicted_s, f"{'experts ' if has_stages else ''}predicted {predicted_s:,.4g} s", True))
    if sessions:
        what = "end to end" if has_stages else "makespan"
        marks.append((makespan_s, f"{what} {makespan_s - pilot_s:,.4g} s", False))
    if has_stages:
        marks.append((max(ends), f"experts {max(ends) - pilot_s:,.4g} s", False))
    if pilot_s:
        marks.append((pilot_s, f"pilot {pilot_s:,.4g} s", False))
    return marks


def _draw_mark(axes: "Axes", at_s: float, text: str, is_predicted: bool, row: int, limit_s: float) -> None:
    """Draw a line through all lanes, with its text above them on the side of the line that has room."""
    colour = MUTED if is_predicted else INK
    axes.axvline(at_s, color=colour, linewidth=0.6 if is_predicted else 0.9, linestyle=DASH if is_predicted else "-")
    left = at_s > limit_s / 2
    axes.annotate(
        text, (at_s, 1), (-1 if left else 1, 1.5 + row * (SMALL_PT + 1.5)), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right" if left else "left", va="bottom", fontsize=SMALL_PT, color=colour,
    )  # fmt: skip

"""The timeline of a run: a lane per worker, load hatched, generate solid, idle blank, makespan marked.

A session that spans several workers is one box over their lanes; where an aggregator runs, the barrier before it is
marked by the end of the expert stage.

    python experiments/figures/timeline.py RUN_FOLDER [--out FILE.png]

draws it again from a run folder; run.py draws it while writing one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    GRID,
    INK,
    MUTED,
    SMALL_PT,
    add_legend,
    expert_colours,
    new_figure,
    png_bytes,
    style_axes,
    text_colour,
)
from mosaic.core.errors import MosaicError
from mosaic.core.results import SessionRecord
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.report.run_folder import SUMMARY, read_json
from mosaic.report.tables import read_sessions

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEFT_IN, RIGHT_IN = 0.55, 0.08
TOP_IN, AXIS_IN, LEGEND_ROW_IN = 0.27, 0.29, 0.14
MARK_ROW_IN = (SMALL_PT + 1.5) / 72
BAR = 0.74
"""Height of a bar; a lane is 1 high."""
NUM_LEGEND_COLUMNS = 4


def draw_timeline(
    sessions: Sequence[SessionRecord],
    *,
    num_workers: int,
    experts: Sequence[str],
    predicted_makespan_s: float | None = None,
) -> bytes:
    """Draw a run as a PNG of one column's width.

    The names of the experts, in the pool's order, fix the colours. The predicted makespan is a thin
    dashed mark where it is known.
    """
    lane_in = max(0.07, min(0.26, 5.0 / num_workers))
    colours = expert_colours([*experts, *(session.expert for session in sessions)])
    makespan_s = max((session.end_ts for session in sessions), default=0.0)
    limit_s = max(makespan_s, predicted_makespan_s or 0.0) * 1.015 or 1.0
    inches_per_s = (COLUMN_WIDTH_IN - LEFT_IN - RIGHT_IN) / limit_s
    direct = {session.session: _label_of(session, inches_per_s, lane_in) for session in sessions}
    present = [name for name in colours if any(session.expert == name for session in sessions)]
    labelled = {session.expert for session in sessions if direct[session.session]}
    in_legend = [name for name in present if name not in labelled]
    num_rows = -(-(1 + len(in_legend)) // NUM_LEGEND_COLUMNS)

    bottom_in = AXIS_IN + LEGEND_ROW_IN * num_rows + 0.04
    experts_s = _experts_end_s(sessions)
    top_in = TOP_IN + (0.0 if experts_s is None else MARK_ROW_IN)
    height_in = top_in + num_workers * lane_in + bottom_in
    figure = new_figure(height_in)
    axes = figure.add_axes(
        (
            LEFT_IN / COLUMN_WIDTH_IN,
            bottom_in / height_in,
            1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN,
            num_workers * lane_in / height_in,
        )
    )
    for name in present:
        draw_bars(axes, [session for session in sessions if session.expert == name], colours[name])
    for session in sessions:
        name = direct[session.session]
        if name is not None:
            _label(axes, session, name, colours[session.expert])
    _draw_frame(axes, num_workers, limit_s, lane_in)
    _mark_ends(axes, experts_s, makespan_s if sessions else None, predicted_makespan_s, limit_s)
    _draw_legend(figure, {name: colours[name] for name in in_legend}, height_in)
    return png_bytes(figure)


def _experts_end_s(sessions: Sequence[SessionRecord]) -> float | None:
    """End of the expert stage, where another stage follows."""
    first = [session.end_ts for session in sessions if session.node == PROPOSE]
    return max(first) if first and len(first) < len(sessions) else None


def _label_of(session: SessionRecord, inches_per_s: float, lane_in: float) -> str | None:
    """Choose the name that fits into a session's box; None: none does."""
    names = [f"{session.expert} aggregates", "aggregator"] if session.node == AGGREGATE else []
    room_in = (session.end_ts - session.start_ts) * inches_per_s if lane_in >= 1.35 * SMALL_PT / 72 else 0.0
    fitting = (name for name in [*names, session.expert] if (len(name) * 0.6 + 0.9) * SMALL_PT / 72 <= room_in)
    return next(fitting, None)


def draw_bars(axes: "Axes", sessions: Sequence[SessionRecord], colour: str) -> None:
    """Draw all bars of an expert as two collections; an artist per bar would cost a second for long runs."""
    from matplotlib.collections import PolyCollection

    loads = [
        _box(session.load_start_ts, session.start_ts, lanes)
        for session in sessions
        for lanes in _lanes(session)
        if session.load_s > 0
    ]
    serves = [_box(session.start_ts, session.end_ts, lanes) for session in sessions for lanes in _lanes(session)]
    axes.add_collection(
        PolyCollection(loads, facecolors="white", edgecolors=colour, hatch="/" * 9, linewidths=0.4), autolim=False
    )
    axes.add_collection(PolyCollection(serves, facecolors=colour, edgecolors="white", linewidths=0.25), autolim=False)


def _lanes(session: SessionRecord) -> list[tuple[int, int]]:
    """Group a session's workers into runs of neighbours, first and last of each."""
    runs: list[tuple[int, int]] = []
    for worker in sorted(session.workers):
        if runs and worker == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], worker)
        else:
            runs.append((worker, worker))
    return runs


def _box(start_ts: float, end_ts: float, lanes: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    low, high = lanes[0] - BAR / 2, lanes[1] + BAR / 2
    return (start_ts, low), (end_ts, low), (end_ts, high), (start_ts, high)


def _label(axes: "Axes", session: SessionRecord, name: str, colour: str) -> None:
    """Name a session in its box, the first one where its workers are no neighbours."""
    first, last = _lanes(session)[0]
    axes.text(
        (session.start_ts + session.end_ts) / 2,
        (first + last) / 2 + 0.04,
        name,
        ha="center",
        va="center",
        fontsize=SMALL_PT,
        color=text_colour(colour),
    )


def _draw_frame(axes: "Axes", num_workers: int, limit_s: float, lane_in: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style_axes(axes)
    axes.set_xlim(0, limit_s)
    axes.set_ylim(num_workers - 0.5, -0.5)
    step = max(1, round(0.12 / lane_in))
    lanes = range(0, num_workers, step)
    axes.set_yticks(list(lanes), [f"worker {worker}" for worker in lanes])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_xlabel("time (s)", labelpad=1)
    axes.grid(axis="x", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)


def _mark_ends(
    axes: "Axes", experts_s: float | None, makespan_s: float | None, predicted_s: float | None, limit_s: float
) -> None:
    if experts_s is not None:
        axes.axvline(experts_s, color=INK, linewidth=0.6, clip_on=False)
        _name_mark(axes, experts_s, f"experts {experts_s:,.4g} s", limit_s, row=2, colour=INK)
    if predicted_s is not None:
        axes.axvline(predicted_s, color=MUTED, linewidth=0.6, linestyle=(0, (3, 2)), clip_on=False)
    if makespan_s is not None:
        axes.axvline(makespan_s, color=INK, linewidth=0.9, clip_on=False)
        _name_mark(axes, makespan_s, f"makespan {makespan_s:,.4g} s", limit_s, row=1, colour=INK)
    if predicted_s is not None:
        of = "" if experts_s is None else "experts "
        _name_mark(
            axes,
            predicted_s,
            f"{of}predicted {predicted_s:,.4g} s",
            limit_s,
            row=0,
            colour=MUTED,
        )


def _name_mark(axes: "Axes", at_s: float, text: str, limit_s: float, *, row: int, colour: str) -> None:
    """Write above the axes, on the side of the mark that has room."""
    left = at_s > limit_s / 2
    axes.annotate(
        text,
        (at_s, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-1 if left else 1, 1.5 + row * (SMALL_PT + 1.5)),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom",
        fontsize=SMALL_PT,
        color=colour,
    )


def _draw_legend(figure: "Figure", colours: dict[str, str], height_in: float) -> None:
    from matplotlib.patches import Patch

    handles: list[Artist] = [Patch(facecolor="white", edgecolor=MUTED, hatch="/" * 9, linewidth=0.4, label="load")]
    handles += [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    add_legend(
        figure, handles, loc="lower left", at=(LEFT_IN / COLUMN_WIDTH_IN, 0.02 / height_in), ncols=NUM_LEGEND_COLUMNS
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the timeline of a run folder; return the exit status."""
    parser = argparse.ArgumentParser(prog="timeline", description="Draw the timeline of a run folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="PNG to write (default: timeline.png in the run folder)")
    options = parser.parse_args(arguments)
    out = options.out or options.folder / "timeline.png"
    try:
        summary = read_json(options.folder / SUMMARY)
        sessions = read_sessions(options.folder / "sessions.parquet")
        out.write_bytes(
            draw_timeline(
                sessions,
                num_workers=summary["num_workers"],
                experts=summary["experts"],
                predicted_makespan_s=summary["predicted_expert_makespan_s"],
            )
        )
    except MosaicError as error:
        return _complain(str(error))
    except (KeyError, TypeError) as error:
        return _complain(f"{options.folder / SUMMARY}: not a summary of a run ({error} missing)")
    except OSError as error:
        return _complain(f"{out}: cannot be written ({error.strerror})")
    print(out)
    return 0


def _complain(message: str) -> int:
    print(f"timeline: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

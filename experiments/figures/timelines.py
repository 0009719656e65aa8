"""Timelines of several workloads, one policy above the other: who is busy, who loads, who waits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    GRID,
    INK,
    MUTED,
    SMALL_PT,
    add_legend,
    expert_colours,
    new_figure,
    style_axes,
)
from experiments.figures.timeline import draw_bars
from mosaic.core.results import SessionRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANE_IN, HEAD_IN, GAP_IN, AXIS_IN, LEGEND_IN = 0.1, 0.15, 0.1, 0.3, 0.34
LEFT_IN, RIGHT_IN = 0.3, 0.1
NUM_LEGEND_COLUMNS = 4

Timelines = Mapping[str, Mapping[str, Sequence[SessionRecord]]]
"""Sessions by workload and policy, both named as they are to be shown."""


def draw_timelines(timelines: Timelines, *, num_workers: int, experts: Sequence[str]) -> "Figure":
    """Draw a block per workload with a panel per policy on one time axis, each panel with a lane per worker."""
    panel_in = HEAD_IN + num_workers * LANE_IN
    heights_in = [len(policies) * panel_in + AXIS_IN + GAP_IN for policies in timelines.values()]
    height_in = sum(heights_in) + LEGEND_IN
    figure = new_figure(height_in)
    colours = expert_colours(experts)
    top_in = height_in
    for workload, policies in timelines.items():
        limit_s = 1.02 * max(_makespan_s(sessions) for sessions in policies.values())
        for place, (policy, sessions) in enumerate(policies.items()):
            is_last = place == len(policies) - 1
            bottom_in = top_in - (place + 1) * panel_in
            axes = figure.add_axes(
                (
                    LEFT_IN / COLUMN_WIDTH_IN,
                    bottom_in / height_in,
                    1 - (LEFT_IN + RIGHT_IN) / COLUMN_WIDTH_IN,
                    num_workers * LANE_IN / height_in,
                )
            )
            for name in colours:
                draw_bars(axes, [session for session in sessions if session.expert == name], colours[name])
            _frame(axes, num_workers, limit_s, is_last=is_last)
            _mark(axes, _makespan_s(sessions), limit_s)
            _name(axes, workload if place == 0 else "", policy)
        top_in -= heights_in.pop(0)
    _legend(figure, colours, height_in)
    return figure


def timeline_rows(timelines: Timelines) -> list[tuple[object, ...]]:
    """The sessions drawn, with a head."""
    head = ("workload", "policy", "workers", "expert", "load_start_ts", "start_ts", "end_ts", "num_calls")
    return [
        head,
        *(
            (
                workload, policy, " ".join(map(str, session.workers)), session.expert,
                session.load_start_ts, session.start_ts, session.end_ts, session.num_calls,
            )
            for workload, policies in timelines.items()
            for policy, sessions in policies.items()
            for session in sessions
        ),
    ]  # fmt: skip


def _makespan_s(sessions: Sequence[SessionRecord]) -> float:
    return max(session.end_ts for session in sessions)


def _frame(axes: "Axes", num_workers: int, limit_s: float, *, is_last: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style_axes(axes)
    axes.set_xlim(0, limit_s)
    axes.set_ylim(num_workers - 0.5, -0.5)
    axes.set_yticks(range(num_workers), [str(worker) for worker in range(num_workers)], fontsize=SMALL_PT)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_ylabel("GPU", fontsize=SMALL_PT, labelpad=2)
    axes.grid(axis="x", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    if is_last:
        axes.set_xlabel("time (s)", labelpad=1)
    else:
        axes.tick_params(axis="x", labelbottom=False)


def _mark(axes: "Axes", makespan_s: float, limit_s: float) -> None:
    """Write the makespan beside its line, on the side that has room."""
    left = makespan_s > limit_s / 2
    axes.axvline(makespan_s, color=INK, linewidth=0.9, clip_on=False)
    axes.annotate(
        f"{makespan_s:,.0f} s", (makespan_s, 1), xycoords=("data", "axes fraction"),
        xytext=(-1.5 if left else 1.5, 1.5), textcoords="offset points",
        ha="right" if left else "left", va="bottom", fontsize=SMALL_PT, color=INK,
    )  # fmt: skip


def _name(axes: "Axes", workload: str, policy: str) -> None:
    """Write the policy above its lanes, behind the workload's name in the first panel of a block."""
    style = {"textcoords": "offset points", "va": "bottom", "ha": "left", "fontsize": SMALL_PT, "color": INK}
    if not workload:
        axes.annotate(policy, (0, 1), xycoords="axes fraction", xytext=(0, 1.5), **style)
        return
    name = axes.annotate(workload, (0, 1), xycoords="axes fraction", xytext=(0, 1.5), fontweight="bold", **style)
    axes.annotate(policy, (1, 0), xycoords=name, xytext=(4, 0), **style)


def _legend(figure: "Figure", colours: Mapping[str, str], height_in: float) -> None:
    from matplotlib.patches import Patch

    load = Patch(facecolor="white", edgecolor=MUTED, hatch="/" * 9, linewidth=0.4, label="load")
    add_legend(
        figure,
        [load, *(Patch(facecolor=colour, label=name) for name, colour in colours.items())],
        loc="lower left",
        at=(LEFT_IN / COLUMN_WIDTH_IN, 0.03 / height_in),
        ncols=NUM_LEGEND_COLUMNS,
    )

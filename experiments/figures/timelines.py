"""Timelines of several workloads, one policy above the other: who is busy, who loads, who waits."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from mosaic.core.results import SessionRecord
from mosaic.figures.style import (
    INK,
    expert_colours,
    legend_below,
    load_patch,
    new_figure,
    styled,
)
from mosaic.figures.timeline import draw_lanes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LANE_IN, PANEL_IN, BLOCK_IN, LEGEND_IN = 0.1, 0.17, 0.28, 0.3
"""Heights of a lane, of what else a panel has, of the axis below a block, of the legend."""

Timelines: TypeAlias = Mapping[str, Mapping[str, Sequence[SessionRecord]]]
"""Sessions by workload and policy, both named as they are to be shown."""


@styled()
def draw_timelines(
    timelines: Timelines,
    *,
    num_workers: int,
    experts: Sequence[str],
    notes: Mapping[tuple[str, str], str] | None = None,
) -> "Figure":
    """Draw a block per workload with a panel per policy on one time axis, each panel with a lane per worker.

    Notes, by workload and policy, are written on the right of the makespan.
    """
    from matplotlib.patches import Patch

    colours = expert_colours(experts)
    num_panels = sum(map(len, timelines.values()))
    height_in = num_panels * (PANEL_IN + num_workers * LANE_IN) + BLOCK_IN * len(timelines) + LEGEND_IN
    figure = new_figure(height_in)
    place = 0
    for workload, policies in timelines.items():
        limit_s = 1.02 * max(_makespan_s(sessions) for sessions in policies.values())
        for number, (policy, sessions) in enumerate(policies.items()):
            place += 1
            axes = figure.add_subplot(num_panels, 1, place)
            draw_lanes(axes, sessions, colours, num_workers, limit_s)
            axes.set_ylabel("GPU")
            axes.tick_params(axis="x", labelbottom=number == len(policies) - 1)
            makespan_s = _makespan_s(sessions)
            axes.axvline(makespan_s, color=INK, linewidth=0.9)
            axes.set_title(f"{workload}, {policy}: {makespan_s:,.0f} s", pad=2)
            axes.set_title(
                (notes or {}).get((workload, policy), ""), loc="right", pad=2, fontsize=6, fontweight="normal"
            )
        axes.set_xlabel("time (s)")
    legend_below(figure, [load_patch(), *(Patch(facecolor=colour, label=name) for name, colour in colours.items())])
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

"""Two policies against each other, pool by pool: load, generate and idle per worker, which add up to the makespan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from experiments.analysis.expert_stage import WorkerTimes
from experiments.figures.worker_bars import bar_handles, draw_bar
from mosaic.comparison.estimate import Estimate, estimate
from mosaic.figures.style import INK, bar_axis, beside, legend_below, new_figure, number_axis, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Policies: TypeAlias = Mapping[str, Mapping[str, Sequence[WorkerTimes]]]
"""Runs by pool and policy (as they are shown), one per seed."""

BAR_IN, PANEL_IN, AROUND_IN = 0.17, 0.3, 0.35
BAR = 0.72


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """Seconds per worker under one policy in one pool: means over workers and seeds, which add up to the makespan."""

    load_s: float
    generate_s: float
    makespan: Estimate

    @property
    def idle_s(self) -> float:
        """What is left."""
        return max(0.0, self.makespan.mean - self.load_s - self.generate_s)


@styled()
def draw_data_parallel(pools: Policies) -> "Figure":
    """Draw a panel per pool, each with its own axis of seconds, and a bar per policy."""
    from matplotlib.lines import Line2D

    bars = _bars(pools)
    figure = new_figure(AROUND_IN + sum(PANEL_IN + BAR_IN * len(group) for group in bars.values()))
    for number, (pool, group) in enumerate(bars.items()):
        axes = figure.add_subplot(len(bars), 1, number + 1)
        bar_axis(axes, list(group))
        ends = [_end_s(bar) for bar in group.values()]
        for place, (bar, end_s) in enumerate(zip(group.values(), ends, strict=True)):
            draw_bar(axes, place, (bar.load_s, bar.generate_s, bar.idle_s), BAR)
            if (interval := bar.makespan.shown(least=0.0)) is not None:
                around = [[bar.makespan.mean - interval[0]], [interval[1] - bar.makespan.mean]]
                axes.errorbar(
                    bar.makespan.mean, place, xerr=around, color=INK, linewidth=0.9, capsize=1.6, capthick=0.9, zorder=4
                )
            share = 100 * bar.idle_s / bar.makespan.mean
            beside(axes, f"{bar.makespan.mean:,.0f} s, idle {share:.0f}%", end_s, place, annotation_clip=False)
        axes.set_xlim(0, 1.02 * max(ends))
        number_axis(axes.xaxis, 4)
        axes.set_title(pool)
    axes.set_xlabel("time per worker (s)")
    whisker = Line2D([], [], color=INK, linewidth=0.9, label="makespan, 95% interval")
    has_interval = any(bar.makespan.shown() for group in bars.values() for bar in group.values())
    legend_below(figure, [*bar_handles(), *([whisker] if has_interval else [])])
    return figure


def data_parallel_rows(pools: Policies) -> list[tuple[object, ...]]:
    """The drawn values, with a head."""
    head = (
        "pool", "policy", "load_s_per_worker", "idle_s_per_worker", "generate_s_per_worker", "makespan_s",
        "makespan_low_s", "makespan_high_s", "num_seeds",
    )  # fmt: skip
    rows = [
        (pool, policy, bar.load_s, bar.idle_s, bar.generate_s, *bar.makespan)
        for pool, group in _bars(pools).items()
        for policy, bar in group.items()
    ]
    return [head, *rows]


def _end_s(bar: _Bar) -> float:
    """Where the drawn bar ends."""
    return max(bar.makespan.mean, *(bar.makespan.shown() or (0.0,)))


def _bars(pools: Policies) -> dict[str, dict[str, _Bar]]:
    bars: dict[str, dict[str, _Bar]] = {}
    for pool, policies in pools.items():
        for policy, runs in policies.items():
            if not runs:
                raise ValueError(f"data parallel: {pool}.{policy} must have at least one run, got {runs!r}")
            bars.setdefault(pool, {})[policy] = _Bar(
                load_s=fmean(fmean(times.load_s) for times in runs),
                generate_s=fmean(fmean(times.generate_s) for times in runs),
                makespan=estimate([times.makespan_s for times in runs]),
            )
    return bars

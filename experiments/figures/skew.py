"""Who is asked and who waits: the share of the slots per expert, and how workers spend round robin, pool by pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from experiments.analysis.pairing import t_interval
from experiments.figures.style import (
    COLUMN_WIDTH_IN,
    FONT_PT,
    GRID,
    INK,
    MUTED,
    SMALL_PT,
    add_legend,
    expert_colours,
    new_figure,
    style_axes,
)
from experiments.studies.paper_data import WorkerTimes
from mosaic.core.checks import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN, HEAD_IN, TOP_IN, AXIS_IN, LEGEND_IN = 0.135, 0.19, 0.02, 0.3, 0.16
LEFT_IN, SLOTS_IN, BETWEEN_IN, TIMES_IN = 0.5, 0.94, 0.76, 0.86
"""Widths from the left: names, shares of slots, their numbers and the workers' names, the workers' times."""
BAR = 0.72
HATCH = "/" * 9


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSkew:
    """One pool under round robin."""

    slots: Mapping[str, int]
    """Slots of the questions by expert."""
    times: Sequence[WorkerTimes]
    """A run per seed."""

    def __post_init__(self) -> None:
        rule = "at least one slot for each of at least one expert"
        require(bool(self.slots) and min(self.slots.values()) >= 1, "pool skew: slots", rule, dict(self.slots))
        require(len(self.times) > 0, "pool skew: times", "of at least one run", self.times)
        sizes = sorted({len(times.load_s) for times in self.times})
        require(len(sizes) == 1, "pool skew: times", "of equally many workers", sizes)

    @property
    def max_min_ratio(self) -> float:
        """Slots of the most popular expert over those of the least popular one."""
        return max(self.slots.values()) / min(self.slots.values())

    @property
    def idle_frac(self) -> tuple[float, float | None, float | None]:
        """Idle share of the workers' time: mean over the seeds and its 95% interval."""
        fracs = [times.idle_frac for times in self.times]
        return fmean(fracs), *t_interval(fracs)

    def worker_fracs(self) -> list[tuple[float, float, float]]:
        """Load, generate and idle by worker, as shares of the makespan, means over the seeds."""
        shares = []
        for worker in range(len(self.times[0].load_s)):
            load = fmean(times.load_s[worker] / times.makespan_s for times in self.times)
            generate = fmean(times.generate_s[worker] / times.makespan_s for times in self.times)
            shares.append((load, generate, max(0.0, 1.0 - load - generate)))
        return shares


def draw_skew(pools: Mapping[str, PoolSkew]) -> "Figure":
    """Draw a block per pool: its experts' slots on the left, its workers' times on the right."""
    colours = expert_colours([name for pool in pools.values() for name in pool.slots])
    heights_in = [ROW_IN * max(len(pool.slots), len(pool.times[0].load_s)) for pool in pools.values()]
    height_in = TOP_IN + HEAD_IN * len(pools) + sum(heights_in) + AXIS_IN + LEGEND_IN
    figure = new_figure(height_in)
    at_in = height_in - TOP_IN
    for (name, pool), panel_in in zip(pools.items(), heights_in, strict=True):
        at_in -= HEAD_IN + panel_in
        is_last = name == list(pools)[-1]
        slots, times = (
            figure.add_axes(
                (left_in / COLUMN_WIDTH_IN, at_in / height_in, width_in / COLUMN_WIDTH_IN, panel_in / height_in)
            )
            for left_in, width_in in ((LEFT_IN, SLOTS_IN), (LEFT_IN + SLOTS_IN + BETWEEN_IN, TIMES_IN))
        )
        _draw_slots(slots, pool, colours, _largest_share(pools), is_last=is_last)
        _draw_times(times, pool, is_last=is_last)
        _head(slots, name, -LEFT_IN + 0.05, weight="bold")
        _head(slots, f"max/min {pool.max_min_ratio:.3g}", 0.25)
        _head(times, _idle_text(pool), -0.44)
    _draw_legend(figure, height_in)
    return figure


def slot_rows(pools: Mapping[str, PoolSkew]) -> list[tuple[object, ...]]:
    """Shares of the slots, with a head."""
    rows = [
        (name, expert, count, count / sum(pool.slots.values()), pool.max_min_ratio)
        for name, pool in pools.items()
        for expert, count in pool.slots.items()
    ]
    return [("pool", "expert", "num_slots", "slots_frac", "max_min_ratio"), *rows]


def worker_rows(pools: Mapping[str, PoolSkew]) -> list[tuple[object, ...]]:
    """Shares of the workers' times and, last of each pool, of all of them with the idle share's interval."""
    head = (
        "pool", "worker", "load_frac", "generate_frac", "idle_frac", "idle_low_frac", "idle_high_frac", "num_seeds",
    )  # fmt: skip
    rows: list[tuple[object, ...]] = []
    for name, pool in pools.items():
        shares = pool.worker_fracs()
        rows += [(name, worker, *share, None, None, len(pool.times)) for worker, share in enumerate(shares)]
        load, generate = (fmean(share[part] for share in shares) for part in (0, 1))
        rows.append((name, "all", load, generate, *pool.idle_frac, len(pool.times)))
    return [head, *rows]


def _largest_share(pools: Mapping[str, PoolSkew]) -> float:
    return max(max(pool.slots.values()) / sum(pool.slots.values()) for pool in pools.values())


def _idle_text(pool: PoolSkew) -> str:
    mean, low, high = pool.idle_frac
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"idle {100 * mean:.1f}%{interval}"


def _draw_slots(axes: "Axes", pool: PoolSkew, colours: Mapping[str, str], largest: float, *, is_last: bool) -> None:
    total = sum(pool.slots.values())
    for place, (name, count) in enumerate(pool.slots.items()):
        axes.barh(place, 100 * count / total, height=BAR, color=colours[name], linewidth=0)
        share = 100 * count / total
        _beside(axes, share, place, f"{share:.0f}%" if share >= 1 else f"{share:.1f}%")
    _frame(axes, len(pool.slots), list(pool.slots), 100 * largest, "share of slots (%)" if is_last else None)


def _draw_times(axes: "Axes", pool: PoolSkew, *, is_last: bool) -> None:
    shares = pool.worker_fracs()
    height = BAR * len(shares) / max(len(pool.slots), len(shares))  # as high as the bars on the left
    for worker, (load, generate, idle) in enumerate(shares):
        axes.barh(worker, 100 * load, height=height, facecolor="white", edgecolor=MUTED, hatch=HATCH, linewidth=0.4)
        axes.barh(worker, 100 * generate, left=100 * load, height=height, color=MUTED, linewidth=0)
        if idle >= 0.005:
            axes.barh(
                worker, 100 * idle, left=100 * (load + generate), height=height, facecolor="none", edgecolor=GRID,
                linewidth=0.5,
            )  # fmt: skip
        _beside(axes, 100, worker, f"{100 * idle:.0f}%")
    names = [f"worker {worker}" for worker in range(len(shares))]
    _frame(axes, len(shares), names, 100.0, "share of makespan (%)" if is_last else None)


def _beside(axes: "Axes", value: float, place: float, text: str) -> None:
    axes.annotate(
        text, (value, place), xytext=(2, 0), textcoords="offset points", va="center", fontsize=SMALL_PT, color=INK,
        annotation_clip=False,
    )  # fmt: skip


def _frame(axes: "Axes", num_rows: int, names: Sequence[str], limit: float, label: str | None) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    style_axes(axes)
    axes.set_xlim(0, limit)
    axes.set_ylim(num_rows - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL_PT)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    if label is None:
        axes.xaxis.set_major_formatter(NullFormatter())
    else:
        axes.set_xlabel(label, labelpad=1, fontsize=FONT_PT)


def _head(axes: "Axes", text: str, left_in: float, weight: str = "normal") -> None:
    axes.annotate(
        text, (0, 1), xycoords="axes fraction", xytext=(72 * left_in, 3), textcoords="offset points", va="bottom",
        fontsize=SMALL_PT, fontweight=weight, color=INK, annotation_clip=False,
    )  # fmt: skip


def _draw_legend(figure: "Figure", height_in: float) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor="white", edgecolor=MUTED, hatch=HATCH, linewidth=0.4, label="load"),
        Patch(facecolor=MUTED, linewidth=0, label="generate"),
        Patch(facecolor="white", edgecolor=GRID, linewidth=0.5, label="idle (% beside)"),
    ]
    add_legend(
        figure,
        handles,
        loc="lower right",
        at=(0.99, 0.02 / height_in),
        handlelength=1.4,
        columnspacing=0.9,
        handletextpad=0.4,
    )

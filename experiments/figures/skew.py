"""Who is asked and who waits: the share of the slots per expert, and how workers spend round robin, pool by pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from experiments.analysis.expert_stage import WorkerTimes
from experiments.figures.worker_bars import bar_handles, draw_bar
from mosaic.comparison.estimate import Estimate, estimate
from mosaic.core.checks import require
from mosaic.figures.style import (
    bar_axis,
    beside,
    expert_colours,
    legend_below,
    new_figure,
    number_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN, HEAD_IN, AROUND_IN = 0.13, 0.22, 0.42
BAR = 0.72


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
    def idle_frac(self) -> Estimate:
        """Idle share of the workers' time, over the seeds."""
        return estimate([times.idle_frac for times in self.times])

    def worker_fracs(self) -> list[tuple[float, float, float]]:
        """Load, generate and idle by worker, as shares of the makespan, means over the seeds."""
        shares = []
        for worker in range(len(self.times[0].load_s)):
            load = fmean(times.load_s[worker] / times.makespan_s for times in self.times)
            generate = fmean(times.generate_s[worker] / times.makespan_s for times in self.times)
            shares.append((load, generate, max(0.0, 1.0 - load - generate)))
        return shares


@styled()
def draw_skew(pools: Mapping[str, PoolSkew]) -> "Figure":
    """Draw a block per pool: its experts' slots on the left, its workers' times on the right."""
    colours = expert_colours([name for pool in pools.values() for name in pool.slots])
    num_rows = [max(len(pool.slots), len(pool.times[0].load_s)) for pool in pools.values()]
    figure = new_figure(AROUND_IN + sum(HEAD_IN + ROW_IN * number for number in num_rows))
    grid = figure.add_gridspec(len(pools), 2, height_ratios=num_rows)
    largest = 100 * max(max(pool.slots.values()) / sum(pool.slots.values()) for pool in pools.values())
    for place, (name, pool) in enumerate(pools.items()):
        slots, times = (figure.add_subplot(grid[place, side]) for side in (0, 1))
        _draw_slots(slots, pool, colours, largest)
        _draw_times(times, pool)
        slots.set_title(f"{name}, max/min {pool.max_min_ratio:.3g}")
        times.set_title(_idle_text(pool), fontweight="normal")
        for axes in (slots, times):
            axes.tick_params(axis="x", labelbottom=place == len(pools) - 1)
    slots.set_xlabel("share of slots (%)")
    times.set_xlabel("share of makespan (%)")
    legend_below(figure, bar_handles("idle (% beside)"))
    return figure


def slot_rows(pools: Mapping[str, PoolSkew]) -> list[tuple[object, ...]]:
    """Slots per pool and expert, with a head."""
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
        rows.append((name, "all", load, generate, *pool.idle_frac))
    return [head, *rows]


def _idle_text(pool: PoolSkew) -> str:
    ends = pool.idle_frac.shown(0.0, 1.0)
    interval = "" if ends is None else f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
    return f"idle {100 * pool.idle_frac.mean:.1f}%{interval}"


def _draw_slots(axes: "Axes", pool: PoolSkew, colours: Mapping[str, str], largest: float) -> None:
    total = sum(pool.slots.values())
    bar_axis(axes, list(pool.slots))
    for place, (name, count) in enumerate(pool.slots.items()):
        share = 100 * count / total
        axes.barh(place, share, height=BAR, color=colours[name])
        beside(axes, f"{share:.0f}%" if share >= 1 else f"{share:.1f}%", share, place)
    axes.set_xlim(0, largest)
    number_axis(axes.xaxis, 3)


def _draw_times(axes: "Axes", pool: PoolSkew) -> None:
    shares = pool.worker_fracs()
    height = BAR * len(shares) / max(len(pool.slots), len(shares))  # as high as the bars on the left
    bar_axis(axes, [f"worker {worker}" for worker in range(len(shares))])
    for worker, share in enumerate(shares):
        draw_bar(axes, worker, [100 * part if part >= 0.005 else 0.0 for part in share], height)
        beside(axes, f"{100 * share[-1]:.0f}%", 100, worker)
    axes.set_xlim(0, 100)
    number_axis(axes.xaxis, 3)

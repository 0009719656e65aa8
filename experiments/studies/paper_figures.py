"""The paper's own figures: stacked bars, quantiles of lengths, and timelines of one policy above the other."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import polars as pl

from experiments.lab.study import Tables
from experiments.lab.tables import means
from experiments.studies.paper_points import (
    BENCHMARKS,
    EXPERTS,
    NUM_WORKERS,
    POOL_OF,
    TITLES,
)
from experiments.studies.published import expert_tokens, read_published
from mosaic.comparison.estimate import Estimate, estimate
from mosaic.core.results import SessionRecord
from mosaic.figures.means import Panel, draw
from mosaic.figures.style import (
    INK,
    LOAD_HATCH,
    MUTED,
    PALETTE,
    PUBLISHED_EXPERTS,
    SMALL_PT,
    bar_axis,
    beside,
    expert_colours,
    legend_below,
    load_patch,
    new_figure,
    number_axis,
    styled,
)
from mosaic.figures.timeline import draw_lanes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_IN, HEAD_IN, AROUND_IN = 0.135, 0.33, 0.35
"""Heights of a row, of what else a panel has, and of what a figure has around its panels."""
LANE_IN, PANEL_IN, BLOCK_IN, LEGEND_IN = 0.1, 0.17, 0.28, 0.3
"""Of timelines: heights of a lane, of what else a panel has, of the axis below a block, of the legend."""
POOLS = {workload: pool for workload, pool in POOL_OF.items() if workload not in BENCHMARKS[1:]}
POLICIES = {"round_robin": "round robin", "ilp": "MOSAIC"}
"""Of both stages."""
STAGES = (
    ("end to end, round robin, every question", "aggregator, every question"),
    ("end to end, ILP and tau = 2/3", "aggregator at tau = 2/3"),
)
"""Published both stages and second stage, by policy."""
Look = Mapping[str, Any]
LOAD: Look = {"facecolor": "white", "edgecolor": MUTED, "hatch": LOAD_HATCH, "linewidth": 0.4}
GENERATE: Look = {"facecolor": MUTED}
IDLE: Look = {"facecolor": "white", "edgecolor": "#aaaaaa", "linewidth": 0.4}
SPENT = {"load": LOAD, "generate": GENERATE, "idle": IDLE}
MEAN: Look = {"linestyle": "", "marker": "D", "color": INK, "markersize": 2.4}
PUBLISHED: Look = {
    "linestyle": "", "marker": "o", "markersize": 4.6, "markerfacecolor": "none", "markeredgecolor": INK,
    "markeredgewidth": 0.6,
}  # fmt: skip
AGREEING = {"3:0": ("all agree", "#c4c4c4"), "2:1": ("two agree", "#8f8f8f"), "1:1:1": ("none agree", "#4a4a4a")}
"""Greys, since colours are the experts'."""
COLUMNS_PT = (26, 50)
"""Right ends of the columns of means beside quantiles, from the axes."""


class Bar(NamedTuple):
    """A row of parts, with its end's interval."""

    name: str
    parts: Sequence[tuple[float, Look]]
    text: str
    end: Estimate | None = None
    colour: str = INK
    """Of the text."""


@styled()
def draw_bars(columns: Mapping[str, Mapping[str, Sequence[Bar]]], looks: Mapping[str, Look]) -> "Figure":
    """Draw stacked bars: columns by the label of their axis, each with panels by title; looks are the legend's."""
    from matplotlib.patches import Patch

    num_rows = [max(map(len, group)) for group in zip(*(panels.values() for panels in columns.values()), strict=True)]
    figure = new_figure(AROUND_IN + HEAD_IN * len(num_rows) + ROW_IN * sum(num_rows))
    grid = figure.add_gridspec(len(num_rows), len(columns), height_ratios=num_rows)
    for side, (label, panels) in enumerate(columns.items()):
        for place, (title, bars) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[place, side])
            axes.set_title(title)
            bar_axis(axes, [bar.name for bar in bars])
            _draw_panel(axes, bars, height=0.75 * len(bars) / num_rows[place])
        axes.set_xlabel(label)
    legend_below(figure, [Patch(**look, label=name) for name, look in looks.items()])
    return figure


def _draw_panel(axes: "Axes", bars: Sequence[Bar], height: float) -> None:
    ends = []
    for place, bar in enumerate(bars):
        left = 0.0
        for part, look in bar.parts:
            axes.barh(place, part, left=left, height=height, **look)
            left += part
        interval = bar.end and bar.end.shown(least=0.0)
        if interval:
            axes.plot(interval, [place, place], color=INK, linewidth=0.9, zorder=4)
        ends.append(max(left, *(interval or ())) if interval else left)
        beside(axes, bar.text, ends[-1], place, color=bar.colour, annotation_clip=False)
    axes.set_xlim(0, max(ends))
    number_axis(axes.xaxis, 3)


@styled()
def draw_lengths(panels: Mapping[str, Sequence[tuple[Mapping[str, Any], str, float | None]]], label: str) -> "Figure":
    """Draw quantiles on a logarithmic axis: by title measured rows, each with its colour and published mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    sizes = [len(rows) for rows in panels.values()]
    figure = new_figure(AROUND_IN + 0.2 * len(sizes) + ROW_IN * sum(sizes) + 0.2)
    every = figure.subplots(len(sizes), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": sizes})[:, 0]
    for axes, (title, rows) in zip(every, panels.items(), strict=True):
        axes.set_title(title)
        axes.set_xscale("log")
        bar_axis(axes, [row["name"] for row, _, _ in rows])
        axes.xaxis.set_major_formatter("{x:,.0f}")
        for column, head in zip(COLUMNS_PT, ("mean", "publ."), strict=True):
            _write(axes, head, column, (1, 1.0), "axes fraction", MUTED, va="bottom")
        for place, (row, colour, published) in enumerate(rows):
            _draw_quantiles(axes, place, row, colour)
            for column, value, look in zip(COLUMNS_PT, (row["mean_tokens"], published), (MEAN, PUBLISHED), strict=True):
                if value is not None:
                    axes.plot([value], [place], zorder=4, **look)
                    _write(axes, f"{value:,.0f}", column, (1, place), ("axes fraction", "data"), INK, va="center")
    axes.set_xlabel(label)
    plain: Look = {"color": MUTED, "linestyle": ""}
    handles = [
        Patch(facecolor=MUTED, alpha=0.55, label="middle half"),
        Line2D([], [], marker="|", markersize=5, markeredgewidth=1.2, label="median", **plain),
        Line2D([], [], color=MUTED, linewidth=0.9, label="5 to 95%"),
        Line2D([], [], marker=".", markersize=2.5, label="longest", **plain),
        Line2D([], [], label="mean", **MEAN),
        Line2D([], [], label="published mean", **PUBLISHED),
    ]
    legend_below(figure, handles)
    return figure


def _write(axes: "Axes", text: str, right_pt: float, at: tuple[float, float], where: Any, colour: str, va: str) -> None:
    """Write into a column on the right."""
    axes.annotate(
        text, at, (right_pt, 0), textcoords="offset points", xycoords=where, ha="right", va=va, fontsize=SMALL_PT,
        color=colour, annotation_clip=False,
    )  # fmt: skip


def _draw_quantiles(axes: "Axes", place: int, row: Mapping[str, Any], colour: str) -> None:
    low, first, median, third, high = (row[f"p{share}_tokens"] for share in (5, 25, 50, 75, 95))
    box = [place - 0.31, place + 0.31]
    axes.plot([low, high], [place, place], color=colour, linewidth=0.9, solid_capstyle="butt")
    axes.fill_betweenx(box, first, third, color=colour, alpha=0.55, zorder=2)
    axes.plot([median, median], box, color=colour, linewidth=1.2, solid_capstyle="butt")
    axes.plot([row["max_tokens"]], [place], ".", color=colour, markersize=2.5)


class Timeline(NamedTuple):
    """A run to draw."""

    title: str
    note: str
    """On the right, above the lanes."""
    sessions: Sequence[SessionRecord]


@styled()
def draw_timelines(blocks: Sequence[Sequence[Timeline]]) -> "Figure":
    """Draw runs with a lane a GPU; those of a block share their time axis."""
    from matplotlib.patches import Patch

    shown = {session.expert for block in blocks for timeline in block for session in timeline.sessions}
    colours = expert_colours([name for name in PUBLISHED_EXPERTS if name in shown])
    num_panels = sum(map(len, blocks))
    figure = new_figure(num_panels * (PANEL_IN + NUM_WORKERS * LANE_IN) + BLOCK_IN * len(blocks) + LEGEND_IN)
    place = 0
    for block in blocks:
        ends_s = [max(session.end_ts for session in timeline.sessions) for timeline in block]
        for timeline, end_s in zip(block, ends_s, strict=True):
            place += 1
            axes = figure.add_subplot(num_panels, 1, place)
            draw_lanes(axes, timeline.sessions, colours, NUM_WORKERS, 1.02 * max(ends_s))
            axes.set_ylabel("GPU")
            axes.tick_params(axis="x", labelbottom=timeline is block[-1])
            axes.axvline(end_s, color=INK, linewidth=0.9)
            axes.set_title(f"{timeline.title}: {end_s:,.0f} s", pad=2)
            axes.set_title(timeline.note, loc="right", pad=2, fontsize=SMALL_PT, fontweight="normal")
        axes.set_xlabel("time (s)")
    legend_below(figure, [load_patch(), *(Patch(facecolor=colour, label=name) for name, colour in colours.items())])
    return figure


def runs_of(tables: Tables, workload: str, policy: str) -> pl.DataFrame:
    """Return a policy's runs of a workload."""
    name = "gpqa" if workload == "gpqa" else "runs"
    return tables[name].filter(workload=workload, policy=policy, drawn="run")


def figure1(tables: Tables) -> "Figure":
    """Draw output lengths by pool and expert."""
    rows = {(row["workload"], row["name"]): row for row in tables["lengths"].rows(named=True)}
    colours = expert_colours(PUBLISHED_EXPERTS)
    panels = {
        pool: [(rows[workload, name], colours[name], expert_tokens(workload).get(name)) for name in EXPERTS[workload]]
        for workload, pool in POOLS.items()
    }
    return draw_lengths(panels, "output tokens of a call")


def figure7(tables: Tables) -> "Figure":
    """Draw output lengths by agreement."""
    quantities = read_published().filter(workload="mmlu_pro").select("quantity", "value").rows()
    published = {quantity.rpartition(", ")[2]: value for quantity, value in quantities}
    rows = {row["name"]: row for row in tables["lengths"].filter(workload="mmlu_pro").rows(named=True)}
    return draw_lengths(
        {
            "MMLU-Pro (questions)": [
                ({**rows[split], "name": f"{words} ({rows[split]['num']:,})"}, grey, published[split])
                for split, (words, grey) in AGREEING.items()
            ]
        },
        "mean output tokens of a question's calls",
    )


def figure2(tables: Tables) -> "Figure":
    """Draw popularity, and idle time under round robin."""
    colours = expert_colours(PUBLISHED_EXPERTS)
    slots: dict[str, list[Bar]] = {}
    times: dict[str, list[Bar]] = {}
    for workload, pool in POOLS.items():
        experts = tables["lengths"].filter(pl.col("name").is_in(EXPERTS[workload]), workload=workload)
        shares = {name: 100 * num / experts["num"].sum() for name, num in experts.select("name", "num").rows()}
        ratio = max(shares.values()) / min(shares.values())
        slots[f"{pool}, max/min {ratio:.3g}"] = [
            Bar(name, [(share, {"color": colours[name]})], f"{share:.0f}%" if share >= 1 else f"{share:.1f}%")
            for name, share in shares.items()
        ]
        runs = runs_of(tables, workload, "round_robin")
        idle = estimate([100 * share for share in runs["gpu_idle_frac"]])
        times[f"idle {idle:.1f}%"] = [
            worker_bar(worker, *(100 * share for share in worker_shares(runs, worker))) for worker in range(NUM_WORKERS)
        ]
    return draw_bars({"share of slots (%)": slots, "share of makespan (%)": times}, SPENT)


def worker_bar(worker: int, load: float, generate: float, idle: float) -> Bar:
    """Make the bar of a worker, in percent; what is below half a percent is not drawn."""
    parts = [(share, look) for share, look in zip((load, generate, idle), SPENT.values(), strict=True) if share >= 0.5]
    return Bar(f"worker {worker}", parts, f"{idle:.0f}%")


def worker_shares(runs: pl.DataFrame, worker: int) -> tuple[float, float, float]:
    """Average the shares of the makespan in which a worker loads, generates and waits."""
    wall_s, load_s, busy_s = (runs[name] for name in ("expert_makespan_s", f"load_{worker}_s", f"busy_{worker}_s"))
    load, busy = fmean(load_s / wall_s), fmean(busy_s / wall_s)
    return load, busy - load, max(0.0, 1 - busy)


def figure3(tables: Tables) -> "Figure":
    """Draw round robin beside data parallel: seconds per worker, means over workers and seeds."""
    panels: dict[str, list[Bar]] = {}
    for workload, pool in POOLS.items():
        for policy, name in {"round_robin": "round robin", "data_parallel": "data parallel"}.items():
            runs = runs_of(tables, workload, policy)
            load_s, busy_s = (
                fmean(fmean(runs[f"{what}_{worker}_s"]) for worker in range(NUM_WORKERS)) for what in ("load", "busy")
            )
            wall_s = estimate(runs["expert_makespan_s"].to_list())
            idle_s = wall_s.mean - busy_s
            parts = [(load_s, LOAD), (busy_s - load_s, GENERATE), (idle_s, IDLE)]
            text = f"{wall_s.mean:,.0f} s, idle {100 * idle_s / wall_s.mean:.0f}%"
            panels.setdefault(pool, []).append(Bar(name, parts, text, wall_s))
    return draw_bars({"time per worker (s); lines: 95% interval of the makespan": panels}, SPENT)


def figure3_throughput(tables: Tables) -> "Figure":
    """Draw throughput against shard size."""
    rows = means(tables["throughput"], ["workload", "expert", "shard_size"], rate=pl.col("output_tok_per_s"))
    panels = {workload: Panel(label="output tok/s", title=pool) for workload, pool in POOLS.items()}
    return draw(
        rows, "shard_size", "rate", "expert", "workload",
        x_label="shard size (calls of a session)", panels=panels, lines=PUBLISHED_EXPERTS, stacked=True,
    )  # fmt: skip


def figure5(tables: Tables, workloads: Sequence[str] = BENCHMARKS) -> "Figure":
    """Draw timelines of the expert stage, round robin above the ILP."""
    blocks = []
    for workload in workloads:
        block = []
        for row in tables["timelines"].filter(workload=workload).rows(named=True):
            walls_s = runs_of(tables, workload, row["policy"])["expert_makespan_s"].to_list()
            mean = f", mean of {len(walls_s)}: {fmean(walls_s):,.0f} s" if len(walls_s) > 1 else ""
            title = f"{TITLES[workload]}, {'ILP' if row['policy'] == 'ilp' else 'round robin'}"
            sessions = msgspec.json.decode(row["sessions"], type=list[SessionRecord])
            block.append(Timeline(title, f"seed {row['run_seed']}{mean}", sessions))
        blocks.append(block)
    return draw_timelines(blocks)


def figure6(tables: Tables) -> "Figure":
    """Draw both stages, published pale and simulated."""
    stages = dict(zip(("experts", "aggregator"), PALETTE, strict=False))
    looks = {
        f"{stage}, {'published' if alpha < 1 else 'simulated'}": {"facecolor": colour, "alpha": alpha}
        for alpha in (0.4, 1.0)
        for stage, colour in stages.items()
    }
    said = {
        (workload, name): value
        for workload, name, value in read_published().select("workload", "quantity", "value").rows()
    }
    panels: dict[str, list[Bar]] = {}
    for workload, title in TITLES.items():
        runs = {policy: runs_of(tables, workload, policy).sort("seed") for policy in POLICIES}
        baseline = runs["round_robin"]["end_to_end_s"]
        for (policy, name), (whole, part) in zip(POLICIES.items(), STAGES, strict=True):
            own = runs[policy]
            is_ours = policy == "ilp"
            published_s, merged_s = said[workload, whole], said[workload, part]
            speedup = f"  {said[workload, 'end to end, speedup']:.2f}x" if is_ours else ""
            parts = zip((published_s - merged_s, merged_s), looks.values(), strict=False)
            text = f"{published_s:,.0f} s{speedup}"
            panels.setdefault(title, []).append(Bar(f"{name}, published", list(parts), text, colour=MUTED))
            total_s = estimate(own["end_to_end_s"].to_list())
            speedup = f"  {fmean(baseline / own['end_to_end_s']):.2f}x" if is_ours else ""
            parts = zip(
                (fmean(own["expert_makespan_s"]), fmean(own["aggregator_s"])), [*looks.values()][2:], strict=True
            )
            panels[title].append(Bar(f"{name}, simulated", list(parts), f"{total_s.mean:,.0f} s{speedup}", total_s))
    return draw_bars({"end-to-end wall time (s); lines: 95% interval": panels}, looks)


FIGURES: Mapping[str, Callable[[Tables], "Figure"]] = {
    "figure1_lengths": figure1,
    "figure2_skew": figure2,
    "figure3_data_parallel": figure3,
    "figure3_throughput": figure3_throughput,
    "figure5_timelines": figure5,
    "timelines_mmlu_pro": lambda tables: figure5(tables, ("mmlu_pro",)),
    "figure6_end_to_end": figure6,
    "figure7_agreement": figure7,
}

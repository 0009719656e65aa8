"""Draws the paper's figures from the reproduction's runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from joblib import Parallel, delayed

from experiments.analysis.expert_stage import (
    output_tokens_by_expert,
    slots_by_expert,
    tokens_by_agreement,
    worker_times,
)
from experiments.figures.agreement import agreement_rows, draw_agreement
from experiments.figures.data_parallel import data_parallel_rows, draw_data_parallel
from experiments.figures.end_to_end import Bar, draw_end_to_end, end_to_end_rows
from experiments.figures.lengths import draw_lengths, length_rows
from experiments.figures.skew import PoolSkew, draw_skew, slot_rows, worker_rows
from experiments.figures.throughput import draw_throughput
from experiments.figures.timelines import draw_timelines, timeline_rows
from experiments.studies.paper_runs import POOLS, TITLES, PaperRun, PaperRuns
from experiments.studies.published import (
    ALWAYS_AGGREGATE_S,
    BUCKET_TOKENS,
    END_TO_END_S,
    END_TO_END_SPEEDUP,
    GATED_AGGREGATE_S,
    POOL_TOKENS,
)
from experiments.studies.throughput import ThroughputPoint, size_means, throughput_points, throughput_rows
from experiments.studies.throughput_reasons import explain_curve
from mosaic.comparison.estimate import estimate
from mosaic.core.workload import PROPOSE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY_TITLES = {"round_robin": "round robin", "ilp": "MOSAIC"}
BESIDE = {"round_robin": "round robin", "data_parallel": "data parallel"}
"""Policies of figure 3."""
NUM_REPEATS = 4
"""Sessions of each size in figure 3's throughput, for as many seeds."""


Rows: TypeAlias = Sequence[Sequence[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure with the data behind it."""

    title: str
    caption: str
    figure: "Figure"
    rows: Rows
    """Head first."""
    further: Mapping[str, Rows] = field(default_factory=dict)
    """More data behind it, by file name."""


def draw_all(runs: PaperRuns) -> dict[str, Drawing]:
    """Draw every figure, by file name."""
    figures: dict[str, Callable[[PaperRuns], Drawing]] = {
        "figure1_lengths": figure1,
        "figure2_skew": figure2,
        "figure3_data_parallel": figure3,
        "figure3_throughput": figure3_throughput,
        "figure5_timelines": figure5,
        "figure6_end_to_end": figure6,
        "figure7_agreement": figure7,
    }
    return {name: draw(runs) for name, draw in figures.items()}


def figure1(runs: PaperRuns) -> Drawing:
    """Output lengths per expert and pool, the first seed."""
    lengths = {
        pool: output_tokens_by_expert(runs.of(workload, "round_robin")[0].folder) for pool, workload in POOLS.items()
    }
    return Drawing(
        title="Figure 1: output lengths per expert and pool",
        caption="MMLU-Pro's questions, one seed. Where a mean is published the workload was built on it.",
        figure=draw_lengths(lengths, POOL_TOKENS),
        rows=length_rows(lengths, POOL_TOKENS),
    )


def figure2(runs: PaperRuns) -> Drawing:
    """Popularity and idle time under round robin."""
    pools = {}
    for pool, workload in POOLS.items():
        found = runs.of(workload, "round_robin")
        times = [worker_times(run.folder) for run in found]
        pools[pool] = PoolSkew(slots=slots_by_expert(found[0].folder), times=times)
    return Drawing(
        title="Figure 2: popularity is skewed, and round robin leaves GPUs idle",
        caption="Slots per expert, and what each GPU does until the last one is done.",
        figure=draw_skew(pools),
        rows=slot_rows(pools),
        further={"figure2_idle": worker_rows(pools)},
    )


def figure3(runs: PaperRuns) -> Drawing:
    """Round robin against data parallel, pool by pool."""
    pools = {
        pool: {name: [worker_times(run.folder) for run in runs.of(workload, policy)] for policy, name in BESIDE.items()}
        for pool, workload in POOLS.items()
    }
    return Drawing(
        title="Figure 3, left: round robin against data parallel",
        caption="Copying every expert to every GPU trades idle time for loads and for small shards.",
        figure=draw_data_parallel(pools),
        rows=data_parallel_rows(pools),
    )


def figure3_throughput(runs: PaperRuns) -> Drawing:
    """Throughput against shard size, every expert in every pool that has it."""
    num_repeats = min(NUM_REPEATS, len(runs.of("mmlu_pro", "round_robin")))
    places = [
        (expert, pool)
        for pool, workload in POOLS.items()
        for expert in slots_by_expert(runs.of(workload, "round_robin")[0].folder)
    ]
    measured = Parallel(n_jobs=-1)(
        delayed(throughput_points)(
            [f"workload={POOLS[pool]}", f"pool={pool}"], expert, num_repeats=num_repeats, min_calls=128 * num_repeats
        )
        for expert, pool in places
    )
    curves: dict[str, dict[str, Sequence[ThroughputPoint]]] = {pool: {} for pool in POOLS}
    for (expert, pool), points in zip(places, measured, strict=True):
        curves[pool][expert] = points
    reasons = "".join(
        f"\n- {pool}: {explain_curve(points)}" for (_, pool), points in zip(places, measured, strict=True)
    )
    return Drawing(
        title="Figure 3, right: throughput against shard size",
        caption=f"One session on one GPU, its load left out; bands are 95% intervals of the mean over sessions; each "
        f"limit was lifted to see what it costs.\n{reasons}",
        figure=draw_throughput(
            {
                pool: {
                    name: {size.shard_size: size.rate for size in size_means(points)} for name, points in own.items()
                }
                for pool, own in curves.items()
            }
        ),
        rows=throughput_rows(curves),
    )


def typical_place(runs: PaperRuns, benchmark: str) -> int:
    """Find the seed whose makespans, under both policies together, are relatively nearest to their means."""
    distances: list[float] = [0.0] * len(runs.of(benchmark, "ilp"))
    for policy in POLICY_TITLES:
        walls_s = [float(run.summary["expert_makespan_s"]) for run in runs.of(benchmark, policy)]
        mean_s = sum(walls_s) / len(walls_s)
        distances = [known + abs(wall_s / mean_s - 1) for known, wall_s in zip(distances, walls_s, strict=True)]
    return distances.index(min(distances))


def figure5(runs: PaperRuns) -> Drawing:
    """Timelines of the expert stage, of each benchmark the seed nearest to the mean."""
    timelines, notes = {}, {}
    for benchmark, title in TITLES.items():
        place = typical_place(runs, benchmark)
        shown = {policy: runs.of(benchmark, policy)[place] for policy in POLICY_TITLES}
        timelines[title] = {
            name: [session for session in shown[policy].sessions if session.node == PROPOSE]
            for policy, name in POLICY_TITLES.items()
        }
        for policy, name in POLICY_TITLES.items():
            found = runs.of(benchmark, policy)
            mean = f", mean of {len(found)}: {_mean(found, 'expert_makespan_s'):,.0f} s" if len(found) > 1 else ""
            notes[title, name] = f"seed {shown[policy].point.seed}{mean}"
    first = runs.of("mmlu_pro", "round_robin")[0].summary
    return Drawing(
        title="Figure 5: who is busy, round robin above MOSAIC",
        caption="Expert stage on four GPUs, of each benchmark the seed whose makespans are nearest to the means over "
        "all seeds; a load is hatched, an idle GPU blank, the makespan marked.",
        figure=draw_timelines(timelines, num_workers=first["num_workers"], experts=first["experts"], notes=notes),
        rows=timeline_rows(timelines),
    )


def figure6(runs: PaperRuns) -> Drawing:
    """End-to-end walls."""
    bars = [bar for benchmark in TITLES for bar in _end_to_end_bars(benchmark, runs)]
    return Drawing(
        title="Figure 6: end to end, both stages",
        caption="Round robin with every question aggregated, and MOSAIC (the ILP, tau = 2/3). Pale bars are the "
        "published end to end and speedup; their expert part is what the published aggregator stage leaves. The expert "
        "stage in the tables differs a little: it is the mean of four published runs.",
        figure=draw_end_to_end(bars),
        rows=end_to_end_rows(bars),
    )


def figure7(runs: PaperRuns) -> Drawing:
    """Output length by agreement, the first seed."""
    buckets = tokens_by_agreement(runs.of("mmlu_pro", "round_robin")[0].folder)
    published = dict(zip(buckets, BUCKET_TOKENS, strict=True))
    return Drawing(
        title="Figure 7: questions on which experts disagree take longer",
        caption="MMLU-Pro, one seed: mean output tokens of a question's three calls, by how many of them agree.",
        figure=draw_agreement(buckets, published),
        rows=agreement_rows(buckets, published),
    )


def published_bars(benchmark: str) -> dict[str, Bar]:
    """The published end to end by policy; the experts take what the published aggregator stage leaves of it."""
    stages = zip(POLICY_TITLES.items(), END_TO_END_S[benchmark], (ALWAYS_AGGREGATE_S, GATED_AGGREGATE_S), strict=True)
    return {
        policy: Bar(
            benchmark=TITLES[benchmark],
            policy=name,
            is_published=True,
            experts_s=total_s - aggregator_s[benchmark],
            aggregator_s=aggregator_s[benchmark],
            speedup=None if policy == "round_robin" else END_TO_END_SPEEDUP[benchmark],
        )
        for (policy, name), total_s, aggregator_s in stages
    }


def _end_to_end_bars(benchmark: str, runs: PaperRuns) -> list[Bar]:
    """Four bars: the baseline and MOSAIC, published and simulated."""
    published = published_bars(benchmark)
    simulated = {policy: runs.of(benchmark, policy) for policy in POLICY_TITLES}
    bars = []
    for policy, name in POLICY_TITLES.items():
        own = [run.summary["end_to_end_s"] for run in simulated[policy]]
        baseline = [run.summary["end_to_end_s"] for run in simulated["round_robin"]]
        low, high = estimate(own).shown(least=0.0) or (None, None)
        bars += [
            published[policy],
            Bar(
                benchmark=TITLES[benchmark],
                policy=name,
                is_published=False,
                experts_s=_mean(simulated[policy], "expert_makespan_s"),
                aggregator_s=_mean(simulated[policy], "aggregator_s"),
                total_low_s=low,
                total_high_s=high,
                speedup=None
                if policy == "round_robin"
                else sum(before / after for before, after in zip(baseline, own, strict=True)) / len(own),
            ),
        ]
    return bars


def _mean(runs: Sequence[PaperRun], key: str) -> float:
    return sum(float(run.summary[key]) for run in runs) / len(runs)

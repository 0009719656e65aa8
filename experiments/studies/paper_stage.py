"""The aggregator's stage taken apart: its tail, and what the fits leave open of it."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import polars as pl

from experiments.studies.paper_rows import Row, summaries
from experiments.studies.paper_runs import OTHER_DRAWS, TITLES, PaperRun, PaperRuns
from experiments.studies.paper_tables import OpenRange, Table, show
from experiments.studies.published import PREDICTED_ILP
from mosaic.config.job import simulated
from mosaic.core.workload import AGGREGATE, Call, CallKey
from mosaic.report.metrics import makespan_s
from mosaic.runtime.even_plan import even_plan
from mosaic.runtime.planner import placed
from mosaic.runtime.static_plan import execute
from sim.world.world import World

NUM_TAIL_PARTS = 20
"""The last twentieth of the calls is the tail."""
PROMPT_TOKENS = 1500
"""Of the one response that is timed alone."""


class Tail(NamedTuple):
    """How a stage ends."""

    num_calls: int
    frac: float
    """Share of the stage, its load included, in which only the last twentieth of its calls is left."""
    longest_tokens: int


def tail_of(run: PaperRun) -> Tail:
    """Read the tail of a run's aggregator."""
    import pyarrow.parquet as pq

    calls = pq.read_table(run.folder / "calls.parquet", columns=["node", "finished_ts", "output_tokens"]).to_pylist()
    calls = [call for call in calls if call["node"] == AGGREGATE]
    ends = sorted(call["finished_ts"] for call in calls)
    start = min(session.load_start_ts for session in run.sessions if session.node == AGGREGATE)
    tail_s = ends[-1] - ends[len(ends) - 1 - len(ends) // NUM_TAIL_PARTS]
    return Tail(len(calls), tail_s / (ends[-1] - start), max(call["output_tokens"] for call in calls))


@cache
def longest_alone_s(workload: str) -> tuple[float, int]:
    """Time one response up to the output limit, alone on four GPUs, its load included."""
    job, site = simulated([f"workload={workload}"])
    expert = placed(job.graph.upper_nodes[0].experts[0], 4)
    call = Call(CallKey("longest", AGGREGATE, 0), expert.name, PROMPT_TOKENS)
    limit = expert.output_limit(call.prompt_tokens)
    world = World(lengths={}, root_seed=0, recorded={call.key: limit})
    plan = even_plan([call], [expert], site, site.cluster.num_workers)
    alone_s = makespan_s(execute(plan, [call], site.backend_in(world)).sessions)
    assert alone_s is not None
    return alone_s, limit


def tail_table(runs: PaperRuns) -> Table:
    """What the aggregator's stage at tau = 2/3 is made of, means over the seeds."""
    head = (
        "benchmark", "calls at tau = 2/3", "the last 5% of them alone", "longest response",
        "one response to the limit, alone", "of the stage",
    )  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for benchmark, title in TITLES.items():
        found = runs.of(benchmark, "ilp")
        num_calls, frac, longest = (sum(part) / len(found) for part in zip(*map(tail_of, found), strict=True))
        alone_s, limit = longest_alone_s(benchmark)
        lines.append(
            (
                title,
                f"{num_calls:,.0f}",
                f"{frac:.0%} of the stage",
                f"{longest:,.0f} tokens",
                f"{show(alone_s, 's')} ({limit:,} tokens)",
                f"{alone_s / fmean(summaries(found, 'aggregator_s')):.0%}",
            )
        )
    return lines


def open_ranges(rows: Sequence[Row], runs: PaperRuns, walls: Mapping[str, Mapping[str, OpenRange]]) -> Table:
    """Both stages under the ILP and the gate at 2/3, and the end-to-end speedup, over all parameter sets."""
    lines: list[tuple[str, ...]] = [
        ("quantity", "benchmark", "published", "committed set", "over all parameter sets", "")
    ]
    for benchmark, by_stage in walls.items():
        found = {row.quantity: row for row in rows if row.benchmark == benchmark}
        for quantity, name in (("ILP, expert stage", "expert_s"), ("aggregator at tau = 2/3", "aggregator_s")):
            each = by_stage[name]
            lines.append(_range_line(found[quantity], each.mean_s, each.low_s, each.high_s))
        before_s = fmean(summaries(runs.of(benchmark, "round_robin"), "end_to_end_s"))
        # NOTE: a set that is slow in one stage may be fast in the other, so the ends of the sum are a bit too wide.
        whole = (
            before_s / sum(getattr(each, end) for each in by_stage.values()) for end in ("mean_s", "high_s", "low_s")
        )
        lines.append(_range_line(found["end to end, speedup"], *whole))
    return lines


def _range_line(row: Row, mean: float, low: float, high: float) -> tuple[str, ...]:
    error = min(max(row.published, low), high) / row.published - 1
    verdict = f"MISS: {error:+.1%}" if error else "inside"
    shown = (show(row.published, row.unit), show(mean, row.unit), f"{show(low, row.unit)} to {show(high, row.unit)}")
    return row.quantity, TITLES[row.benchmark], *shown, verdict


def spread_table(runs: PaperRuns) -> Table:
    """Relative standard deviation of the ILP's expert stage, by what is drawn anew."""
    lines: list[tuple[str, ...]] = [
        ("benchmark", "published runs", "luck of a run", "draw of the questions", "draw of the profile")
    ]
    for benchmark, title in TITLES.items():
        ours = [
            summaries(runs.of(benchmark, policy), "expert_makespan_s")
            for policy in ("ilp", *(f"ilp_{name}" for name in OTHER_DRAWS))
        ]
        lines.append((title, *(_spread(walls) for walls in (PREDICTED_ILP[benchmark].runs_s, *ours))))
    return lines


def _spread(walls_s: Sequence[float]) -> str:
    if len(walls_s) < 2:
        return "-"
    return f"{stdev(walls_s) / fmean(walls_s):.1%} of {fmean(walls_s):,.0f} s"


def ability_table(answers: Path) -> Table:
    """Expected accuracy changes at tau = 2/3 with the experts' assumed abilities multiplied, all refitted."""
    rows = pl.read_csv(answers).to_dicts()
    changes = {(row["workload"], row["factor"]): row["change_majority_pp"] for row in rows}
    factors = list(dict.fromkeys(row["factor"] for row in rows))
    return [
        ("abilities multiplied by", *(f"{factor:g}" for factor in factors)),
        *((title, *(show(changes[name, factor], "pp") for factor in factors)) for name, title in TITLES.items()),
    ]

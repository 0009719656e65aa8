"""The aggregator's stage taken apart: without its elasticity, its tail, and what round robin leaves open.

The prediction without the elasticity was reported before one was fitted to MMLU-Pro's wall at tau = 2/3.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from experiments.config.job import simulated
from experiments.studies.paper_rows import PREDICTED, Row, ratios, row_maker, summaries
from experiments.studies.paper_runs import TITLES, PaperRun, PaperRuns
from experiments.studies.paper_tables import OpenRange, Table, show
from experiments.studies.published import END_TO_END_SPEEDUP, GATED_AGGREGATE_S
from mosaic.core.workload import AGGREGATE, Call, CallKey
from mosaic.report.metrics import makespan_s
from mosaic.runtime.measuring import even_plan
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


def rows_without_elasticity(runs: PaperRuns) -> list[Row]:
    """The two numbers per benchmark that the elasticity moves, predicted without it."""
    rows = []
    for benchmark in TITLES:
        row, baseline, plain = row_maker(benchmark), runs.of(benchmark, "round_robin"), runs.of(benchmark, "inelastic")
        gated = summaries(plain, "aggregator_s")
        speedups = ratios(summaries(baseline, "end_to_end_s"), summaries(plain, "end_to_end_s"))
        rows += [
            row("aggregator at tau = 2/3", "s", GATED_AGGREGATE_S[benchmark], gated, PREDICTED),
            row("end to end, speedup", "x", END_TO_END_SPEEDUP[benchmark], speedups, PREDICTED),
        ]
    return rows


def tail_table(runs: PaperRuns) -> Table:
    """What the aggregator's stage at tau = 2/3 is made of, means over the seeds."""
    head = (
        "benchmark", "calls at tau = 2/3", "the last 5% of them alone", "longest response",
        "one response to the limit, alone", "of the stage",
    )  # fmt: skip
    lines = [head]
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


def end_to_end_ranges(runs: PaperRuns, ranges: Mapping[str, OpenRange]) -> Table:
    """End-to-end speedups over all parameter sets, the aggregator's stage as it is."""
    lines = [("benchmark", "published", "over all parameter sets", "")]
    for benchmark, left_open in ranges.items():
        before, after = runs.of(benchmark, "round_robin"), runs.of(benchmark, "ilp")
        before_s = fmean(summaries(before, "end_to_end_s"))
        ilp_s, gated_s = (fmean(summaries(after, key)) for key in ("expert_makespan_s", "aggregator_s"))
        low, high = (
            before_s / (ilp_s * wall_s / left_open.mean_s + gated_s) for wall_s in (left_open.high_s, left_open.low_s)
        )
        published = END_TO_END_SPEEDUP[benchmark]
        miss = min(max(published, low), high) / published - 1
        verdict = f"MISS: {miss:+.1%}" if miss else "inside"
        lines.append((TITLES[benchmark], show(published, "x"), f"{show(low, 'x')} to {show(high, 'x')}", verdict))
    return lines


def ability_table(answers: Path) -> Table:
    """Expected accuracy changes at tau = 2/3 with the experts' assumed abilities multiplied, all refitted."""
    changes: dict[str, dict[str, Any]] = json.loads(answers.read_text(encoding="utf-8"))["accuracy_change_pp"]
    factors = list(next(iter(changes.values())))
    head = ("abilities multiplied by", *factors)
    return [
        head,
        *((title, *(show(changes[name][factor][1], "pp") for factor in factors)) for name, title in TITLES.items()),
    ]

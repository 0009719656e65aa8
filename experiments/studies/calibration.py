"""Fits the simulator to round robin, and predicts the range that the open parameters leave.

MMLU-Pro's round-robin workers give the CPU time per KV token, the spread of the reasoning experts' lengths and the
means of Qwen and Exaone; GLM's follows from the published mean over all calls. MedMCQA and GPQA get one length scale
each, and every aggregator one mean. Four parameters follow from no published number; they are assumed, and varied. They
are the reasoning experts' output cap, the streams of the GPU's attention, the spread of the light experts' lengths and,
on MedMCQA, the order of the experts. Every variant is fitted again to the same baseline. This module never reads a
number that must be predicted. The configuration holds the first set.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

import mosaic
from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import markdown, means
from experiments.studies.published import PUBLISHED_MEANS, ROUND_ROBIN_WALL_S, ROUND_ROBIN_WORKER_S
from experiments.studies.round_robin import (
    FIT_SEEDS,
    BaselineSessions,
    ParameterSet,
    committed_set,
    fit_merged,
    fit_workers,
)
from mosaic.comparison.estimate import Estimate
from mosaic.config.job import simulated_job
from mosaic.report.metrics import expert_sessions, makespan_s

RESULTS = Path(__file__).resolve().parents[2] / "results" / "calibration"
"""The committed tables: runs are simulated with their fits, also where a study writes elsewhere."""
TITLES = {"mmlu_pro": "MMLU-Pro", "medmcqa": "MedMCQA", "gpqa": "GPQA"}
AGGREGATORS = {"mmlu_pro": "LlamaR1", "medmcqa": "Exaone", "gpqa": "QwenR1"}
COMMITTED = "committed"
START = ParameterSet(
    attention_streams=86.0,
    cpu_per_kv_token_s=9.8e-9,
    output_cap=32_768,
    reasoning_sigma=1.045,
    light_sigma=0.8,
    mean_by_expert={**PUBLISHED_MEANS, "Exaone": 727.0, "GLM": 468.0, "Qwen": 510.0},
)
"""Where the committed set's fit begins; streams, cap and the light experts' spread are assumed."""
CAPS = (32_768, 16_384, 20_480, 24_576)
STREAMS = (86.0, 63.0, 108.0)
"""The middle and the ends of what is derived for an A100 (experiments/hardware/skew_fit.py)."""
ASSUMED: dict[str, dict[str, Any]] = {
    f"cap {cap:,}, {streams:g} streams": {"output_cap": cap, "attention_streams": streams}
    for cap, streams in list(product(CAPS, STREAMS))[1:]
} | {f"light sigma {sigma:g}": {"light_sigma": sigma} for sigma in (0.6, 1.0)}
"""What else may be assumed: in what each set differs from the committed one before it is fitted."""
NUM_SEEDS, NUM_SET_SEEDS = 32, 6
"""Seeds that the fit of the committed set sees, and that of each other one."""
NUM_SEEDS_FACTOR = {"mmlu_pro": 1, "medmcqa": 1, "gpqa": 2}
"""GPQA's makespan is one session of 429 heavy-tailed calls: it takes twice the seeds for the same certainty."""
ORDERS = {COMMITTED: "scale", "least": "scale_least", "most": "scale_most"}
"""Of the experts, by the length scale that they give; a makespan grows with the scale."""
POLICY = ("scheduler=ilp", "gate=majority")
STAGES = {"expert_s": "expert stage", "aggregator_s": "aggregator at tau = 2/3"}


def fit(point: Point, seed: int) -> Row:
    """Fit a set to MMLU-Pro's workers, and carry it to the other benchmarks."""
    name = str(point.labels["set"])
    is_first = name == COMMITTED
    num_seeds = NUM_SEEDS if is_first else NUM_SET_SEEDS
    sessions = BaselineSessions("mmlu_pro", FIT_SEEDS[:num_seeds])
    found = fit_workers(sessions, START if is_first else replace(committed_set(), **ASSUMED[name]))
    row: dict[str, Any] = {each.name: getattr(found, each.name) for each in fields(found)}
    row |= row.pop("mean_by_expert")
    row |= {f"worker_{number}_s": round(float(busy_s), 1) for number, busy_s in enumerate(sessions.workers_s(found))}
    for workload, factor in NUM_SEEDS_FACTOR.items():
        scales = [1.0]
        if workload != "mmlu_pro":
            more = BaselineSessions(workload, range(FIT_SEEDS[0], FIT_SEEDS[0] + factor * num_seeds))
            scales = [round(scale, 4) for scale in more.fit_scales(found, ROUND_ROBIN_WALL_S[workload])]
        ends = zip(ORDERS.values(), (scales[0], min(scales), max(scales)), strict=True)
        row |= {f"{workload}_{key}": scale for key, scale in ends}
        merging_seeds = FIT_SEEDS[: max(4, factor * num_seeds // 2)]
        row[f"{workload}_merged_tokens"] = fit_merged(workload, found, scales[0], merging_seeds)
    return row


def read_fits() -> dict[str, dict[str, Any]]:
    """Read the committed fits, by the name of the set."""
    return {row["set"]: row for row in pl.read_csv(RESULTS / "fits.csv").to_dicts()}


def parameters_of(row: Mapping[str, Any]) -> ParameterSet:
    """Take a set from its row of the fits."""
    own = {each.name: row[each.name] for each in fields(ParameterSet) if each.name != "mean_by_expert"}
    return ParameterSet(**own, mean_by_expert={name: row[name] for name in START.mean_by_expert})


def open_points() -> Iterator[Point]:
    """List all sets; on MedMCQA, whose six experts share four GPUs, also the orders at the ends."""
    for workload, name in product(TITLES, (COMMITTED, *ASSUMED)):
        for order in ORDERS if workload == "medmcqa" else (COMMITTED,):
            yield Point(labels={"workload": workload, "set": name, "order": order})


def predict(point: Point, seed: int) -> Row:
    """Simulate the ILP with the gate at 2/3 under a set."""
    workload, name, order = (str(label) for label in point.labels.values())
    row = read_fits()[name]
    merged = (AGGREGATORS[workload], row[f"{workload}_merged_tokens"])
    overrides = parameters_of(row).overrides(row[f"{workload}_{ORDERS[order]}"], merged)
    job, _ = simulated_job([f"workload={workload}", *POLICY, *overrides, f"seed={seed}"])
    result = mosaic.run(job).result
    expert_s, whole_s = makespan_s(expert_sessions(result)), makespan_s(result.sessions)
    assert expert_s is not None
    assert whole_s is not None
    return {"expert_s": round(expert_s, 3), "aggregator_s": round(whole_s - expert_s, 3)}


def open_ranges(tables: Tables) -> list[dict[str, Any]]:
    """Compute the times of the stages with the committed set, and over all sets that match round robin.

    The committed set is simulated with many seeds. The others use only the first seed. They count by their ratio to the
    committed set with the same seed, so that a few heavy tails have no effect.
    """
    found = []
    for workload, stage in product(TITLES, STAGES):
        (many,) = means(tables["walls"].filter(workload=workload), ["workload"], taken=pl.col(stage))
        few = means(tables["open_walls"].filter(workload=workload), ["set", "order"], taken=pl.col(stage))
        first_s = next(row["taken"].mean for row in few if (row["set"], row["order"]) == (COMMITTED, COMMITTED))
        ratios = [row["taken"].mean / first_s for row in few]
        mean: Estimate = many["taken"]
        ends = {"low_s": mean.mean * min(ratios), "high_s": mean.mean * max(ratios)}
        found.append({"workload": workload, "stage": stage, "mean": mean, **ends})
    return found


def committed_ranges() -> list[dict[str, Any]]:
    """Take the ranges from the committed tables."""
    return open_ranges({name: pl.read_csv(RESULTS / f"{name}.csv") for name in ("walls", "open_walls")})


def report(tables: Tables) -> str:
    """Write what was fitted beside what it was fitted to, all sets, and what they predict."""
    rows = tables["fits"].to_dicts()
    workers = [
        {"worker": number, "published (s)": f"{published_s:,.0f}", "fit (s)": f"{rows[0][f'worker_{number}_s']:,.1f}"}
        for number, published_s in enumerate(ROUND_ROBIN_WORKER_S)
    ]
    sets = [
        {
            "set": row["set"],
            "host (ns)": f"{1e9 * row['cpu_per_kv_token_s']:.2f}",
            "sigma": row["reasoning_sigma"],
            **{name: row[name] for name in ("Exaone", "GLM", "Qwen")},
            "scale, MedMCQA": "{medmcqa_scale} ({medmcqa_scale_least} to {medmcqa_scale_most})".format(**row),
            "scale, GPQA": row["gpqa_scale"],
            **{f"aggregator, {title}": row[f"{workload}_merged_tokens"] for workload, title in TITLES.items()},
        }
        for row in rows
    ]
    ranges = [
        {
            "benchmark": TITLES[row["workload"]],
            "stage": STAGES[row["stage"]],
            "committed set (s)": f"{row['mean']:,.0f}",
            "over all sets (s)": f"{row['low_s']:,.0f} to {row['high_s']:,.0f}",
        }
        for row in open_ranges(tables)
    ]
    return PAGE.format(workers=markdown(workers), sets=markdown(sets), ranges=markdown(ranges))


PAGE = """\
Round robin is all that the simulator is fitted to: MMLU-Pro's four workers and its tokens per call (five numbers, five
parameters), one length scale each to MedMCQA's and GPQA's makespans, one mean to each aggregator's time when it reads
every question. Fits see other seeds than the predictions. The configuration holds the committed set.

## The fit: busy seconds of MMLU-Pro's workers

{workers}

## All sets that match round robin

What nothing published tells is assumed and varied: the output cap of the reasoning experts, the streams of the GPU's
attention, the spread of the light experts' lengths, and MedMCQA's order of experts, whose length scales are in
brackets. Columns: host time per KV token, spread (sigma) of the reasoning experts' log lengths, mean tokens of three
light experts, length scales of two benchmarks, mean tokens of each aggregator.

{sets}

## What they predict: the ILP with the gate at tau = 2/3

Means over seeds with 95% intervals for the committed set; the other sets by their ratio to it under the same seeds. The
[reproduction](../paper/paper.md) sets these ranges beside the published times.

{ranges}
"""

STUDY = Study(
    name="calibration",
    about="The simulator fitted to the paper's round robin, and what the fits leave open of its predictions.",
    title="The simulator fitted to round robin",
    tables={
        "fits": Sweep(points=tuple(Point(labels={"set": name}) for name in (COMMITTED, *ASSUMED)), measure=fit),
        "walls": Sweep(
            points=tuple(Point(labels={"workload": name, "set": COMMITTED, "order": COMMITTED}) for name in TITLES),
            measure=predict,
            num_seeds=24,
        ),
        "open_walls": Sweep(points=tuple(open_points()), measure=predict, num_seeds=4),
    },
    report=report,
)

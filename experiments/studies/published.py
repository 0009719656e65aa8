"""Reads the published numbers of MOSAIC (arXiv 2606.03014); published.csv is their only source.

A number of several runs has one row per run. The column ``kind`` is the role of a number for the simulator. It is
``fitted`` (calibrated on it), ``built on`` (part of a workload or pool), ``follows from fits`` (computed from fits
alone) or ``predicted`` (nothing may be fitted to it).
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import polars as pl

from mosaic.core.checks import require

FITTED, FOLLOWS, PREDICTED, BUILT_ON = "fitted", "follows from fits", "predicted", "built on"
MEAN_TOKENS = "mean tokens, "
"""Begins the quantities of single experts."""


@cache
def read_published() -> pl.DataFrame:
    """Return all numbers, those that must be predicted among them: for the page that compares."""
    return pl.read_csv(Path(__file__).with_suffix(".csv"))


def fit_target(quantity: str, workload: str = "mmlu_pro") -> float:
    """Return a number that the simulator may be fitted to.

    Raises
    ------
    ValueError
        If there is none, or it must be predicted.
    """
    rows = read_published().filter(workload=workload, quantity=quantity)
    kinds = rows["kind"].to_list()
    require(kinds in ([FITTED], [BUILT_ON]), f"published {quantity!r} of {workload}", f"{FITTED} or {BUILT_ON}", kinds)
    return float(rows["value"][0])


def expert_tokens(workload: str) -> dict[str, float]:
    """Return the mean output tokens of a call by expert, where published: workloads are built on them."""
    rows = read_published().filter(pl.col("quantity").str.starts_with(MEAN_TOKENS), workload=workload, kind=BUILT_ON)
    return {quantity.removeprefix(MEAN_TOKENS): value for quantity, value in rows.select("quantity", "value").rows()}


BENCHMARKS = ("mmlu_pro", "medmcqa", "gpqa")
ROUND_ROBIN_WORKER_S = tuple(fit_target(f"round robin, busy seconds of worker {worker}") for worker in range(4))
"""MMLU-Pro, busy seconds (load and generate) under round robin."""
ROUND_ROBIN_WALL_S = {name: fit_target("round robin, expert stage", name) for name in BENCHMARKS[1:]}
"""Expert-stage makespan under round robin; MMLU-Pro's follows from its workers."""
ALWAYS_AGGREGATE_S = {name: fit_target("aggregator, every question", name) for name in BENCHMARKS}
PUBLISHED_MEANS = expert_tokens("mmlu_pro")
UNANIMOUS_RIGHT_FRAC = {who: fit_target(f"right where all agree, {who}") for who in ("majority", "aggregator")}
"""MMLU-Pro, share of right answers where all three experts agree."""
BUCKET_TOKENS = tuple(fit_target(f"mean tokens of a question's calls, {split}") for split in ("3:0", "2:1", "1:1:1"))
"""MMLU-Pro, by how many of the three answers agree."""


class FittedAnswers(NamedTuple):
    """What a benchmark's answers may be fitted to."""

    unanimous_frac: float
    """Questions on which all three experts agree."""
    distinct_frac: float
    """Questions on which no two agree."""
    always_accuracy_frac: float
    """When every question is aggregated."""


FITTED_ANSWERS = {
    name: FittedAnswers(
        fit_target("skipped at tau = 1", name),
        fit_target("no two experts agree", name),
        fit_target("accuracy, every question aggregated", name),
    )
    for name in BENCHMARKS
}
_all, _none = FITTED_ANSWERS["mmlu_pro"][:2]
TOKENS_PER_CALL = _all * BUCKET_TOKENS[0] + (1 - _all - _none) * BUCKET_TOKENS[1] + _none * BUCKET_TOKENS[2]
"""MMLU-Pro, mean over all calls: follows from the means by agreement."""

"""The reproduction's numbers beside the published ones: one row each, from run folders and the published tables.

Every row says what it is: ``fitted`` (the simulator was calibrated on it), ``follows from fits`` (nothing else goes
into it) or ``predicted``. A published value is a miss where it lies outside of the 95% interval of what the simulator
says of as many runs as were published.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.stats import spearmanr

from experiments.analysis.expert_stage import AGREEMENT_BUCKETS, tokens_by_agreement
from experiments.studies.paper_runs import BENCHMARKS, PaperRun, PaperRuns
from experiments.studies.published import (
    ACCURACY_CHANGE_PP,
    AGGREGATE_SPEEDUP,
    ALWAYS_AGGREGATE_S,
    BUCKET_SPEARMAN,
    BUCKET_TOKENS,
    END_TO_END_S,
    END_TO_END_SPEEDUP,
    FITTED_ANSWERS,
    GATED_AGGREGATE_S,
    PREDICTED_ILP,
    ROUND_ROBIN_IDLE_FRAC,
    ROUND_ROBIN_WALL_S,
    ROUND_ROBIN_WORKER_S,
    UNANIMOUS_RIGHT_FRAC,
)
from mosaic.comparison.estimate import Interval, t_interval
from mosaic.core.workload import PROPOSE
from mosaic.report.metrics import busy_s_by_worker
from mosaic.report.run_records import ANSWERS, read_table

Kind: TypeAlias = Literal["fitted", "follows from fits", "predicted"]
Unit: TypeAlias = Literal["s", "x", "tokens", "frac", "pp", "rho"]

FITTED: Kind = "fitted"
FOLLOWS: Kind = "follows from fits"
PREDICTED: Kind = "predicted"
RELATIVE = ("s", "x", "tokens")
"""Units whose error is relative."""
FAR_FRAC = 0.1
MOSTLY_FITTED = "mmlu_pro"
"""The benchmark whose workers are fitted; its wall and its change at tau = 1 follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A published number and what the simulator says, a value per seed."""

    quantity: str
    benchmark: str
    unit: Unit
    published: float
    values: tuple[float, ...]
    kind: Kind
    num_published: int = 1
    """Runs behind the published number."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the mean; None for a single seed."""
        return _known(t_interval(self.values))

    @property
    def predictive(self) -> tuple[float, float] | None:
        """95% interval of the mean of as many runs as were published; None for a single seed."""
        return _known(t_interval(self.values, self.num_published))

    @property
    def error(self) -> float:
        """Relative for seconds, ratios and tokens; a difference for shares, points and correlations."""
        if self.unit in RELATIVE:
            return self.mean / self.published - 1
        return self.mean - self.published

    @property
    def is_miss(self) -> bool | None:
        """Whether the published value lies outside of ``predictive``; None for a single seed, which has no interval."""
        if self.predictive is None:
            return None
        low, high = self.predictive
        return not low <= self.published <= high

    @property
    def is_far(self) -> bool:
        """Whether the simulator is off by more than a tenth and no interval says it is a miss: noise may hide it."""
        return not self.is_miss and self.unit in RELATIVE and abs(self.error) > FAR_FRAC

    @property
    def num_intervals_off(self) -> float:
        """Distance from the published value, in half widths of ``predictive``; 0 for a single seed."""
        if self.predictive is None:
            return 0.0
        half = (self.predictive[1] - self.predictive[0]) / 2
        return abs(self.mean - self.published) / half if half > 0 else 0.0


def _known(interval: Interval) -> tuple[float, float] | None:
    return None if interval[0] is None else interval


def measure_rows(runs: PaperRuns) -> list[Row]:
    """All rows, in the order of the paper's argument."""
    rows = [*_worker_rows(runs)]
    for benchmark in BENCHMARKS:
        rows += [*_wall_rows(benchmark, runs), *_answer_rows(benchmark, runs), *_end_to_end_rows(benchmark, runs)]
    return [*rows, *_agreement_rows(runs)]


def summaries(runs: Sequence[PaperRun], key: str, factor: float = 1.0) -> tuple[float, ...]:
    """A number of summary.json, by seed."""
    return tuple(factor * run.summary[key] for run in runs)


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    """Paired by seed."""
    return tuple(one / other for one, other in zip(over, under, strict=True))


def _worker_rows(runs: PaperRuns) -> list[Row]:
    """MMLU-Pro under round robin, worker by worker."""
    baseline = runs.of("mmlu_pro", "round_robin")
    busy = [
        busy_s_by_worker([session for session in run.sessions if session.node == PROPOSE], run.summary["num_workers"])
        for run in baseline
    ]
    row = row_maker("mmlu_pro")
    rows = [
        row(f"round robin, busy seconds of worker {worker}", "s", published, [seed[worker] for seed in busy], FITTED)
        for worker, published in enumerate(ROUND_ROBIN_WORKER_S)
    ]
    idle = summaries(baseline, "gpu_idle_frac")
    return [*rows, row("round robin, idle share of GPU time", "frac", ROUND_ROBIN_IDLE_FRAC, idle, FOLLOWS)]


def _wall_rows(benchmark: str, runs: PaperRuns) -> list[Row]:
    """Expert stage."""
    row = row_maker(benchmark)
    round_robin, ilp = (summaries(runs.of(benchmark, policy), "expert_makespan_s") for policy in ("round_robin", "ilp"))
    published = PREDICTED_ILP[benchmark]
    wall_kind = FOLLOWS if benchmark == MOSTLY_FITTED else FITTED
    return [
        row("round robin, expert stage", "s", ROUND_ROBIN_WALL_S[benchmark], round_robin, wall_kind),
        row("ILP, expert stage", "s", published.mean_s, ilp, PREDICTED, len(published.runs_s)),
        row("ILP, speedup of the expert stage", "x", published.speedup, ratios(round_robin, ilp), PREDICTED),
    ]


def _answer_rows(benchmark: str, runs: PaperRuns) -> list[Row]:
    """Skips and accuracy."""
    row = row_maker(benchmark)
    answers, changes = FITTED_ANSWERS[benchmark], ACCURACY_CHANGE_PP[benchmark]
    never, one, two = (runs.of(benchmark, policy) for policy in ("round_robin", "unanimous", "ilp"))
    at_one = FOLLOWS if benchmark == MOSTLY_FITTED else PREDICTED
    return [
        row("skipped at tau = 1", "frac", answers.unanimous_frac, summaries(one, "skip_frac"), FITTED),
        row("skipped at tau = 2/3", "frac", 1 - answers.distinct_frac, summaries(two, "skip_frac"), FITTED),
        row(
            "accuracy, every question aggregated", "frac", answers.always_accuracy_frac,
            summaries(never, "accuracy_frac"), FITTED,
        ),
        row("accuracy change at tau = 1", "pp", changes[0], summaries(one, "accuracy_change_pp"), at_one),
        row("accuracy change at tau = 2/3", "pp", changes[1], summaries(two, "accuracy_change_pp"), PREDICTED),
    ]  # fmt: skip


def _end_to_end_rows(benchmark: str, runs: PaperRuns) -> list[Row]:
    """Aggregator and both stages."""
    row = row_maker(benchmark)
    before, after = (runs.of(benchmark, policy) for policy in ("round_robin", "ilp"))
    always, gated = (summaries(part, "aggregator_s") for part in (before, after))
    whole, ours = (summaries(part, "end_to_end_s") for part in (before, after))
    return [
        row("aggregator, every question", "s", ALWAYS_AGGREGATE_S[benchmark], always, FITTED),
        row("aggregator at tau = 2/3", "s", GATED_AGGREGATE_S[benchmark], gated, PREDICTED),
        row("aggregator, speedup at tau = 2/3", "x", AGGREGATE_SPEEDUP[benchmark], ratios(always, gated), PREDICTED),
        row("end to end, round robin, every question", "s", END_TO_END_S[benchmark][0], whole, FOLLOWS),
        row("end to end, ILP and tau = 2/3", "s", END_TO_END_S[benchmark][1], ours, PREDICTED),
        row("end to end, speedup", "x", END_TO_END_SPEEDUP[benchmark], ratios(whole, ours), PREDICTED),
    ]


def _agreement_rows(runs: PaperRuns) -> list[Row]:
    """MMLU-Pro's accuracy and tokens by agreement."""
    row = row_maker("mmlu_pro")
    never, one = (runs.of("mmlu_pro", policy) for policy in ("round_robin", "unanimous"))
    seeds = [tokens_by_agreement(run.folder) for run in never]
    rows = [
        row(
            f"right where all agree, {who}", "frac", UNANIMOUS_RIGHT_FRAC[who], map(right_where_unanimous, read), FITTED
        )
        for who, read in (("majority", one), ("aggregator", never))
    ]
    rows += [
        row(
            f"mean tokens of a question's calls, {bucket}", "tokens", published,
            [float(np.mean(seed[bucket])) for seed in seeds], FITTED,
        )
        for bucket, published in zip(AGREEMENT_BUCKETS, BUCKET_TOKENS, strict=True)
    ]  # fmt: skip
    correlations = [_rank_correlation(seed) for seed in seeds]
    return [*rows, row("rank correlation of length with agreement", "rho", BUCKET_SPEARMAN, correlations, PREDICTED)]


def right_where_unanimous(run: PaperRun) -> float:
    """Share of right final answers where all experts agree."""
    answers = read_table(run.folder / ANSWERS, ["confidence", "correct"])
    return float(np.mean(answers.filter(confidence=1.0)["correct"].to_numpy()))


def _rank_correlation(buckets: dict[str, list[float]]) -> float:
    agreement = [-rank for rank, bucket in enumerate(AGREEMENT_BUCKETS) for _ in buckets[bucket]]
    tokens = [value for bucket in AGREEMENT_BUCKETS for value in buckets[bucket]]
    return float(spearmanr(tokens, agreement).statistic)


def row_maker(benchmark: str) -> Callable[..., Row]:
    """Shorten what the rows of a benchmark share."""

    def make(
        quantity: str, unit: Unit, published: float, values: Iterable[float], kind: Kind, num_published: int = 1
    ) -> Row:
        return Row(
            quantity=quantity,
            benchmark=benchmark,
            unit=unit,
            published=published,
            values=tuple(values),
            kind=kind,
            num_published=num_published,
        )

    return make

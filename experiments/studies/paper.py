"""The paper, reproduced in simulation: each published number beside the simulated one, misses first."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import polars as pl

from experiments.lab.study import Study, Sweep, Tables
from experiments.lab.tables import beside, markdown, means, wide
from experiments.studies.calibration import committed_ranges
from experiments.studies.paper_figures import FIGURES
from experiments.studies.paper_points import (
    AGREEMENTS,
    BENCHMARKS,
    EXPERTS,
    LENGTH_POINTS,
    NUM_SESSIONS,
    NUM_WORKERS,
    POINTS,
    POOL_OF,
    THROUGHPUT_POINTS,
    TIMELINE_POINTS,
    TITLES,
    is_small,
    measure,
    measure_lengths,
    measure_throughput,
    measure_timeline,
)
from experiments.studies.published import FITTED, PREDICTED, read_published
from mosaic.comparison.estimate import Estimate, Interval, estimate, t_interval

CALIBRATION = Path(__file__).resolve().parents[2] / "results" / "calibration"
FAR_FRAC = 0.1
FORMS = {"s": "{:,.1f} s", "x": "{:.2f}x", "tokens": "{:,.0f}", "frac": "{:.1%}", "pp": "{:+.2f} pp", "rho": "{:+.2f}"}
"""By unit."""
RELATIVE = ("s", "x", "tokens")
"""Units whose error is relative."""


def of(policy: str, name: str) -> pl.Expr:
    """Return a measured column of a policy."""
    return pl.col(f"{name}_{policy}")


QUANTITIES: Mapping[str, pl.Expr] = {
    **{
        f"round robin, busy seconds of worker {worker}": of("round_robin", f"busy_{worker}_s")
        for worker in range(NUM_WORKERS)
    },
    "round robin, idle share of GPU time": of("round_robin", "gpu_idle_frac"),
    "round robin, expert stage": of("round_robin", "expert_makespan_s"),
    "ILP, expert stage": of("ilp", "expert_makespan_s"),
    "ILP, speedup of the expert stage": of("round_robin", "expert_makespan_s") / of("ilp", "expert_makespan_s"),
    "skipped at tau = 1": of("unanimous", "skip_frac"),
    "skipped at tau = 2/3": of("ilp", "skip_frac"),
    "accuracy, every question aggregated": of("round_robin", "accuracy_frac"),
    "accuracy change at tau = 1": of("unanimous", "accuracy_change_pp"),
    "accuracy change at tau = 2/3": of("ilp", "accuracy_change_pp"),
    "aggregator, every question": of("round_robin", "aggregator_s"),
    "aggregator at tau = 2/3": of("ilp", "aggregator_s"),
    "aggregator, speedup at tau = 2/3": of("round_robin", "aggregator_s") / of("ilp", "aggregator_s"),
    "end to end, round robin, every question": of("round_robin", "end_to_end_s"),
    "end to end, ILP and tau = 2/3": of("ilp", "end_to_end_s"),
    "end to end, speedup": of("round_robin", "end_to_end_s") / of("ilp", "end_to_end_s"),
    "right where all agree, majority": of("unanimous", "agreed_right_frac"),
    "right where all agree, aggregator": of("round_robin", "agreed_right_frac"),
    **{f"mean tokens of a question's calls, {split}": of("round_robin", f"tokens_{split}") for split in AGREEMENTS},
    "rank correlation of length with agreement": of("round_robin", "rank_correlation"),
}
"""What a seed of a benchmark says, from the columns of its policies."""
SHORT = (
    "round robin, expert stage", "ILP, expert stage", "ILP, speedup of the expert stage", "skipped at tau = 1",
    "skipped at tau = 2/3", "accuracy change at tau = 1", "accuracy change at tau = 2/3", "aggregator, every question",
    "aggregator at tau = 2/3", "end to end, round robin, every question", "end to end, ILP and tau = 2/3",
    "end to end, speedup",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A published number beside what the simulator says."""

    workload: str
    quantity: str
    unit: str
    kind: str
    published: float
    simulated: Estimate
    one_run: Interval
    """95% interval of the mean of as many runs as were published; none for a single seed."""

    @property
    def error(self) -> float:
        """Relative for seconds, ratios and tokens; a difference for shares, points and correlations."""
        difference = self.simulated.mean - self.published
        return difference / self.published if self.unit in RELATIVE else difference

    @property
    def is_miss(self) -> bool:
        """Whether the published value is outside ``one_run``."""
        low, high = self.one_run
        return low is not None and high is not None and not low <= self.published <= high

    @property
    def is_far(self) -> bool:
        """Whether the simulator is off by more than a tenth, and the interval does not say that it is a miss."""
        return not self.is_miss and self.unit in RELATIVE and abs(self.error) > FAR_FRAC

    @property
    def half_widths(self) -> float:
        """Distance from the published value in half widths of ``one_run``."""
        low, high = self.one_run
        return 2 * abs(self.simulated.mean - self.published) / (high - low) if low is not None and high else 0.0


def all_runs(tables: Tables) -> pl.DataFrame:
    """Put the runs of all workloads into one table."""
    return pl.concat([tables["runs"], tables["gpqa"]], how="vertical_relaxed")


def compare(tables: Tables) -> list[Number]:
    """Put each published number beside the simulated one, in the order of the published table."""
    runs = all_runs(tables).filter(pl.col("workload").is_in(BENCHMARKS), drawn="run")
    columns = [name for name in runs.columns if name not in ("workload", "policy", "drawn", "seed")]
    by_seed = runs.pivot("policy", index=["workload", "seed"], values=columns, maintain_order=True)
    simulated = by_seed.select("workload", "seed", **QUANTITIES).unpivot(
        index=["workload", "seed"], variable_name="quantity"
    )
    keys = ["workload", "quantity"]
    values = simulated.drop_nulls("value").group_by(keys).agg("value")
    published = read_published().group_by([*keys, "unit", "kind"], maintain_order=True).agg(published="value")
    rows = published.join(values, on=keys, maintain_order="left").to_dicts()
    return [
        Number(
            **{name: row[name] for name in (*keys, "unit", "kind")},
            published=fmean(row["published"]),
            simulated=estimate(row["value"]),
            one_run=t_interval(row["value"], len(row["published"])),
        )
        for row in rows
    ]


def find_misses(numbers: Iterable[Number]) -> list[Number]:
    """List what the simulator gets wrong: predictions first, the worst first."""
    missed = [number for number in numbers if number.is_miss]
    return sorted(missed, key=lambda number: (number.kind == FITTED, -number.half_widths))


# The page


def show(value: float, unit: str) -> str:
    """Write a value in its unit."""
    return f"{value:,.0f} s" if unit == "s" and abs(value) >= 1000 else FORMS[unit].format(value)


def show_error(number: Number) -> str:
    """Write an error: relative, or a difference."""
    if number.unit in RELATIVE:
        return f"{number.error:+.1%}"
    return f"{100 * number.error:+.1f} points" if number.unit == "frac" else show(number.error, number.unit)


def show_range(low: float | None, high: float | None, unit: str) -> str:
    """Write an interval, if there is one."""
    return "-" if low is None or high is None else f"{show(low, unit)} to {show(high, unit)}"


def number_table(numbers: Iterable[Number]) -> str:
    """Write a line a number."""
    rows = [
        {
            "quantity": each.quantity,
            "benchmark": TITLES[each.workload],
            "published": show(each.published, each.unit),
            "simulated": show(each.simulated.mean, each.unit),
            "95% interval": show_range(each.simulated.low, each.simulated.high, each.unit),
            "error": show_error(each),
            "one run": show_range(each.one_run[0], each.one_run[1], each.unit),
            "": "-" if each.one_run[0] is None else "MISS" if each.is_miss else "inside",
            "kind": each.kind,
        }
        for each in numbers
    ]
    return markdown(rows) if rows else "None."


def short_table(numbers: Sequence[Number]) -> str:
    """Write a line a quantity and a column a benchmark."""
    cells = {(each.quantity, each.workload): short_cell(each) for each in numbers}
    return markdown(
        [
            {"published -> simulated (error)": name, **{title: cells[name, key] for key, title in TITLES.items()}}
            for name in SHORT
        ]
    )


def short_cell(number: Number) -> str:
    """Write published and simulated; predictions are bold."""
    text = f"{show(number.published, number.unit)} -> {show(number.simulated.mean, number.unit)} ({show_error(number)})"
    return (f"**{text}**" if number.kind == PREDICTED else text) + (" MISS" if number.is_miss else "")


def pool_table(tables: Tables) -> str:
    """Write the expert stage of the three pools, each policy beside the ILP on the same seeds."""
    runs = tables["runs"].filter(
        pl.col("workload").str.starts_with("mmlu_pro"), pl.col("policy") != "unanimous", drawn="run"
    )
    heads = {"workload": "pool", "round_robin": "round robin", "data_parallel": "data parallel", "ilp": "ILP"}
    rows = means(
        beside(runs, pl.col("policy") == "ilp", ["workload"]),
        ["workload", "policy"],
        wall_s=pl.col("expert_makespan_s"),
        idle=pl.col("gpu_idle_frac"),
        ratio=pl.col("expert_makespan_s") / pl.col("expert_makespan_s_base"),
    )
    rows = [{**row, "workload": POOL_OF[row["workload"]]} for row in rows]
    cell = "{wall_s:,.0f} s, idle {idle:.1%}"
    cells = dict.fromkeys(("round_robin", "data_parallel"), cell + ", {ratio:.2f} times the ILP's")
    return markdown(wide(rows, ["workload"], "policy", cell, cells=cells, order=tuple(heads)[1:]), heads)


def slot_table(tables: Tables) -> str:
    """Write the slots of each expert."""
    experts = tables["lengths"].filter(~pl.col("name").is_in(AGREEMENTS)).rows(named=True)
    rows = wide(experts, ["name"], "workload", "{num:,}", order=tuple(EXPERTS))
    ratio = read_published().filter(quantity="slots of the most over the least popular expert")
    published = dict(ratio.select("workload", "value").rows())
    last: dict[str, Any] = {"name": "most over least popular (published)"}
    for name in EXPERTS:
        counts = [row["num"] for row in experts if row["workload"] == name]
        last[name] = f"{max(counts) / min(counts):.2f}" + (f" ({published[name]:g})" if name in published else "")
    rows.append(last)
    heads = {name: TITLES.get(name, f"MMLU-Pro, {pool} pool") for name, pool in POOL_OF.items()}
    return markdown(rows, {"name": "expert", **heads})


def range_table(numbers: Sequence[Number]) -> str:
    """Write what every parameter set says that matches round robin."""
    walls: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in committed_ranges():
        walls.setdefault(row["workload"], {})[row["stage"]] = row["mean"].mean, row["low_s"], row["high_s"]
    found = {(each.quantity, each.workload): each for each in numbers}
    rows = []
    for workload, stages in walls.items():
        expert, aggregator = stages["expert_s"], stages["aggregator_s"]
        before_s = found["end to end, round robin, every question", workload].simulated.mean
        # NOTE: a set that is slow in one stage may be fast in the other, so the ends of the sum are a bit too wide.
        whole = [before_s / (expert[end] + aggregator[end]) for end in (0, 2, 1)]
        for name, (middle, low, high) in {
            "ILP, expert stage": expert, "aggregator at tau = 2/3": aggregator, "end to end, speedup": whole,
        }.items():  # fmt: skip
            number = found[name, workload]
            error = min(max(number.published, low), high) / number.published - 1
            rows.append(
                {
                    "quantity": name,
                    "benchmark": TITLES[workload],
                    "published": show(number.published, number.unit),
                    "committed set": show(middle, number.unit),
                    "over all parameter sets": show_range(low, high, number.unit),
                    "": f"MISS: {error:+.1%}" if error else "inside",
                }
            )
    return markdown(rows)


def spread_table(tables: Tables) -> str:
    """Write the relative standard deviation of the ILP's expert stage by what is drawn anew."""
    published = read_published().filter(quantity="ILP, expert stage").with_columns(drawn=pl.lit("published"))
    ours = all_runs(tables).filter(pl.col("workload").is_in(BENCHMARKS), policy="ilp")
    both = pl.concat(
        [published.select("drawn", "workload", "value"), ours.select("drawn", "workload", value="expert_makespan_s")]
    )
    groups = both.group_by("workload", "drawn", maintain_order=True).agg("value").rows(named=True)
    rows = [
        {"benchmark": TITLES[row["workload"]], "drawn": row["drawn"], "spread": show_spread(row["value"])}
        for row in groups
    ]
    heads = {
        "published": "published runs",
        "run": "lengths and answers",
        "questions": "questions",
        "profile": "profile",
    }
    return markdown(wide(rows, ["benchmark"], "drawn", "{spread}", order=tuple(heads)), heads)


def show_spread(walls_s: Sequence[float]) -> str:
    """Write a standard deviation and the mean it is relative to."""
    return "-" if len(walls_s) < 2 else f"{stdev(walls_s) / fmean(walls_s):.1%} of {fmean(walls_s):,.0f} s"


def tail_table(tables: Tables) -> str:
    """Write what the aggregator's stage at tau = 2/3 is made of."""
    runs = all_runs(tables).filter(pl.col("workload").is_in(BENCHMARKS), policy="ilp", drawn="run")
    rows = means(runs, ["workload"], **{name: pl.col(name) for name in ("num_merged", "tail_frac", "longest_tokens")})
    return markdown(
        [
            {
                "benchmark": TITLES[row["workload"]],
                "calls": f"{row['num_merged'].mean:,.0f}",
                "the last 5% of them alone": f"{row['tail_frac'].mean:.0%} of the stage",
                "longest response": f"{row['longest_tokens'].mean:,.0f} tokens",
            }
            for row in rows
        ]
    )


def report(tables: Tables) -> str:
    """Write the page."""
    numbers = compare(tables)
    missed, num_predicted = find_misses(numbers), sum(each.kind == PREDICTED for each in numbers)
    counts = f"{len(missed)} of {len(numbers)} published numbers, "
    counts += f"{sum(each.kind == PREDICTED for each in missed)} of the {num_predicted} predicted ones"
    has_intervals = numbers[0].one_run[0] is not None
    model = pl.read_csv(CALIBRATION / "model_ablation.csv", infer_schema=False)
    return PAGE.format(
        counts=counts if has_intervals else "not known from one seed",
        misses=number_table(missed) if has_intervals else "A single seed has no interval to miss.",
        far=number_table(each for each in numbers if each.is_far),
        ranges=range_table(numbers),
        short=short_table(numbers),
        numbers=number_table(numbers),
        pools=pool_table(tables),
        slots=slot_table(tables),
        spread=spread_table(tables),
        tail=tail_table(tables),
        model=markdown(model.rows(named=True)),
    )


PAGE = """\
MOSAIC is [arXiv 2606.03014](https://arxiv.org/abs/2606.03014). Its numbers stand in
[published.csv](../../experiments/studies/published.csv), ours in the CSV files beside this page.

## Misses: {counts}

{misses}

## Off by more than 10%, though within what one run may show

{far}

## Over all that the fits leave open: caps on the output, streams of attention, light experts, orders

Round robin fits many sets of parameters. Each was simulated, and the committed one with more seeds than here
([calibration](../calibration/calibration.md)).

{ranges}

## How to read this

Every number comes from `runs.csv` and `gpqa.csv`, a row a run. *simulated* is the mean over seeds, *95% interval* that
of the mean. *one run* is the 95% interval of the mean of as many runs as were published: one, but four of the ILP's
walls. MISS: the published value is outside of it. *fitted*: the simulator was calibrated on this number, so its error
says how well the fit closes and nothing more. *follows from fits*: nothing else goes into it. *predicted*: nothing was
fitted to it. A seed draws the lengths and answers of a run. The questions and the profile are one draw for all seeds,
as a data set and a study have one. GPQA, the smallest, has four times the seeds of the others. Errors are relative for
seconds, speedups and tokens, and differences for shares, accuracies and correlations.

## In short

Predictions are bold.

{short}

## Every number

{numbers}

## Three pools on MMLU-Pro's questions

The expert stage. Predicted: walls of the last two pools are not published.

{pools}

## Slots of the experts (table 3)

{slots}

## What the spread of the ILP's walls comes from

Standard deviation of the expert stage by what a seed draws.

{spread}

## What the aggregator's stage at tau = 2/3 is made of

{tail}

One response up to the output limit, alone on four GPUs with its load, takes 664 s on MMLU-Pro and 589 s on GPQA (31,268
tokens), and 67 s on MedMCQA (4,096): the stage hangs on its longest response. (Simulated by commit e0bd268.)

## The engine model, change by change

Each row has all changes above it, fitted anew with few seeds (by commit e0bd268).

{model}

## Figures

![Figure 1](figure1_lengths.png)

Figure 1: output lengths of MMLU-Pro's questions by expert and pool, one seed. Workloads are built on the published
means.

![Figure 2](figure2_skew.png)

Figure 2: popularity is skewed, and round robin leaves GPUs idle: slots of each expert, and what each GPU does until the
last one is done.

![Figure 3, left](figure3_data_parallel.png)

Figure 3, left: copying every expert to every GPU trades idle time for loads and for small shards.

![Figure 3, right](figure3_throughput.png)

Figure 3, right: throughput against shard size, one session on one GPU, its load left out. What limits each expert:
[throughput.md](throughput.md).

![Figure 5](figure5_timelines.png)

Figure 5: the expert stage on four GPUs, round robin above the ILP. Of each benchmark the seed whose makespans are
nearest to the means. A load is hatched, an idle GPU blank, the makespan marked.

![Figure 6](figure6_end_to_end.png)

Figure 6: both stages, round robin with every question aggregated, and MOSAIC (the ILP, tau = 2/3). Pale bars are the
published end to end; their expert part is what the published aggregator stage leaves. In the tables the published
expert stage differs a little: there it is the mean of four runs.

![Figure 7](figure7_agreement.png)

Figure 7: questions on which the experts disagree take longer. MMLU-Pro, one seed: mean output tokens of a question's
three calls by how many of them agree.

## What was fitted

Expert stage: the host's time per KV token, one spread of the reasoning experts' lengths and two mean lengths, to
MMLU-Pro's round-robin workers; a third mean to the published tokens by agreement, which give the mean over all calls;
one scale of all lengths per benchmark to MedMCQA's and GPQA's round-robin walls; the aggregator's mean length per
benchmark to its wall when everything is aggregated (`study.py calibration`). Answers: the agreement of the experts,
the accuracy when everything is aggregated, and MMLU-Pro's tokens by agreement (`study.py answers`). In the
all-instruct pool one scale of all lengths to the published mean over the pool, taken as one over its experts. Fits see
other seeds than the runs here, on the same questions. What is assumed stands in `conf/` with `source: assumed` or
beside the numbers: above all the output cap (Symbolic-MoE's; the paper has none), which experts meet in one question,
the spread of the light experts' lengths, and in the other two pools the slots between the published ones and the
lengths of the experts without a published mean.
"""

STUDY = Study(
    name="paper",
    about="Every published number of MOSAIC beside the simulated one, misses first, with the paper's figures.",
    title="The paper, reproduced in simulation",
    tables={
        "runs": Sweep(points=[point for point in POINTS if not is_small(point)], measure=measure, num_seeds=16),
        "gpqa": Sweep(points=[point for point in POINTS if is_small(point)], measure=measure, num_seeds=64),
        "lengths": Sweep(points=LENGTH_POINTS, measure=measure_lengths),
        "throughput": Sweep(points=THROUGHPUT_POINTS, measure=measure_throughput, num_seeds=NUM_SESSIONS),
        "timelines": Sweep(points=TIMELINE_POINTS, measure=measure_timeline),
    },
    report=report,
    figures=FIGURES,
)

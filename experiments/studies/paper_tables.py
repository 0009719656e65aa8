"""The reproduction's tables, made of runs and rows: cells of text, for a page and for a program."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import NamedTuple

from experiments.analysis.expert_stage import slots_by_expert
from experiments.studies.paper_rows import PREDICTED, Row, Unit, ratios, summaries
from experiments.studies.paper_runs import POOLS, TITLES, PaperRuns
from experiments.studies.published import POPULARITY_RATIO, PREDICTED_ILP
from mosaic.comparison.estimate import t_interval

SHORT = (
    "round robin, expert stage", "ILP, expert stage", "ILP, speedup of the expert stage", "skipped at tau = 1",
    "skipped at tau = 2/3", "accuracy change at tau = 1", "accuracy change at tau = 2/3", "aggregator, every question",
    "aggregator at tau = 2/3", "end to end, round robin, every question", "end to end, ILP and tau = 2/3",
    "end to end, speedup",
)  # fmt: skip
"""Quantities of the short table, which has a column per benchmark."""

Table = Sequence[Sequence[str]]
"""Rows of cells, the head first."""


class OpenRange(NamedTuple):
    """A stage's wall over all that the fits leave open, in seconds."""

    low_s: float
    high_s: float
    mean_s: float
    """Of the committed parameters, over more seeds than a reproduction has."""


def show(value: float, unit: Unit) -> str:
    """Write a value in its unit."""
    forms = {
        "s": f"{value:,.1f} s" if abs(value) < 1000 else f"{value:,.0f} s",
        "x": f"{value:.2f}x",
        "tokens": f"{value:,.0f}",
        "frac": f"{100 * value:.1f}%",
        "pp": f"{value:+.2f} pp",
        "rho": f"{value:+.2f}",
    }
    return forms[unit]


def show_error(row: Row) -> str:
    """Write the error: relative, or a difference in points."""
    forms = {"frac": f"{100 * row.error:+.1f} points", "pp": f"{row.error:+.2f} pp", "rho": f"{row.error:+.2f}"}
    return forms.get(row.unit, f"{row.error:+.1%}")


def show_interval(interval: tuple[float, float] | None, unit: Unit) -> str:
    """Write an interval; one seed has none."""
    return "-" if interval is None else f"{show(interval[0], unit)} to {show(interval[1], unit)}"


def verdict(row: Row) -> str:
    """Say where the published value lies."""
    if row.is_miss is None:
        return "-"
    return "MISS" if row.is_miss else "inside"


def error_table(rows: Iterable[Row]) -> Table:
    """A line a row."""
    head = ("quantity", "benchmark", "published", "simulated", "95% interval", "error", "one run", "", "kind")
    return [
        head,
        *(
            (
                row.quantity,
                TITLES[row.benchmark],
                show(row.published, row.unit),
                show(row.mean, row.unit),
                show_interval(row.interval, row.unit),
                show_error(row),
                show_interval(row.predictive, row.unit),
                verdict(row),
                row.kind,
            )
            for row in rows
        ),
    ]


def short_table(rows: Sequence[Row]) -> Table:
    """A line a quantity, a column a benchmark: published, simulated, error; predicted ones in bold."""
    found = {(row.quantity, row.benchmark): row for row in rows}
    return [
        ("published -> simulated (error)", *TITLES.values()),
        *((quantity, *(_cell(found[quantity, benchmark]) for benchmark in TITLES)) for quantity in SHORT),
    ]


def _cell(row: Row) -> str:
    text = f"{show(row.published, row.unit)} -> {show(row.mean, row.unit)} ({show_error(row)})"
    text = f"**{text}**" if row.kind == PREDICTED else text
    return f"{text} MISS" if row.is_miss else text


def pool_table(runs: PaperRuns) -> Table:
    """The three pools on MMLU-Pro's questions; of the last two no wall is published."""
    head = (
        "pool", "slots max/min (published)", "round robin", "idle", "data parallel", "idle", "ILP", "idle",
        "ILP over round robin", "ILP over data parallel",
    )  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for pool, workload in POOLS.items():
        by_policy = {policy: runs.of(workload, policy) for policy in ("round_robin", "data_parallel", "ilp")}
        slots = [count for count in _slots(runs, workload).values() if count]
        walls = {policy: summaries(found, "expert_makespan_s") for policy, found in by_policy.items()}
        cells = [pool, f"{max(slots) / min(slots):.2f} ({POPULARITY_RATIO[pool]:g})"]
        for policy, found in by_policy.items():
            cells += [_with_interval(walls[policy], "s"), _with_interval(summaries(found, "gpu_idle_frac"), "frac")]
        cells += [_with_interval(ratios(walls[other], walls["ilp"]), "x") for other in ("round_robin", "data_parallel")]
        lines.append(tuple(cells))
    return lines


def slots_table(runs: PaperRuns) -> Table:
    """Table 3: slots per expert."""
    workloads = [*TITLES, *(workload for workload in POOLS.values() if workload not in TITLES)]
    counts = {workload: _slots(runs, workload) for workload in workloads}
    experts = dict.fromkeys(expert for workload in workloads for expert in counts[workload])
    return [
        ("expert", *workloads),
        *((expert, *(f"{counts[workload].get(expert, 0):,}" for workload in workloads)) for expert in experts),
        ("all", *(f"{sum(counts[workload].values()):,}" for workload in workloads)),
    ]


def _slots(runs: PaperRuns, workload: str) -> dict[str, int]:
    return slots_by_expert(runs.of(workload, "round_robin")[0].folder)


def walls_table(runs: PaperRuns) -> Table:
    """Table 4: the ILP's walls by seed; a seed is other luck here than in the paper, so mean and spread compare."""
    lines = [("benchmark", "", "walls of the ILP (s)", "mean", "standard deviation")]
    for benchmark, title in TITLES.items():
        published = PREDICTED_ILP[benchmark].runs_s
        ours = summaries(runs.of(benchmark, "ilp"), "expert_makespan_s")
        lines += [
            (title, "published", _walls(published), *_moments(published)),
            ("", "simulated", _walls(ours), *_moments(ours)),
        ]
    return lines


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Table 1: accuracy and skips."""
    found = {(row.quantity, row.benchmark): row for row in rows}
    lines: list[tuple[str, ...]] = [
        ("benchmark", "tau", "skipped", "", "accuracy when always aggregated", "", "change", "")
    ]
    lines.append(("", "", "published", "simulated", "published", "simulated", "published", "simulated"))
    for benchmark, title in TITLES.items():
        for tau in ("1", "2/3"):
            parts = [
                found[quantity, benchmark]
                for quantity in (
                    f"skipped at tau = {tau}",
                    "accuracy, every question aggregated",
                    f"accuracy change at tau = {tau}",
                )
            ]
            cells = (text for row in parts for text in (show(row.published, row.unit), show(row.mean, row.unit)))
            lines.append((title, tau, *cells))
    return lines


def _walls(walls_s: Sequence[float]) -> str:
    return ", ".join(f"{wall_s:,.0f}" for wall_s in walls_s)


def _moments(walls_s: Sequence[float]) -> tuple[str, str]:
    mean = sum(walls_s) / len(walls_s)
    if len(walls_s) < 2:
        return f"{mean:,.0f}", "-"
    std = (sum((wall_s - mean) ** 2 for wall_s in walls_s) / (len(walls_s) - 1)) ** 0.5
    return f"{mean:,.0f}", f"{std:,.0f} ({std / mean:.1%})"


def _with_interval(values: Sequence[float], unit: Unit) -> str:
    mean = sum(values) / len(values)
    _, high = t_interval(values)
    return show(mean, unit) if high is None else f"{show(mean, unit)} +- {show(high - mean, unit)}"


def to_markdown(table: Table) -> str:
    """Write a table for a page."""
    head, *lines = table
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *lines))


def to_csv(table: Iterable[Sequence[object]]) -> str:
    """Write a table for a program; missing is empty."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in table)
    return text.getvalue()

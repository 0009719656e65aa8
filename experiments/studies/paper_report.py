"""Writes the reproduction's report: misses first, then everything, no number typed by hand."""

from collections.abc import Iterable, Mapping, Sequence

from experiments.studies.paper_figures import Drawing
from experiments.studies.paper_rows import FAR_FRAC, FITTED, PREDICTED, Row
from experiments.studies.paper_runs import TITLES
from experiments.studies.paper_tables import (
    OpenRange,
    Table,
    error_table,
    show,
    show_error,
    show_interval,
    to_csv,
    to_markdown,
)

TITLE_OF_TABLE = {
    "pools": "Three pools on MMLU-Pro's questions (predicted; walls of the last two are not published)",
    "open_ranges": "Over all that the fits leave open: caps on the output, streams of attention, orders, light experts",
    "spread": "Where the spread of the ILP's walls comes from",
    "model_ablation": "The model, change by change: each row has all those above it, fitted anew with few seeds",
    "aggregator_tail": "What the aggregator's stage at tau = 2/3 is made of",
    "abilities": "Accuracy change at tau = 2/3 expected with other abilities than the assumed ones, all refitted",
    "table1_accuracy": "Table 1: accuracy and skips",
    "table3_slots": "Table 3: slots per expert",
    "table4_walls": "Table 4: walls of the ILP, seed by seed",
}
HOW_TO_READ = """\
Every number comes from run folders under `runs/`, written by the same code as `python experiments/run.py`; each
point is a command line (its folder's `config.yaml` is the resolved one). *simulated* is the mean over seeds, *95%
interval* that of the mean. *one run* is the 95% interval of what as many runs would show as were published (one,
but for the ILP's walls, of which four are): a published value outside of it is a **MISS**. *fitted*: the simulator
was calibrated on this number, so its error says how well the fit closes and nothing more. *follows from fits*:
nothing else goes into it. *predicted*: nothing was fitted to it. A seed draws the luck of a run: how long each call
writes and what it answers. The questions and the profile are one draw for all seeds, as a data set and a study have
one; how much other draws move a wall has a table of its own. GPQA, the smallest, has four times the seeds. Relative
errors for seconds, speedups and tokens; differences for shares, accuracies and correlations.
"""
WHAT_IS_FITTED = """\
Expert stage: the host's time per KV token, one spread of the reasoning experts' lengths and two mean lengths, to
MMLU-Pro's round-robin workers; a third mean to the published tokens by agreement, which give the mean over all calls;
one scale of all lengths per benchmark to MedMCQA's and GPQA's round-robin walls; the aggregator's mean length per
benchmark to its wall when everything is aggregated (`study.py calibration`). Answers: the agreement of the experts,
the accuracy when everything is aggregated, and MMLU-Pro's tokens by agreement (`study.py answers`). In the
all-instruct pool one scale of all lengths to the published mean over the pool, taken as one over its experts. Fits see
other luck than the seeds here, on the same questions. What is assumed stands in `conf/` with `source: assumed` or
beside the numbers: above all the output cap (Symbolic-MoE's; the paper has none), which experts meet in one question,
the spread of the light experts' lengths, and in the other two pools the slots between the published ones and the
lengths of the experts without a published mean.
"""


def misses(rows: Iterable[Row]) -> list[Row]:
    """What the simulator gets wrong: predictions first, the worst first."""
    return sorted((row for row in rows if row.is_miss), key=lambda row: (row.kind == FITTED, -row.num_intervals_off))


def describe(row: Row) -> str:
    """Write a row in a line."""
    return (
        f"{TITLES[row.benchmark]}, {row.quantity}: published {show(row.published, row.unit)}, simulated "
        f"{show(row.mean, row.unit)} ({show_error(row)}), one run {show_interval(row.predictive, row.unit)}; {row.kind}"
    )


def write_report(
    rows: Sequence[Row],
    tables: Mapping[str, Table],
    drawings: Mapping[str, Drawing],
    ranges: Mapping[str, Mapping[str, OpenRange]],
) -> str:
    """Write the page."""
    num_seeds = len(rows[0].values)
    missed = misses(rows)
    predicted = [row for row in rows if row.kind == PREDICTED]
    counts = f"{len(missed)} of {len(rows)} published numbers, "
    counts += f"{sum(row in predicted for row in missed)} of the {len(predicted)} predicted ones"
    has_intervals = num_seeds > 1
    parts = [
        "# The paper, reproduced in simulation\n",
        f"`python experiments/paper.py --seeds {num_seeds}`. MOSAIC is arXiv 2606.03014.\n",
        f"## Misses: {counts if has_intervals else 'not known from one seed'}\n",
        to_markdown(error_table(missed)) if has_intervals else "A single seed has no interval to miss.\n",
        f"## Off by more than {FAR_FRAC:.0%}{', though within what one run may show' if has_intervals else ''}\n",
        to_markdown(error_table(row for row in rows if row.is_far)),
        *(_range_note(benchmark, by_stage["expert_s"], rows) for benchmark, by_stage in ranges.items()),
        "## How to read this\n",
        HOW_TO_READ,
        "## Every number\n",
        to_markdown(error_table(rows)),
        *(f"## {TITLE_OF_TABLE[name]}\n\n{to_markdown(table)}" for name, table in tables.items()),
        "## Figures\n",
        *(
            f"![{drawing.title}]({name}.png)\n\n{drawing.title}. {drawing.caption}\n"
            for name, drawing in drawings.items()
        ),
        "## What was fitted\n",
        WHAT_IS_FITTED,
    ]
    return "\n".join(parts)


def _range_note(benchmark: str, left_open: OpenRange, rows: Sequence[Row]) -> str:
    """Say what else the ILP's wall may be: round robin's one wall does not settle the parameters."""
    wall = next(row for row in rows if (row.quantity, row.benchmark) == ("ILP, expert stage", benchmark))
    is_inside = left_open.low_s <= wall.published <= left_open.high_s
    place = "inside" if is_inside else "outside, so this is a miss of the model and not of the fit"
    return (
        f"{TITLES[benchmark]}'s round robin fits many sets of parameters (caps, orders, GPUs); over all of "
        f"them the ILP's wall is {show(left_open.low_s, 's')} to {show(left_open.high_s, 's')}, and with the committed "
        f"ones {show(left_open.mean_s, 's')} over more seeds than here (`study.py calibration`): published "
        f"{show(wall.published, 's')} is {place}.\n"
    )


def errors_csv(rows: Iterable[Row]) -> str:
    """The rows as numbers: shares as fractions, changes in percentage points."""
    head = (
        "quantity", "benchmark", "unit", "published", "simulated_mean", "low", "high", "one_run_low", "one_run_high",
        "error", "is_miss", "kind", "num_seeds", "num_published",
    )  # fmt: skip
    none = (None, None)
    return to_csv(
        [
            head,
            *(
                (
                    row.quantity, row.benchmark, row.unit, row.published, row.mean, *(row.interval or none),
                    *(row.predictive or none), row.error, row.is_miss, row.kind, len(row.values), row.num_published,
                )
                for row in rows
            ),
        ]
    )  # fmt: skip

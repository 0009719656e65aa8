"""What the study of quotes found: how far P50 is off, how often the truth lies under P90, and the calibration."""

from collections.abc import Sequence
from math import exp, log
from statistics import fmean

from experiments.studies.quote_pilots import MEASURED, Row
from mosaic.quote.interval import Calibration, Interval, Known, calibrate, interval
from mosaic.quote.measured import REPEATS

NUM_FIRST_SEEDS = 12
MAIN_GPUS = 4
"""Of the simulated workloads; the tiny pool's pilots run on the machine's two workers."""


def calibration_of(rows: Sequence[Row], source: str) -> Calibration:
    """Calibrate on pilots."""
    return calibrate([Known(row.truth_s, row.central_s, row.spread) for row in rows], source)


def without(rows: Sequence[Row], workload: str) -> Calibration:
    """Calibrate on all other workloads: a quote has never seen its own."""
    return calibration_of([row for row in rows if row.workload != workload], f"all workloads but {workload}")


def quoted(row: Row, rows: Sequence[Row]) -> Interval:
    """Give P50 and P90 as a quote would that is calibrated on the other workloads."""
    error = REPEATS[0] if row.workload == MEASURED else 0.0
    return interval(row.central_s, row.spread, without(rows, row.workload), error)


def main_rows(rows: Sequence[Row], per_expert: int) -> list[Row]:
    """Pick one row a pilot: four GPUs, or the workers that there are."""
    return [row for row in rows if row.per_expert == per_expert and row.num_gpus == _gpus(row)]


def _gpus(row: Row) -> int:
    return 2 if row.workload == MEASURED else MAIN_GPUS


def _table(rows: Sequence[Row], fitted_on: Sequence[Row], name: str) -> str:
    ends = [quoted(row, fitted_on) for row in rows]
    errors = [end.p50_s / row.truth_s - 1 for row, end in zip(rows, ends, strict=True)]
    under = fmean(row.truth_s <= end.p90_s for row, end in zip(rows, ends, strict=True))
    bias = exp(fmean(map(_log_ratio, rows, ends))) - 1
    affine = fmean(abs(row.affine_s / row.truth_experts_s - 1) for row in rows)
    error = fmean(map(abs, errors))
    width = fmean(end.p90_s / end.p50_s - 1 for end in ends)
    return f"| {name} | {len(rows)} | {under:.1%} | {bias:+.1%} | {error:.1%} | {width:.0%} | {affine:.0%} |"


def _targets(rows: Sequence[Row], fitted_on: Sequence[Row]) -> str:
    """Say what was asked of quotes, and whether it is met."""
    ends = [quoted(row, fitted_on) for row in rows]
    under = fmean(row.truth_s <= end.p90_s for row, end in zip(rows, ends, strict=True))
    bias = exp(fmean(map(_log_ratio, rows, ends))) - 1
    error = fmean(abs(end.p50_s / row.truth_s - 1) for row, end in zip(rows, ends, strict=True))
    asked = {
        f"the truth lies under P90 in 85% to 95% of the pilots: {under:.1%}": 0.85 <= under <= 0.95,
        f"P50's bias is under 5%: {bias:+.1%} over all, where workloads' own cancel": abs(bias) < 0.05,
        f"P50's error is at most 12%: {error:.1%}": error <= 0.12,
    }
    return "\n".join(f"- {text} ({'met' if is_met else 'MISSED'})" for text, is_met in asked.items())


def _log_ratio(row: Row, end: Interval) -> float:
    return log(end.p50_s / row.truth_s)


HEAD = (
    "| pilots | number | truth under P90 | bias of P50 | error of P50 | P90 above P50 | error of the affine profile |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def report(rows: Sequence[Row], command: str) -> str:
    """Write the study as text."""
    sizes = sorted({row.per_expert for row in rows}, reverse=True)
    final = calibration_of(rows, "all pilots")
    lines = [
        "# Quotes against what batches took",
        "",
        f"    {command}",
        "",
        "A pilot asks some of a batch's calls, the quote predicts the rest, and the quote's plan is then run: in the",
        "simulated world that the pilot was asked in, or on real vLLM (the tiny pool, processor time, experts alone).",
        "A calibration is always of the other workloads. Error is the mean of the absolute ones, bias the geometric",
        "mean of P50 over the truth. The affine profile is that of the pilot's own sessions, for the plan's experts.",
        "",
    ]
    for size in sizes:
        mine = main_rows(rows, size)
        if not mine:
            continue
        shown = f"{size} calls an expert"
        lines += [f"## {shown}, {MAIN_GPUS} GPUs (tiny_mcq: 2 workers)", "", HEAD]
        lines += [_table([r for r in mine if r.workload == name], rows, name) for name in _workloads(mine)]
        lines += [_table(mine, rows, "**all**"), "", _targets(mine, rows), ""]
    lines += ["## All numbers of GPUs", "", HEAD]
    for size in sizes:
        for gpus in sorted({row.num_gpus for row in rows}):
            some = [row for row in rows if (row.per_expert, row.num_gpus) == (size, gpus)]
            if some:
                lines.append(_table(some, rows, f"{size} calls an expert, {gpus} GPUs"))
    late = [row for row in rows if row.seed >= NUM_FIRST_SEEDS]
    if late:
        early = [row for row in rows if row.seed < NUM_FIRST_SEEDS]
        head = HEAD.replace("| pilots |", f"| calibrated on the first {NUM_FIRST_SEEDS} seeds |")
        lines += ["", "## Seeds on which nothing was chosen", "", head, _table(late, early, "the others")]
    lines += [
        "",
        f"Calibration of all {len(rows)} rows, as `mosaic/quote/interval.py` has it: the logarithm of the truth over",
        f"the forecast is {final.shift:+.3f} {final.shift_per_spread:+.3f} times the spread, which was",
        f"{final.spreads[0]:.3f} to {final.spreads[1]:.3f}; P90 lies {final.p90_score:.3f} widened spreads above P50.",
        f"That a line is fitted, and not a number, was chosen on the first {NUM_FIRST_SEEDS} seeds.",
        "",
        "![Truth against the quoted interval](quotes.png)",
    ]
    return "\n".join(lines) + "\n"


def _workloads(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.workload for row in rows))

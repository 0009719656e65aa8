"""A sweep in words and as a table: every mean with its interval, and a sentence a line."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from textwrap import wrap

from experiments.analysis.ablation import Ablation, Row
from experiments.analysis.ablation_spec import Axis, Panel
from experiments.lab.estimate import Estimate, estimate

COLUMNS = ("line", "x", "measure", "relative_to", "num_seeds", "mean", "low_95", "high_95")
PERCENT = 100
LINE_CHARS = 120
MAX_NAMED = 5
"""Missing points named one by one."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A mean in the preset's sentence; ``{...:interval}`` writes its interval too."""

    estimate: Estimate

    def __format__(self, form: str) -> str:
        return _cell(self.estimate) if form == "interval" else show_number(self.estimate.mean)


def ablation_csv(ablation: Ablation) -> str:
    """Write all rows."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in ablation.rows:
        mean, low, high, num_seeds = row.estimate
        ends = ["" if end is None else f"{end:.6g}" for end in (low, high)]
        x = ablation.spec.x.show(row.x)
        writer.writerow([row.line, x, row.panel.label, _relative(row.panel, ablation), num_seeds, f"{mean:.6g}", *ends])
    return buffer.getvalue()


def _relative(panel: Panel, ablation: Ablation) -> str:
    relative = panel.relative_to
    if relative is None:
        return ""
    place = f"at {ablation.spec.x.show(relative.x)}" if relative.at_x else "at the same place"
    return f"{relative.line or 'the same line'} {place}"


def describe_ablation(
    ablation: Ablation,
    *,
    num_points: int,
    missing: Sequence[str],
    reasons: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> str:
    """Say what was swept, what is missing, what every line does from one end to the other, and all numbers."""
    spec = ablation.spec
    parts = [spec.title, *wrap(spec.about, LINE_CHARS), "", *wrap(_finding(ablation), LINE_CHARS), ""]
    parts += [f"not as the preset: {override}" for override in overrides]
    parts.append(f"{num_points - len(missing)} of {num_points} points; mean and 95% interval (Student's t) over seeds")
    parts += [f"missing: {name}" for name in missing[:MAX_NAMED]]
    if len(missing) > MAX_NAMED:
        parts.append(f"missing: {len(missing) - MAX_NAMED} more")
    parts += [f"skipped {reason}" for reason in reasons]
    parts += [f"note: {note}" for note in ablation.notes]
    for panel in dict.fromkeys(row.panel for row in ablation.rows):
        lines = ablation.lines_of(panel)
        if lines:
            parts += ["", panel.label + (f", relative to {_relative(panel, ablation)}" if panel.relative_to else "")]
            parts += [f"  {_sentence(ablation, panel, line)}" for line in lines]
            parts += ["", *_table(ablation, panel, lines)]
    return "\n".join(parts) + "\n"


def _finding(ablation: Ablation) -> str:
    """Fill the preset's sentence with means."""
    means: list[dict[str, dict[str | int, _Shown]]] = []
    for panel in ablation.spec.panels:
        means.append({})
        for row in (row for row in ablation.rows if row.panel is panel):
            x = ablation.spec.x.show(row.x)
            # NOTE: str.format reads an index of digits as a number.
            means[-1].setdefault(row.line, {})[int(x) if x.isdigit() else x] = _Shown(row.estimate)
    try:
        return ablation.spec.finding.format(*means)
    except LookupError as missing:
        return f"(no sentence without a complete point of {missing})"


def _sentence(ablation: Ablation, panel: Panel, line: str) -> str:
    """Say how a line goes from one end of the axis to the other, and where it is lower or higher on the way."""
    axis, rows = ablation.spec.x, ablation.rows_of(panel, line)
    if len(rows) == 1:
        return f"{line}: {show_number(rows[0].estimate.mean)} at {axis.show(rows[0].x)}"
    by_mean = sorted(rows, key=lambda row: row.estimate.mean)
    low, high = by_mean[0], by_mean[-1]
    if low.estimate.mean == high.estimate.mean:
        return f"{line}: {show_number(low.estimate.mean)} everywhere"
    sentence = f"{line}: {_at(axis, rows[0])} to {_at(axis, rows[-1])}{_change(panel, rows[0], rows[-1])}"
    inside = [f"{word} {_at(axis, row)}" for word, row in (("lowest", low), ("highest", high)) if row in rows[1:-1]]
    return "; ".join([sentence, *inside])


def _at(axis: Axis, row: Row) -> str:
    return f"{show_number(row.estimate.mean)} at {axis.show(row.x)}"


def _change(panel: Panel, first: Row, last: Row) -> str:
    """Say by how much the last differs from the first, seed by seed: in points for shares, else in percent."""
    pairs = [(first.values[seed], last.values[seed]) for seed in sorted(first.values.keys() & last.values.keys())]
    is_share = panel.times == PERCENT
    if not pairs or not (is_share or all(before > 0 for before, _ in pairs)):
        return ""
    change = estimate([after - before if is_share else PERCENT * (after / before - 1) for before, after in pairs])
    interval = "" if change.low is None else f" [{change.low:+.1f}, {change.high:+.1f}]"
    return f", {change.mean:+.1f}{' points' if is_share else '%'}{interval}"


def _table(ablation: Ablation, panel: Panel, lines: Sequence[str]) -> list[str]:
    axis = ablation.spec.x
    cells = [[axis.label, *lines]]
    for x in ablation.xs:
        row = [axis.show(x)]
        for line in lines:
            found = [entry for entry in ablation.rows_of(panel, line) if entry.x == x]
            row.append(_cell(found[0].estimate) if found else "-")
        cells.append(row)
    widths = [max(len(row[column]) for row in cells) for column in range(len(lines) + 1)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _cell(value: Estimate) -> str:
    if value.low is None or value.high is None:
        return show_number(value.mean)
    return f"{show_number(value.mean)} [{show_number(value.low)}, {show_number(value.high)}]"


def show_number(value: float) -> str:
    """Write four significant digits, whole numbers without decimals, thousands grouped and never in exponents.

    Examples
    --------
    >>> [show_number(value) for value in (1589.13, 1.0, 0.05912, 0.0, -3.25)]
    ['1,589', '1', '0.0591', '0', '-3.250']
    """
    if value == round(value):
        return f"{value:,.0f}"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4
    return f"{value:,.{digits}f}"

"""Writes the table of a comparison, as text."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from mosaic.comparison.pairing import ALWAYS, METRICS, NEVER, Comparison, Row
from mosaic.core.text_table import aligned

CHANGE_NOTES = {
    NEVER: "change: accuracy in percentage points, less that of gate=never with the same scheduler and seed",
    ALWAYS: "*change: accuracy in percentage points, less that of the same run had it never skipped",
}
SHARED = ("seeds", "skip", "accuracy", "change")
"""Columns that are shown once next to the name of a case if all its policies have equal values."""
Cells: TypeAlias = Mapping[str, str]
"""The cells of a row by the heads of their columns."""


def describe(comparison: Comparison, notes: Sequence[str] = ()) -> str:
    """Write the tables as text, the fastest policy first, and below them the notes on runs that are not in them."""
    rows, time = sorted(comparison.rows, key=lambda row: (row["case"], row["time_s"].mean)), METRICS[comparison.metric]
    lines = [
        f"speedup over {comparison.baseline}, {time}: fastest first, geometric mean over seeds",
        "[95% interval], of two seeds (both values); idle: of the expert stage, loads: of all stages",
    ]
    lines += _blocks([row["case"] for row in rows], [_cells(row, f"{time} (s)") for row in rows])
    if comparison.scaling:
        lines += ["", "Across numbers of GPUs: each policy over itself on the fewest"]
        table = [_scaling_cells(row, f"{time} (s)") for row in comparison.scaling]
        lines += _blocks([row["world"] for row in comparison.scaling], table)
    references = {row["change_from"] for row in rows}
    ends = [note for reference, note in CHANGE_NOTES.items() if reference in references]
    ends += [*comparison.notes, *notes]
    return "\n".join([*lines, *([""] if ends else []), *ends]) + "\n"


def _blocks(cases: Sequence[str], table: Sequence[Cells]) -> list[str]:
    """Lay out a table in blocks of one case, all with equal columns; the first column is left-aligned."""
    by_case = {case: [row for other, row in zip(cases, table, strict=True) if other == case] for case in cases}
    shared = [
        name
        for name in SHARED
        if name in table[0] and all(len({row[name] for row in own}) == 1 for own in by_case.values())
    ]
    unknown = [name for name in SHARED if name in table[0] and all(row[name] == "-" for row in table)]
    heads = [name for name in table[0] if name not in (*shared, *unknown)]
    head, *written = [f"  {line}" for line in aligned([heads, *([row[name] for name in heads] for row in table)])]
    lines: list[str] = []
    for case, own in by_case.items():
        beside = ", ".join(f"{name} {own[0][name]}" for name in shared if name not in unknown)
        lines += ["", f"{case}: {beside}" if beside else case, head]
        lines += [line for other, line in zip(cases, written, strict=True) if other == case]
    return lines


def _cells(row: Row, time: str) -> Cells:
    skip = _show(row["skip_frac"], ".1%") + (f" {row['skip_frac_source']}" if row["skip_frac_source"] else "")
    speedup = _with_spread(row, "speedup", row["ratios"], ".2f")
    if row["is_baseline"]:
        speedup = f"{_with_spread(row, 'speedup', [], '.2f')} baseline"
    elif row["speedup"] is not None and row["num_pairs"] < row["num_seeds"]:
        speedup += f" from {_pairs(row['num_pairs'])}"
    change = _with_spread(row, "change_pp", row["changes_pp"], "+.2f", "*" if row["change_from"] == ALWAYS else "")
    if row["change_pp"] is not None and row["num_changes"] < row["num_known"]:
        change += f" from {_pairs(row['num_changes'])}"
    return {
        "policy": row["policy"],
        time: _time(row, row["times_s"]),
        "speedup": speedup,
        "idle": _show(row["idle_frac"], ".1%"),
        "loads": _show(row["num_loads"], ".1f"),
        "seeds": str(row["num_seeds"]),
        "skip": skip,
        "accuracy": "-" if row["accuracy_frac"] is None else f"{row['accuracy_frac'].mean:.2%}",
        "change": change,
    }


def _scaling_cells(row: Row, time: str) -> Cells:
    return {
        "policy": row["policy"],
        "GPUs": str(row["num_workers"]),
        time: _time(row, []),
        "speedup": _with_spread(row, "speedup", [], ".2f"),
        "seeds": str(row["num_seeds"]),
    }


def _time(row: Row, times_s: Sequence[float]) -> str:
    """Write seconds, small values with a decimal."""
    return _with_spread(row, "time_s", times_s, ",.1f" if row["time_s"].mean < 100 else ",.0f")


def _with_spread(row: Row, name: str, values: Sequence[float], form: str, mark: str = "") -> str:
    """Write a mean with its interval; for two values write both, since their interval has no meaning."""
    found = row[name]
    if found is None:
        return "-"
    ends = found.shown(0.0 if name == "time_s" else -100.0)
    text = f"{found.mean:{form}}{mark}"
    if ends is not None:
        return f"{text} [{ends[0]:{form}}, {ends[1]:{form}}]"
    return f"{text} ({min(values):{form}}, {max(values):{form}})" if len(values) == 2 else text


def _pairs(number: int) -> str:
    return f"{number} pair{'' if number == 1 else 's'}"


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"

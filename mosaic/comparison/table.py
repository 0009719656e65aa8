"""The table of a comparison, as text."""

from collections.abc import Sequence

from mosaic.comparison.pairing import ALWAYS, METRICS, NEVER, Comparison, Row

CHANGE_NOTES = {
    NEVER: "change: accuracy in percentage points, less that of gate=never with the same scheduler and seed",
    ALWAYS: "*change: accuracy in percentage points, less that of the same run had it never skipped",
}
Cells = Sequence[Sequence[str]]


def describe(comparison: Comparison, notes: Sequence[str] = ()) -> str:
    """Write the tables as text, and below them whatever is not in them."""
    rows, time = comparison.rows, f"{METRICS[comparison.metric]} (s)"
    lines = [f"speedup over {comparison.baseline}, {METRICS[comparison.metric]}: geometric mean over seeds"]
    lines += ["[95% interval], with two seeds (both values); idle: of the expert stage, loads: of all stages"]
    head = ["policy", "seeds", time, "idle", "loads", "skip", "accuracy", "change", "speedup"]
    body = [_cells(row) for row in rows]
    kept = [i for i in range(len(head)) if head[i] not in ("skip", "accuracy", "change") or _any(body, (5, 6, 7))]
    lines += _blocks([row["case"] for row in rows], [head, *body], kept)
    if comparison.scaling:
        lines += ["", "Across numbers of GPUs: each policy over itself on the fewest"]
        table = [["policy", "GPUs", "seeds", time, "speedup"], *map(_scaling_cells, comparison.scaling)]
        lines += _blocks([row["world"] for row in comparison.scaling], table, range(5))
    references = {row["change_from"] for row in rows}
    ends = [note for reference, note in CHANGE_NOTES.items() if reference in references]
    ends += [*comparison.notes, *notes]
    return "\n".join([*lines, *([""] if ends else []), *ends]) + "\n"


def _any(body: Cells, places: Sequence[int]) -> bool:
    return any(row[place] != "-" for row in body for place in places)


def _blocks(cases: Sequence[str], table: Cells, kept: Sequence[int]) -> list[str]:
    """Lay out a table in blocks of one case, all with equal columns; the first column is set left."""
    widths = [max(len(row[place]) for row in table) for place in kept]
    texts = [
        "  " + "  ".join(
            row[place].rjust(width) if place else row[place].ljust(width)
            for place, width in zip(kept, widths, strict=True)
        ).rstrip()
        for row in table
    ]  # fmt: skip
    lines: list[str] = []
    for case in dict.fromkeys(cases):
        own = [text for other, text in zip(cases, texts[1:], strict=True) if other == case]
        lines += ["", case, texts[0], *own]
    return lines


def _cells(row: Row) -> list[str]:
    skip = _show(row["skip_frac"], ".1%") + (f" {row['skip_frac_source']}" if row["skip_frac_source"] else "")
    speedup = _with_spread(row, "speedup", row["ratios"], ".3f")
    if row["is_baseline"]:
        speedup = _with_spread(row, "speedup", [], ".3f")
    elif row["speedup"] is not None and row["num_pairs"] < row["num_seeds"]:
        speedup += f" from {_pairs(row['num_pairs'])}"
    change = _with_spread(row, "change_pp", row["changes_pp"], "+.2f", "*" if row["change_from"] == ALWAYS else "")
    if row["change_pp"] is not None and row["num_changes"] < row["num_known"]:
        change += f" from {_pairs(row['num_changes'])}"
    accuracy = "-" if row["accuracy_frac"] is None else f"{row['accuracy_frac'].mean:.2%}"
    return [
        row["policy"], str(row["num_seeds"]), _with_spread(row, "time_s", row["times_s"], ",.1f"),
        _show(row["idle_frac"], ".1%"), _show(row["num_loads"], ".1f"), skip, accuracy,
        change, speedup,
    ]  # fmt: skip


def _scaling_cells(row: Row) -> list[str]:
    time, speedup = (_with_spread(row, name, [], form) for name, form in (("time_s", ",.1f"), ("speedup", ".2f")))
    return [row["policy"], str(row["num_workers"]), str(row["num_seeds"]), time, speedup]


def _with_spread(row: Row, name: str, values: Sequence[float], form: str, mark: str = "") -> str:
    """Write a mean with its interval; of two values both, since their interval says nothing."""
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

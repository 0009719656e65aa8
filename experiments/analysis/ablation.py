"""What a sweep shows: runs become means and 95% intervals over seeds, along one key and line by line."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.analysis.ablation_spec import AblationSpec, Line, Panel
from experiments.analysis.run_table import RunPoint
from experiments.lab.estimate import Estimate, estimate
from mosaic.core.checks import require
from mosaic.report.run_folder import flatten

X: Any = object
"""A value of the key on the x axis: a number, a name, null or a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One point of one line in one panel."""

    panel: Panel
    line: str
    x: X
    values: Mapping[int, float]
    """By seed, in the panel's unit."""

    @property
    def estimate(self) -> Estimate:
        return estimate(list(self.values.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """All rows of a sweep, and by name whatever is not in them."""

    spec: AblationSpec
    xs: tuple[X, ...]
    """On the axis, from left to right."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def rows_of(self, panel: Panel, line: str) -> list[Row]:
        """Select the rows of one line, from left to right."""
        return [row for row in self.rows if row.panel is panel and row.line == line]

    def lines_of(self, panel: Panel) -> list[str]:
        """Name the lines that have a point in a panel."""
        return list(dict.fromkeys(row.line for row in self.rows if row.panel is panel))


def make_ablation(spec: AblationSpec, runs: Sequence[RunPoint]) -> Ablation:
    """Sort runs onto lines and the axis, and measure every panel there.

    Raises
    ------
    ValueError
        If a key is in no run, a run is on no line or on two, or two runs of one seed meet in a point.
    """
    leaves = [flatten(run.summary) | run.leaves for run in runs]
    _check_keys(spec, leaves)
    xs = _axis(spec, [entry[spec.x.key] for entry in leaves if spec.x.key in entry])
    cells: dict[tuple[str, int], dict[int, RunPoint]] = defaultdict(dict)
    for run, entry in zip(runs, leaves, strict=True):
        if spec.x.key not in entry:
            raise ValueError(f"figure.x.key must be a key of every run, got {spec.x.key!r}, which {_name(run)} lacks")
        cell = cells[_line_of(spec, run, entry), xs.index(entry[spec.x.key])]
        known = cell.setdefault(run.seed, run)
        if known is not run:
            rule = "such that no two runs of one seed share a point"
            raise ValueError(f"figure.lines must be {rule}, got {_name(known)} and {_name(run)}")
    rows, notes = [], [f"no complete point of {line.label!r}" for line in spec.lines if not _has(cells, line)]
    for panel in (*spec.panels, *_absolute(spec)):
        for line in spec.lines:
            for place, x in enumerate(xs):
                values, lacking = _measure(panel, cells, line.label, place, xs)
                notes += lacking
                if values:
                    rows.append(Row(panel=panel, line=line.label, x=x, values=values))
    if not rows:
        raise ValueError("figure.panels: no run has a number there; " + "; ".join(notes[:3]))
    return Ablation(spec=spec, xs=xs, rows=tuple(rows), notes=tuple(dict.fromkeys(notes)))


def _absolute(spec: AblationSpec) -> list[Panel]:
    """Add what is drawn only in relation to something: its own values are in the table, in the summary's unit."""
    shown = {panel.key for panel in spec.panels if panel.relative_to is None}
    keys = dict.fromkeys(panel.key for panel in spec.panels if panel.key not in shown)
    return [Panel(key=key, label=key) for key in keys]


def _has(cells: Mapping[tuple[str, int], Mapping[int, RunPoint]], line: Line) -> bool:
    return any(label == line.label for label, _ in cells)


def _name(run: RunPoint) -> str:
    return repr(run.folder.name)


def _check_keys(spec: AblationSpec, leaves: Sequence[Mapping[str, Any]]) -> None:
    known = {key for entry in leaves for key in entry}
    if spec.x.key not in known:
        raise ValueError(f"figure.x.key must be a key of the configuration, got {spec.x.key!r}")
    for line in spec.lines:
        for key in line.where:
            require(key in known, f"figure.lines: key of {line.label!r}", "one of the configuration or summary", key)


def _axis(spec: AblationSpec, values: Sequence[X]) -> tuple[X, ...]:
    """Order the values on the axis: numbers by size, categories as the preset lists them."""
    distinct: list[X] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    if spec.x.is_numeric:
        for value in distinct:
            rule = f"numbers on a {spec.x.scale} axis (scale: category takes anything)"
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            require(
                is_number and (value > 0 or spec.x.scale != "log"), f"figure.x: values of {spec.x.key}", rule, value
            )
        return tuple(sorted(distinct))
    listed = [name.value for name in spec.x.names if name.value in distinct]
    return (*listed, *sorted((value for value in distinct if value not in listed), key=repr))


def _line_of(spec: AblationSpec, run: RunPoint, entry: Mapping[str, Any]) -> str:
    found = [line.label for line in spec.lines if line.takes(entry)]
    if len(found) != 1:
        rule = "such that each run is on exactly one line"
        raise ValueError(f"figure.lines must be {rule}, got {found} for {_name(run)}")
    return found[0]


def _measure(
    panel: Panel, cells: Mapping[tuple[str, int], Mapping[int, RunPoint]], line: str, place: int, xs: Sequence[X]
) -> tuple[dict[int, float], list[str]]:
    """Read a panel's number in every run of a point; relative ones are paired by seed."""
    values, notes = {}, []
    base = _base(panel, cells, line, place, xs)
    for seed, run in sorted(cells.get((line, place), {}).items()):
        value = _number(panel, run)
        if base is not None and seed not in base:
            notes.append(f"no run to relate {_name(run)} to")
            continue
        against = None if base is None else _number(panel, base[seed])
        if value is None or (base is not None and not against):
            notes.append(f"{panel.key} is null or cannot be related in {_name(run)}")
            continue
        values[seed] = panel.times * (value if against is None else value / against)
    return values, notes


def _base(
    panel: Panel, cells: Mapping[tuple[str, int], Mapping[int, RunPoint]], line: str, place: int, xs: Sequence[X]
) -> Mapping[int, RunPoint] | None:
    """Find the runs that a relative panel divides by, by seed; None: the panel is absolute."""
    relative = panel.relative_to
    if relative is None:
        return None
    if relative.at_x:
        place = xs.index(relative.x) if relative.x in xs else -1
    return cells.get((relative.line or line, place), {})


def _number(panel: Panel, run: RunPoint) -> float | None:
    summary = flatten(run.summary)
    value = summary.get(panel.key, ...)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        numbers = sorted(key for key, entry in summary.items() if isinstance(entry, int | float))
        raise ValueError(f"figure.panels: key must be a number of summary.json, one of {numbers}, got {panel.key!r}")
    return float(value)

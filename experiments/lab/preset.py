"""A sweep that a preset conf/experiment/ablate_NAME.yaml declares, as a study."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.lab.study import Point, Row, Study, Sweep
from experiments.lab.tables import beside, markdown, means, wide
from mosaic.commands.run_folder import summary_of
from mosaic.comparison.estimate import Estimate
from mosaic.config.compose import CONF, compose_config
from mosaic.config.job import build_job
from mosaic.config.launch import points_of
from mosaic.core.checks import require
from mosaic.figures.means import Panel, draw, draw_rows
from mosaic.report.run_folder import flatten
from mosaic.runtime.run import run

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

PRESETS = CONF / "experiment"
PREFIX = "ablate_"


class Name(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a value on the x axis is written."""

    value: Any
    label: str


class Axis(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The key of the configuration that is varied."""

    key: str
    label: str
    """With its unit."""
    names: tuple[Name, ...] = ()
    """In the order on the axis; none given: values as they are, in the order of the sweep."""

    def show(self, value: object) -> str:
        """Write a value."""
        label = next((name.label for name in self.names if name.value == value), None)
        return label or (f"{value:g}" if isinstance(value, float) else str(value))


class Reference(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a panel divides by, seed by seed: another line, another value on the axis, or both."""

    line: str | None = None
    """None: each line's own."""
    x: Any = ...
    """Left out: the same value."""


class Measure(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A number of summary.json, on an axis of its own."""

    key: str
    label: str
    """With its unit."""
    times: float = 1.0
    """Turns the summary's unit into the label's: 100 for a share in percent."""
    scale: str = "linear"
    relative_to: Reference | None = None


class Preset(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a preset says under ``study``."""

    title: str
    about: str
    """What is varied and what stays, in one sentence."""
    finding: str
    """The result: {0[ILP][4]} is the mean of the first panel's line ILP at the value 4, and {0[ILP][4]:interval} adds
    its interval."""
    x: Axis
    panels: tuple[Measure, ...]
    lines: dict[str, dict[str, Any]]
    """By their names what the runs of a line have in common: keys of the configuration or of summary.json."""
    layout: str = "lines"
    """lines: the varied key on the x axis; rows: a row a line, for many lines."""


def preset_names() -> list[str]:
    """List the presets that are studies."""
    return sorted(path.stem for path in PRESETS.glob(f"{PREFIX}*.yaml"))


def read_preset(path: Path) -> tuple[Preset, dict[str, Any]]:
    """Read what a preset shows, and what it sweeps, by key.

    Raises
    ------
    ValueError
        Naming the file, the key and the rule.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        preset = msgspec.convert(content.get("study"), Preset)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path.name}: study: {error}") from error
    for panel in preset.panels:
        line = panel.relative_to and panel.relative_to.line
        require(line in (None, *preset.lines), f"{path.name}: relative_to.line", f"one of {list(preset.lines)}", line)
    return preset, content["hydra"]["sweeper"]["params"]


def preset_study(name: str) -> Study:
    """Make the study of a preset.

    Raises
    ------
    ValueError
        If the preset is not one of a figure.
    """
    preset, params = read_preset(PRESETS / f"{name}.yaml")
    swept = {key: value for key, value in params.items() if key != "seed"}
    seeds = OverridesParser.create().parse_overrides([f"seed={params['seed']}"])
    sweep = Sweep(
        points=tuple(make_points(name, swept)),
        measure=lambda point, seed: measure(preset, point, seed),
        num_seeds=len(points_of(seeds)),
    )
    return Study(
        name=name,
        about=preset.title + ".",
        title=preset.title,
        tables={name: sweep},
        report=lambda tables: report(name, preset, tables[name]),
        figures={name: lambda tables: figure(preset, tables[name])},
    )


def make_points(name: str, swept: Mapping[str, Any]) -> list[Point]:
    """List all combinations of what is swept."""
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in swept.items()])
    return [
        Point(
            labels={entry.partition("=")[0].lstrip("+"): entry.partition("=")[2] for entry in point},
            overrides=(f"+experiment={name}", *point),
        )
        for point in points_of(overrides)
    ]


def measure(preset: Preset, point: Point, seed: int) -> Row:
    """Run a point; return its line, its place on the axis, and the numbers of its summary that are shown."""
    config = compose_config([*point.overrides, f"seed={seed}"])
    prepared = build_job(config, overrides=point.overrides)
    outcome = run(prepared.job)
    summary = flatten(summary_of(prepared, config, [planned.plan for planned in outcome.planned], outcome))
    known = summary | flatten(config)
    for name in ("costs", "backend", "gate", "aggregator"):
        known[f"{name}.name"] = summary[name]
    known |= {"scheduler": summary["scheduler"], "costs": summary["costs"]}
    lines = [line for line, where in preset.lines.items() if all(known.get(key, ...) == where[key] for key in where)]
    require(len(lines) == 1, "study.lines", f"such that each run is on exactly one line ({point.labels})", lines)
    require(preset.x.key in known, "study.x.key", "a key of the configuration", preset.x.key)
    numbers = {}
    for key in dict.fromkeys(panel.key for panel in preset.panels):
        require(key in summary, "study.panels: key", "a number of summary.json", key)
        numbers[key] = summary[key]
    return {"line": lines[0], "x": preset.x.show(known[preset.x.key]), **numbers}


def average(preset: Preset, runs: "pl.DataFrame") -> list[dict[str, Any]]:
    """Average each panel's number over seeds: rows of panel, line and x, in the preset's order."""
    import polars as pl

    runs = runs.with_columns(pl.Series("x", [preset.x.show(x) for x in runs["x"]], pl.String))
    named = [name.label for name in preset.x.names]
    xs = [x for x in named if x in runs["x"]] or runs["x"].unique(maintain_order=True).to_list()
    order = pl.DataFrame([{"line": line, "x": x} for x in xs for line in preset.lines], orient="row")
    runs = order.join(runs, on=["line", "x"], maintain_order="left")
    rows = []
    for number, panel in enumerate(preset.panels):
        value = panel.times * pl.col(panel.key).cast(pl.Float64)
        pairs = runs
        if panel.relative_to is not None:
            pairs = relate(preset, runs, panel.relative_to)
            value = panel.times * pl.col(panel.key) / pl.col(f"{panel.key}_base")
        rows += [{"panel": number, **row} for row in means(pairs, ["line", "x"], value=value)]
    return rows


def relate(preset: Preset, runs: "pl.DataFrame", reference: Reference) -> "pl.DataFrame":
    """Put beside each run the one that it is divided by."""
    import polars as pl

    baseline = pl.lit(True)
    by = {"line", "x"}
    if reference.line is not None:
        baseline &= pl.col("line") == reference.line
        by.remove("line")
    if reference.x is not ...:
        baseline &= pl.col("x") == preset.x.show(reference.x)
        by.remove("x")
    return beside(runs, baseline, sorted(by))


@dataclass(frozen=True, slots=True)
class Shown:
    """A mean in a finding; ``{...:interval}`` writes its interval too."""

    estimate: Estimate

    def __format__(self, form: str) -> str:
        return show_estimate(self.estimate) if form == "interval" else show_number(self.estimate.mean)


def report(name: str, preset: Preset, runs: "pl.DataFrame") -> str:
    """Write what was varied, what it shows, and a table a panel."""
    rows = [row for row in average(preset, runs) if row["value"] is not None]
    found: list[dict[str, dict[str | int, Shown]]] = [{} for _ in preset.panels]
    for row in rows:
        x = row["x"]
        row["cell"] = show_estimate(row["value"])
        # NOTE: str.format reads an index of digits as a number.
        found[row["panel"]].setdefault(row["line"], {})[int(x) if x.isdigit() else x] = Shown(row["value"])
    try:
        finding = preset.finding.format(*found)
    except LookupError as missing:
        finding = f"(no finding without a run of {missing})"
    places = {line: place for place, line in enumerate(preset.lines)}
    parts = [preset.about, finding, f"![{preset.title}]({name}.png)"]
    for number, panel in enumerate(preset.panels):
        shown = [row for row in rows if row["panel"] == number]
        if preset.layout == "rows":
            shown.sort(key=lambda row: places[row["line"]])
            table = wide(shown, ["line"], "x", "{cell}")
        else:
            table = wide(shown, ["x"], "line", "{cell}", order=list(places))
        heads = {"x": preset.x.label, "line": "policy"}
        parts += [f"## {panel.label}{reference_text(preset, panel)}", markdown(table, heads)]
    return "\n\n".join(parts) + "\n"


def reference_text(preset: Preset, panel: Measure) -> str:
    """Say what a panel divides by."""
    reference = panel.relative_to
    if reference is None:
        return ""
    place = "" if reference.x is ... else f" at {preset.x.show(reference.x)}"
    return f" (of {reference.line or 'the same line'}{place})"


def figure(preset: Preset, runs: "pl.DataFrame") -> "Figure":
    """Draw a panel a measure."""
    panels = {
        number: Panel(label=panel.label, log=panel.scale == "log", mark=None if panel.relative_to is None else 1.0)
        for number, panel in enumerate(preset.panels)
    }
    rows = average(preset, runs)
    if preset.layout == "rows":
        marks = list(dict.fromkeys(row["x"] for row in rows))
        return draw_rows(rows, "value", "line", "x", "panel", panels=panels, names=list(preset.lines), marks=marks)
    lines = list(preset.lines)
    return draw(rows, "x", "value", "line", "panel", x_label=preset.x.label, panels=panels, lines=lines, stacked=True)


def show_estimate(value: Estimate) -> str:
    """Write a mean with its interval, both with four digits."""
    ends = value.shown()
    text = show_number(value.mean)
    return text if ends is None else f"{text} [{show_number(ends[0])}, {show_number(ends[1])}]"


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

"""What the figure of a sweep shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from mosaic.core.checks import require, require_name, require_number, require_unique

SCALES = ("linear", "log", "category")


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """How a value on the x axis is written."""

    value: Any
    label: str

    def __post_init__(self) -> None:
        require_name(self.label, "figure.x.names: label")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The key that a sweep varies."""

    key: str
    """Dotted, of the configuration."""
    label: str
    """With its unit."""
    scale: str = "linear"
    names: tuple[Name, ...] = ()
    """Of categories, in the order in which they stand on the axis."""
    ticks: tuple[Name, ...] = ()
    """Of numbers: where marks stand, and what is written there; none given: at the values."""
    steps: bool = False
    """Lines keep their value half-way to the next point, where what is measured is known to jump."""

    def __post_init__(self) -> None:
        require_name(self.key, "figure.x.key")
        require_name(self.label, "figure.x.label")
        require(self.scale in SCALES, "figure.x.scale", f"one of {list(SCALES)}", self.scale)
        require(not self.names or not self.is_numeric, "figure.x.names", "given for scale: category only", self.scale)
        require(not self.ticks or self.is_numeric, "figure.x.ticks", "given for numbers only", self.scale)

    @property
    def is_numeric(self) -> bool:
        return self.scale != "category"

    def show(self, value: Any) -> str:
        """Write a value of the axis."""
        label = next((name.label for name in self.names if name.value == value), None)
        return label or (f"{value:g}" if isinstance(value, float) else str(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a panel divides by, in the run of the same seed: another line, another place on the axis, or both."""

    line: str | None = None
    """None: each line's own."""
    x: Any = ...
    """Left out: the same place."""

    def __post_init__(self) -> None:
        require(self.line is not None or self.at_x, "figure.panels: relative_to", "given a line, an x or both", {})

    @property
    def at_x(self) -> bool:
        return self.x is not ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One y axis."""

    key: str
    """Dotted, of summary.json."""
    label: str
    """With its unit."""
    times: float = 1.0
    """Turns the summary's unit into the label's: 100 for a share in percent."""
    scale: str = "linear"
    relative_to: Reference | None = None

    def __post_init__(self) -> None:
        require_name(self.key, "figure.panels: key")
        require_name(self.label, "figure.panels: label")
        require_number(self.times, "figure.panels: times", above=0)
        require(self.scale in SCALES[:2], "figure.panels: scale", f"one of {list(SCALES[:2])}", self.scale)

    @property
    def bounds(self) -> tuple[float, float]:
        """What is possible: no interval is drawn past it."""
        if self.key.endswith("_pp"):
            return -inf, inf
        return 0.0, self.times if self.key.endswith("_frac") and self.relative_to is None else inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A name and the values that its runs have in common."""

    label: str
    where: Mapping[str, Any] = field(default_factory=dict)
    """By key of configuration or summary; ``scheduler`` is the scheduler's name. None given: every run."""

    def takes(self, leaves: Mapping[str, Any]) -> bool:
        """Tell whether a run is on the line."""
        return all(leaves.get(key, ...) == value for key, value in self.where.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationSpec:
    """The figure of a sweep."""

    title: str
    about: str
    """What is varied and what stays, in one sentence."""
    x: Axis
    panels: tuple[Panel, ...]
    lines: tuple[Line, ...]
    finding: str
    """What it shows, in one sentence whose numbers are left open: {0[ILP][4]} is the mean of the first panel's line ILP
    at the value that is written 4, {0[ILP][4]:interval} has its interval with it."""

    def __post_init__(self) -> None:
        require_name(self.title, "figure.title")
        require_name(self.about, "figure.about")
        require_name(self.finding, "figure.finding")
        require(len(self.panels) > 0, "figure.panels", "at least one panel", [])
        require(len(self.lines) > 0, "figure.lines", "at least one line", {})
        require_unique((line.label for line in self.lines), "figure.lines")
        labels = [line.label for line in self.lines]
        for panel in self.panels:
            line = panel.relative_to.line if panel.relative_to else None
            require(line is None or line in labels, "figure.panels: relative_to.line", f"one of {labels}", line)

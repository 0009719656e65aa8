"""Piecewise-linear tables of measured times: a curve over one axis, a grid over two."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mosaic.core.checks import require, require_number


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds by one count: linear between knots, and extrapolated along the first and the last segment."""

    knots: tuple[float, ...]
    values_s: tuple[float, ...]

    def __post_init__(self) -> None:
        require(len(self.knots) > 0, "curve: knots", "at least one", list(self.knots))
        require(len(self.values_s) == len(self.knots), "curve: values", f"{len(self.knots)} numbers", self.values_s)
        require_increasing(self.knots, "curve: knots")
        for value in self.values_s:
            require_number(value, "curve: value", at_least=0)

    def __call__(self, x: float) -> float:
        """Evaluate the curve; never below 0, which the first segment could reach outside its measurements."""
        if len(self.knots) == 1:
            return self.values_s[0]
        knots = self.knots
        i = bisect_right(knots, x, 1, len(knots) - 1)
        low, high, knot = self.values_s[i - 1], self.values_s[i], knots[i - 1]
        seconds = low + (high - low) * (x - knot) / (knots[i] - knot)
        return seconds if seconds > 0.0 else 0.0

    def scaled(self, factor: float) -> "Curve":
        """Multiply every value."""
        return Curve(self.knots, tuple(value * factor for value in self.values_s))


@dataclass(frozen=True, slots=True)
class Grid:
    """Seconds by two counts: bilinear between knots, affine beyond them."""

    rows: tuple[float, ...]
    columns: tuple[float, ...]
    values_s: tuple[tuple[float, ...], ...]
    """Shape (num_rows, num_columns)."""

    def __post_init__(self) -> None:
        require(len(self.columns) >= 2, "grid: columns", "at least two", list(self.columns))
        require(len(self.rows) >= 2, "grid: rows", "at least two", list(self.rows))
        require_increasing(self.rows, "grid: rows")
        require_increasing(self.columns, "grid: columns")
        require(len(self.values_s) == len(self.rows), "grid: values", f"{len(self.rows)} rows", len(self.values_s))
        for row in self.values_s:
            require(len(row) == len(self.columns), "grid: row", f"{len(self.columns)} numbers", row)
            for value in row:
                require_number(value, "grid: value", at_least=0)

    def row(self, y: float) -> tuple[float, ...]:
        """Interpolate a row at the knots of the columns; never below 0."""
        i = segment(self.rows, y)
        weight = (y - self.rows[i]) / (self.rows[i + 1] - self.rows[i])
        pairs = zip(self.values_s[i], self.values_s[i + 1], strict=True)
        return tuple(max(0.0, low + (high - low) * weight) for low, high in pairs)

    def column(self, x: float) -> tuple[float, ...]:
        """Interpolate a column at the knots of the rows; never below 0."""
        return tuple(self(y, x) for y in self.rows)

    def __call__(self, y: float, x: float) -> float:
        """Evaluate the grid at a row and a column coordinate; never below 0."""
        rows, columns = self.rows, self.columns
        i = bisect_right(rows, y, 1, len(rows) - 1)
        j = bisect_right(columns, x, 1, len(columns) - 1)
        left, above = columns[j - 1], rows[i - 1]
        across, down = (x - left) / (columns[j] - left), (y - above) / (rows[i] - above)
        upper, lower = self.values_s[i - 1], self.values_s[i]
        top = upper[j - 1] + (upper[j] - upper[j - 1]) * across
        bottom = lower[j - 1] + (lower[j] - lower[j - 1]) * across
        seconds = top + (bottom - top) * down
        return seconds if seconds > 0.0 else 0.0

    def scaled(self, factor: float) -> "Grid":
        """Multiply every value."""
        return Grid(self.rows, self.columns, tuple(tuple(value * factor for value in row) for row in self.values_s))


def segment(knots: Sequence[float], x: float) -> int:
    """Find the segment that contains x, the first or the last one if x is outside; needs two knots."""
    return bisect_right(knots, x, 1, len(knots) - 1) - 1


def require_increasing(values: Sequence[float], field: str) -> None:
    """Check finite numbers in strictly increasing order."""
    for value in values:
        require_number(value, field)
    ordered = all(low < high for low, high in pairwise(values))
    require(ordered, field, "strictly increasing", list(values))


def curve_from_text(text: object, field: str, unit_s: float = 1e-6) -> Curve:
    """Read pairs ``knot:value`` separated by blanks.

    It is one string and not nested lists. A configuration tree builds a node for every number of a list, which would
    take longer than the simulation of a small run.

    Examples
    --------
    >>> curve_from_text("1:10 8:24", "dense_s", unit_s=1.0)(4.5)
    17.0
    """
    pairs = [_numbers(pair.split(":"), field) for pair in _text(text, field).split()]
    require(len(pairs) > 0 and all(len(pair) == 2 for pair in pairs), field, "pairs knot:value", text)
    return Curve(tuple(knot for knot, _ in pairs), tuple(value * unit_s for _, value in pairs))


def curve_to_text(curve: Curve, unit_s: float = 1e-6) -> str:
    """Write a curve in the format of ``curve_from_text``, four digits per value."""
    return " ".join(f"{knot:g}:{value / unit_s:.4g}" for knot, value in zip(curve.knots, curve.values_s, strict=True))


def grid_from_text(text: object, field: str, unit_s: float = 1e-6) -> Grid:
    """Read a table: the knots of the columns in the first line, then a line per row, its knot first.

    Examples
    --------
    >>> grid_from_text("16 32\\n1 10 20\\n2 30 40", "decode_s", unit_s=1.0)(1.5, 24)
    25.0
    """
    lines = [_numbers(line.split(), field) for line in _text(text, field).splitlines() if line.strip()]
    require(len(lines) >= 3, field, "a line of column knots and at least two rows", text)
    columns, *rows = lines
    for row in rows:
        require(len(row) == len(columns) + 1, field, f"a knot and {len(columns)} values in every row", row)
    values = tuple(tuple(value * unit_s for value in row[1:]) for row in rows)
    return Grid(tuple(row[0] for row in rows), tuple(columns), values)


def grid_to_text(grid: Grid, unit_s: float = 1e-6) -> str:
    """Write a grid in the format of ``grid_from_text``, four digits per value, with aligned columns."""
    lines = [["", *(f"{knot:g}" for knot in grid.columns)]]
    for knot, row in zip(grid.rows, grid.values_s, strict=True):
        lines.append([f"{knot:g}", *(f"{value / unit_s:.4g}" for value in row)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = (" ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    # A block scalar in YAML takes its indentation from its first line, which must not start with a blank.
    first, *rest = aligned
    return "\n".join([first.lstrip(), *rest]) + "\n"


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{field} must be text, got {value!r}")
    return value


def _numbers(parts: Sequence[str], field: str) -> list[float]:
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"{field} must be numbers, got {' '.join(parts)!r}") from error

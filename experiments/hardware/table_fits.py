"""Fits the coefficients and compact grids of a conf/hardware file to thousands of measured operator times."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, nnls

from experiments.hardware.operator_tables import Cells, JointAttention, OperatorTables, Points, SeparateAttention
from mosaic.core.workload import ModelShape
from sim.hardware.curves import Curve, Grid
from sim.hardware.hardware import FittedAttention, MeasuredAttention

Floats = NDArray[np.float64]

CURVE_TOLERANCE = 0.03
"""Largest relative distance of a curve from its smoothed points."""
GRAPH_TOLERANCE = 0.005
"""The same where decode steps are: a decode batch costs the same at every step, so a bias there never averages out."""
GRAPH_TOKENS = 512
"""Largest batch that vLLM captures as a CUDA graph."""
GRID_TOLERANCE = 0.03
"""Largest relative change of any value when a line of a grid is left out."""


def mape(predicted: Floats, measured: Floats) -> float:
    """Mean absolute relative error, rounded for storage."""
    return round(float(np.mean(np.abs(predicted / measured - 1))), 4)


def fit_curve(points: Points) -> tuple[Curve, float]:
    """Keep the knots that a piecewise-linear curve needs, on times made to rise with the count.

    Up to ``GRAPH_TOKENS`` knots are at counts that vLLM captures, where the table has them. Times are pooled by their
    logarithms, as a mean of times weighed by relative error would be too low. The last knot is an extrapolation, see
    ``_with_trend``.

    Returns
    -------
    tuple
        The curve and its error against all points.
    """
    x = np.array(sorted(points))
    measured = np.array([points[count] for count in x])
    _require_positive(measured)
    smooth = np.exp(np.asarray(isotonic_regression(np.log(measured)).x))
    captured = (x <= 4) | (x % 8 == 0) | (x > GRAPH_TOKENS)
    kept = sorted(_needed_knots(x, smooth, captured, 0, len(x) - 1) | {0, len(x) - 1})
    curve = _with_trend(Curve(tuple(float(x[i]) for i in kept), tuple(float(smooth[i]) for i in kept)))
    return curve, mape(np.array([curve(count) for count in x]), measured)


def _with_trend(curve: Curve) -> Curve:
    """Add a knot at twice the range, on the slope of its upper half.

    Times rise in stairs (a GPU works in tiles), and a curve goes on along its last segment, which may be a tread.
    """
    last = curve.knots[-1]
    if len(curve.knots) == 1 or last <= 0:
        return curve
    return Curve((*curve.knots, 2 * last), (*curve.values_s, 3 * curve.values_s[-1] - 2 * curve(last / 2)))


def _needed_knots(x: Floats, y: Floats, allowed: NDArray[np.bool_], first: int, last: int) -> set[int]:
    """Douglas and Peucker's algorithm on relative distance, with knots where they are allowed."""
    inside = np.flatnonzero(allowed[first + 1 : last]) + first + 1
    if not len(inside):
        return set()
    straight = np.interp(x[inside], x[[first, last]], y[[first, last]])
    distance = np.abs(straight / y[inside] - 1) / np.where(x[inside] <= GRAPH_TOKENS, GRAPH_TOLERANCE, CURVE_TOLERANCE)
    if distance.max() <= 1:
        return set()
    split = int(inside[distance.argmax()])
    return {split} | _needed_knots(x, y, allowed, first, split) | _needed_knots(x, y, allowed, split, last)


def fit_grid(cells: Cells, field: str) -> tuple[Grid, float]:
    """Make a complete grid of the cells, rising along both axes, without the lines that interpolation replaces."""
    rows, columns = _complete_lines(cells, field)
    values = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
    for i, row in enumerate(values):
        known = ~np.isnan(row)
        row[known] = isotonic_regression(row[known]).x
        values[i] = _extended(np.array(columns), row)
    values = np.maximum.accumulate(np.maximum(values, 0.0), axis=0)
    kept_rows = _kept_lines(np.array(rows), values)
    kept_columns = _kept_lines(np.array(columns), values.T)
    grid = Grid(
        tuple(rows[i] for i in kept_rows),
        tuple(columns[j] for j in kept_columns),
        tuple(tuple(float(values[i, j]) for j in kept_columns) for i in kept_rows),
    )
    measured = np.array(list(cells.values()))
    return grid, mape(np.array([grid(*cell) for cell in cells]), measured) if measured.min() > 0 else 0.0


def _complete_lines(cells: Cells, field: str) -> tuple[list[float], list[float]]:
    """Choose rows and columns: those with holes inside go first, a row may end early (memory ran out there)."""
    rows, columns = sorted({row for row, _ in cells}), sorted({column for _, column in cells})
    while True:
        if len(rows) < 2 or len(columns) < 2:
            raise ValueError(f"{field}: must cover at least two counts on each axis, got {rows} by {columns}")
        present = np.array([[(row, column) in cells for column in columns] for row in rows])
        ends = np.array([present[i].nonzero()[0].max(initial=-1) for i in range(len(rows))])
        holes = ~present & (np.arange(len(columns))[None, :] <= ends[:, None])
        holes[ends < 1, :] = True
        if not holes.any():
            return rows, columns
        in_rows, in_columns = holes.mean(axis=1), holes.mean(axis=0)
        if in_rows.max() >= in_columns.max():
            del rows[int(in_rows.argmax())]
        else:
            del columns[int(in_columns.argmax())]


def _extended(x: Floats, y: Floats) -> Floats:
    """Fill the end of a row along its last segment."""
    known = (~np.isnan(y)).nonzero()[0]
    before, last = known[-2], known[-1]
    slope = (y[last] - y[before]) / (x[last] - x[before])
    return np.where(np.isnan(y), y[last] + slope * (x - x[last]), y)


def _kept_lines(knots: Floats, lines: Floats) -> list[int]:
    """Leave lines out one by one while interpolation between the kept ones gives all of them back."""
    kept = list(range(len(knots)))
    floor = max(float(lines.max()) * 1e-6, 1e-12)
    while len(kept) > 2:
        losses = []
        for i in kept[1:-1]:
            rest = [k for k in kept if k != i]
            again = np.array([np.interp(knots, knots[rest], column[rest]) for column in lines.T]).T
            losses.append((float((np.abs(again - lines) / np.maximum(lines, floor)).max()), i))
        loss, i = min(losses)
        if loss > GRID_TOLERANCE:
            break
        kept.remove(i)
    return kept


def fit_experts(cells: Cells, shape: ModelShape, cache_bytes: float, field: str) -> tuple[Grid, float]:
    """Make a grid of the routed experts of a layer, by tokens and experts that get any, with its error.

    NOTE: a profiler repeats one layer. Weights of few experts fit into the GPU's cache and are then read from there.
    Between the layers of a whole model they never are, so such cells are left out. Few tokens cannot reach many
    experts: those cells get the time of the fewest tokens that do.
    """
    expert_bytes = shape.num_expert_parameters * shape.bytes_per_value
    read = {cell: seconds for cell, seconds in cells.items() if cell[1] * expert_bytes > cache_bytes}
    filled: Cells = {}
    for tokens, experts in product({row for row, _ in read}, {column for _, column in read}):
        fewest = min(row for row, column in read if column == experts)
        if tokens < fewest or (tokens, experts) in read:
            filled[tokens, experts] = read[max(tokens, fewest), experts]
    grid, _ = fit_grid(filled, field)
    return grid, mape(np.array([grid(*cell) for cell in read]), np.array(list(read.values())))


def measured_range(decode: Cells) -> dict[str, int]:
    """Say how far decode attention was measured, as a hardware file has it."""
    return {"seqs": int(max(seqs for seqs, _ in decode)), "tokens": int(max(tokens for _, tokens in decode))}


def fit_attention(
    tables: OperatorTables, shape: ModelShape
) -> tuple[FittedAttention | MeasuredAttention, dict[str, float]]:
    """Fit one GPU's attention, with the errors of the fits."""
    if isinstance(tables.attention, JointAttention):
        return _fit_joint(tables.attention, tables.name)
    attention, errors = _fit_separate(tables.attention, shape.num_query_heads)
    kv_share = shape.kv_bytes_per_token(tables.tp_degree) / shape.kv_bytes_per_token()
    sharded = replace(
        attention,
        decode_per_kv_token_s=attention.decode_per_kv_token_s * kv_share,
        prefill_per_token_s=attention.prefill_per_token_s / tables.tp_degree,
        prefill_per_token_pair_s=attention.prefill_per_token_pair_s / tables.tp_degree,
    )
    return sharded, errors


def _fit_joint(profile: JointAttention, field: str) -> tuple[MeasuredAttention, dict[str, float]]:
    """Fit the grids of decodes alone, chunks alone, and decodes beside a chunk.

    NOTE: an iteration with both is fitted as prefill(chunk, context) + beside(n, kv) + e n chunk, least squares on
    relative error. For a given e the best value of each cell of ``beside`` is a weighted mean. So e has a closed form:
    regress the residual of each cell on n x chunk.
    """
    decode, decode_error = fit_grid(profile.decode, f"{field}, decodes")
    prefill, prefill_error = fit_grid(profile.prefill, f"{field}, prefills")
    keys = np.array(list(profile.joint))
    measured = np.array(list(profile.joint.values()))
    _require_positive(measured)
    weight = measured**-2
    rest = measured - np.array([prefill(chunk, context) for chunk, context, _, _ in profile.joint])
    pairs = keys[:, 0] * keys[:, 2]
    cells, place = np.unique(keys[:, 2:], axis=0, return_inverse=True)
    place = place.reshape(-1)

    def centred(values: Floats) -> Floats:
        return values - (np.bincount(place, weight * values) / np.bincount(place, weight))[place]

    spread = centred(pairs)
    pair_s = max(0.0, float((weight * spread * centred(rest)).sum() / max((weight * spread**2).sum(), 1e-300)))
    beside_s = np.bincount(place, weight * (rest - pair_s * pairs)) / np.bincount(place, weight)
    beside, _ = fit_grid(
        {(float(n), float(kv)): max(0.0, float(value)) for (n, kv), value in zip(cells, beside_s, strict=True)},
        f"{field}, decodes beside a prefill",
    )
    attention = MeasuredAttention(decode=decode, prefill=prefill, beside=beside, beside_per_token_pair_s=pair_s)
    again = [prefill(chunk, context) + beside(n, kv) + pair_s * n * chunk for chunk, context, n, kv in profile.joint]
    errors = {"decode": decode_error, "prefill": prefill_error, "joint": mape(np.array(again), measured)}
    return attention, errors


def _fit_separate(profile: SeparateAttention, num_query_heads: int) -> tuple[FittedAttention, dict[str, float]]:
    """Fit the coefficients of attention: decode a + b B + c KV, prefill a L + b L^2."""
    batch = np.array([size for size, _ in profile.decode])
    tokens = np.array([size * each for size, each in profile.decode])
    decode_s = np.array(list(profile.decode.values()))
    decode, decode_error = _fit_relative([np.ones_like(batch), batch, tokens], decode_s)
    length = np.array(list(profile.prefill))
    scale = num_query_heads / (profile.prefill_heads or num_query_heads)
    prefill_s = scale * np.array(list(profile.prefill.values()))
    prefill, prefill_error = _fit_relative([length, length**2], prefill_s)
    attention = FittedAttention(
        decode_fixed_s=decode[0],
        decode_per_seq_s=decode[1],
        decode_per_kv_token_s=decode[2],
        prefill_per_token_s=prefill[0],
        prefill_per_token_pair_s=prefill[1],
    )
    return attention, {"decode": decode_error, "prefill": prefill_error}


def fit_cpu(points: Mapping[float, float]) -> tuple[float, float, float]:
    """Fit host time as a + b B; return a, b and the error."""
    batch = np.array(list(points))
    (base_s, per_seq_s), error = _fit_relative([np.ones_like(batch), batch], np.array(list(points.values())))
    return base_s, per_seq_s, error


def _fit_relative(terms: list[Floats], measured: Floats) -> tuple[list[float], float]:
    """Least squares on relative error with coefficients that are not negative."""
    _require_positive(measured)
    design: Any = np.column_stack(terms)
    scale = design.max(axis=0)
    solution, _ = nnls(design / scale / measured[:, None], np.ones_like(measured))
    coefficients = solution / scale
    return [float(value) for value in coefficients], mape(design @ coefficients, measured)


def _require_positive(measured: Floats) -> None:
    if measured.min() <= 0:
        raise ValueError(f"measured times must be above 0, got {measured.min():g}")

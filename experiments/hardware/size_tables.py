"""Reads tables of operators by size, as published by NVIDIA's aiconfigurator, and makes compact grids of them.

There are four files. gemm_bf16_us.csv (m, n, k, us) has products of m tokens with n x k weights.
context_attention_bf16_us.csv (num_heads, num_kv_heads, batch_size, isl, us) has prompts of equal lengths.
generation_attention_bf16_us.csv (num_heads, num_kv_heads, batch_size, kv_tokens_per_sequence, us) has decodes. The last
one is all_reduce_us.csv (num_gpus, message_size, us).
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import nnls

from experiments.hardware.operator_tables import Cells, Points, read_table
from experiments.hardware.table_fits import fit_grid, mape, measured_range
from sim.hardware.curves import Grid, grid_to_text

HEAD_DIM = 128
MIN_WIDTH = 512
"""Least n and k of products of matrices that a layer has."""
HEADS_PER_KV_HEAD = (4, 8)
"""Sharing of KV heads in models of today, from and to."""
LONGER = (2, 4)
"""Prompts beyond the longest one measured: attention is quadratic there."""


def read_by_size(folder: Path) -> dict[str, Any]:
    """Return what ``hardware_from_config`` takes as ``by_size``, all but what no table has."""
    gemm, gemm_error = _fit_gemm(_read(folder, "gemm_bf16_us.csv", "m", "n", "k", "us"))
    prefill, prefill_error = _fit_prefill(folder)
    decode, decode_error, measured = _fit_decode(folder)
    errors = {"gemm": gemm_error, "decode": decode_error, "prefill": prefill_error}
    print("by size: MAPE " + ", ".join(f"{part} {100 * error:.1f}%" for part, error in errors.items()))
    return {
        "head_dim": HEAD_DIM,
        "mape": errors,
        "measured": measured,
        "gemm_us": grid_to_text(gemm),
        "decode_us": {heads: grid_to_text(grid) for heads, grid in decode.items()},
        "prefill_us": grid_to_text(prefill),
    }


def read_all_reduce(folder: Path) -> dict[int, Points]:
    """Return seconds of an all-reduce by bytes, per degree."""
    table = _read(folder, "all_reduce_us.csv", "num_gpus", "message_size", "us")
    parts = table.partition_by("num_gpus", as_dict=True, include_key=False)
    return {int(degree): {size: us * 1e-6 for size, us in part.rows()} for (degree,), part in parts.items()}


def _read(folder: Path, name: str, *columns: str) -> pl.DataFrame:
    return read_table(folder / name, columns)


def _fit_gemm(table: pl.DataFrame) -> tuple[Grid, float]:
    """Fit seconds by tokens and millions of weights: for each number of tokens piecewise linear in weights."""
    table = table.filter(pl.min_horizontal("n", "k") >= MIN_WIDTH)
    table = table.select("m", (pl.col("n") * pl.col("k") / 1e6).alias("millions"), pl.col("us") * 1e-6)
    most = float(table["millions"].max())  # type: ignore[arg-type]
    knots = [*2.0 ** np.arange(-2, np.floor(np.log2(most / 1.5)) + 1), most]
    cells: Cells = {}
    for (num_tokens,), part in table.partition_by("m", as_dict=True, include_key=False).items():
        millions, seconds = part["millions"].to_numpy(), part["us"].to_numpy()
        hats = np.column_stack([np.interp(millions, knots, row) for row in np.eye(len(knots))])
        values, _ = nnls(hats / seconds[:, None], np.ones_like(seconds))
        cells |= {(num_tokens, knot): float(value) for knot, value in zip(knots, values, strict=True)}
    grid, _ = fit_grid(cells, "gemm")
    again = np.array([grid(num_tokens, millions) for num_tokens, millions, _ in table.rows()])
    return grid, mape(again, table["us"].to_numpy())


def _fit_prefill(folder: Path) -> tuple[Grid, float]:
    table = _read(folder, "context_attention_bf16_us.csv", "isl", "num_heads", "num_kv_heads", "batch_size", "us")
    table = _common(table.filter(pl.col("batch_size") == 1))
    cells = _means(table, "isl", "num_heads")
    longest = max(tokens for tokens, _ in cells)
    ends = {
        (f * longest, heads): f**2 * seconds for (t, heads), seconds in cells.items() if t == longest for f in LONGER
    }
    grid, _ = fit_grid(cells | ends, "context attention")
    return grid, _error(grid, table, "isl", "num_heads")


def _fit_decode(folder: Path) -> tuple[dict[int, Grid], float, dict[str, int]]:
    columns = ("batch_size", "kv_tokens_per_sequence", "num_kv_heads", "num_heads", "us")
    table = _common(_read(folder, "generation_attention_bf16_us.csv", *columns))
    table = table.filter(pl.col("kv_tokens_per_sequence") >= 16)
    grids, errors = {}, []
    for (num_heads,), part in sorted(table.partition_by("num_kv_heads", as_dict=True).items()):
        grids[int(num_heads)], _ = fit_grid(_means(part, *columns[:2]), f"generation attention, {num_heads} KV heads")
        errors.append(_error(grids[int(num_heads)], part, *columns[:2]))
    return grids, round(float(np.mean(errors)), 4), measured_range(_means(table, *columns[:2]))


def _common(table: pl.DataFrame) -> pl.DataFrame:
    """Keep heads as models of today share them."""
    return table.filter((pl.col("num_heads") / pl.col("num_kv_heads")).is_between(*HEADS_PER_KV_HEAD))


def _means(table: pl.DataFrame, row: str, column: str) -> Cells:
    """Take the median where heads are shared in more than one way."""
    return {(y, x): us * 1e-6 for y, x, us in table.group_by(row, column).agg(pl.col("us").median()).rows()}


def _error(grid: Grid, table: pl.DataFrame, row: str, column: str) -> float:
    again = np.array([grid(y, x) for y, x in table.select(row, column).rows()])
    return mape(again, table["us"].to_numpy() * 1e-6)

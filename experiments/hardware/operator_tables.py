"""Readers of operator tables in the two layouts that public profilers leave behind.

*per-operator* (LLMServingSim's profiler of vLLM): tables.yaml, and per tensor-parallel size a folder tpN with
dense.csv (layer, tokens, time_us), per_sequence.csv (layer, sequences, time_us) and attention.csv (prefill_chunk,
kv_prefill, n_decode, kv_decode, time_us), all of one layer on one GPU.

*per-layer* (derived from Vidur's profiles): one CSV each named *_linear_ms_per_layer, *attn_prefill_ms_per_layer,
*_attn_decode_ms_per_layer, *_all_reduce_ms and *_cpu_overhead_ms.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

Points: TypeAlias = dict[float, float]
"""Seconds by one count."""
Cells: TypeAlias = dict[tuple[float, float], float]
"""Seconds by two counts."""

REPEATS = {"layernorm": 2}
"""Operators that a layer runs more than once: pre-norm decoders normalise before attention and before the FFN."""
ONCE = ("embedding", "final_layernorm")
"""Operators outside the layers."""


class TableError(Exception):
    """A table that cannot be used; the message names file, rule and value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorProfile:
    """The per-operator layout at one tensor-parallel size."""

    tp_degree: int
    dense: Points
    """Operators of one layer but attention, by tokens."""
    once: Points
    head: Points
    decode: Cells
    """By sequences and tokens read by each, no prefill."""
    prefill: Cells
    """By chunk and context, no decodes."""
    joint: dict[tuple[float, float, float, float], float]
    """By chunk, context, decodes and tokens read by each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """The per-layer layout."""

    dense: Mapping[int, Points]
    """By tensor-parallel size, then by tokens."""
    decode: Cells
    prefill: Points
    """By prompt length."""
    prefill_heads: int | None
    """Query heads that ``prefill`` was measured with, where its column says so."""
    all_reduce: Mapping[int, Points]
    """By tensor-parallel size, then by bytes."""
    cpu: Points
    """By batch size."""


def is_per_operator(folder: Path) -> bool:
    """Tell the layouts apart."""
    return (folder / "tables.yaml").is_file() or any(folder.glob("tp*/"))


def read_source(folder: Path) -> str:
    """Say what tables.yaml tells about the origin of per-operator tables."""
    path = folder / "tables.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(f"{path}: must be readable ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise TableError(f"{path}: must be YAML") from error
    keys = ("model", "gpu", "vllm_version", "profiled_at")
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    if missing:
        raise TableError(f"{path}: must give {list(keys)}, missing {missing}")
    return f"measured: {data['model']} on {data['gpu']}, vLLM {data['vllm_version']}, {str(data['profiled_at'])[:10]}"


def read_per_operator(folder: Path) -> list[OperatorProfile]:
    """Read the sizes there are, smallest first."""
    found = {int(match[1]): path for path in folder.glob("tp*") if (match := re.fullmatch(r"tp(\d+)", path.name))}
    if not found:
        raise TableError(f"{folder}: must hold at least one folder tpN, found none")
    return [_read_size(path, degree) for degree, path in sorted(found.items())]


def _read_size(folder: Path, tp_degree: int) -> OperatorProfile:
    dense = _by_operator(folder / "dense.csv", "tokens")
    head = _by_operator(folder / "per_sequence.csv", "sequences")
    axes = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    path = folder / "attention.csv"
    joint = {tuple(row[axis] for axis in axes): row["time_us"] * 1e-6 for row in number_rows(path, (*axes, "time_us"))}
    profile = OperatorProfile(
        tp_degree=tp_degree,
        dense=_sum({name: points for name, points in dense.items() if name not in ONCE}, folder / "dense.csv"),
        once=_sum({name: points for name, points in dense.items() if name in ONCE}, folder / "dense.csv"),
        head=_sum(head, folder / "per_sequence.csv"),
        decode={(n, kv): value for (chunk, _, n, kv), value in joint.items() if not chunk},
        prefill={(chunk, kv): value for (chunk, kv, n, _), value in joint.items() if not n},
        joint={key: value for key, value in joint.items() if key[0] and key[2]},  # type: ignore[misc]
    )
    for name, cells in (("decodes", profile.decode), ("prefills", profile.prefill), ("both", profile.joint)):
        if not cells:
            raise TableError(f"{path}: must have rows with {name}, found none")
    return profile


def _by_operator(path: Path, axis: str) -> dict[str, Points]:
    operators: dict[str, Points] = {}
    for row, name in zip(number_rows(path, (axis, "time_us")), _column(path, "layer"), strict=True):
        operators.setdefault(name, {})[row[axis]] = row["time_us"] * 1e-6
    return operators


def _sum(operators: Mapping[str, Points], path: Path) -> Points:
    """Add operators up where all were measured."""
    if not operators:
        raise TableError(f"{path}: must have the operators of a layer and {list(ONCE)}, found too few")
    common = set.intersection(*(set(points) for points in operators.values()))
    if not common:
        raise TableError(f"{path}: must measure all operators at common counts, found none for {sorted(operators)}")
    return {
        count: sum(REPEATS.get(name, 1) * points[count] for name, points in operators.items())
        for count in sorted(common)
    }


def read_per_layer(folder: Path) -> LayerProfile:
    """Read a folder of the per-layer layout."""
    linear = _find(folder, "*linear_ms_per_layer.csv")
    prefill = _find(folder, "*attn_prefill_ms_per_layer.csv")
    decode = _find(folder, "*attn_decode_ms_per_layer.csv")
    all_reduce = _find(folder, "*all_reduce_ms.csv")
    cpu = _find(folder, "*cpu_overhead_ms.csv")
    time_column = next((name for name in _header(prefill) if name.startswith("attn_prefill_ms_per_layer")), None)
    if time_column is None:
        raise TableError(f"{prefill}: must have a column attn_prefill_ms_per_layer, got {_header(prefill)}")
    heads = re.search(r"_(\d+)q_heads$", time_column)
    decode_axes = ("batch_size", "kv_tokens_per_request")
    decode_rows = number_rows(decode, (*decode_axes, "attn_decode_ms_per_layer"))
    return LayerProfile(
        dense=_by_degree(linear, "num_tokens", "linear_ms_per_layer"),
        decode={
            (row["batch_size"], row["kv_tokens_per_request"]): row["attn_decode_ms_per_layer"] * 1e-3
            for row in decode_rows
        },
        prefill=_points(prefill, "prompt_tokens", time_column),
        prefill_heads=int(heads[1]) if heads else None,
        all_reduce=_by_degree(all_reduce, "message_bytes", "all_reduce_ms"),
        cpu=_points(cpu, "batch_size", "cpu_ms"),
    )


def _points(path: Path, axis: str, column: str) -> Points:
    return {row[axis]: row[column] * 1e-3 for row in number_rows(path, (axis, column))}


def _by_degree(path: Path, axis: str, column: str) -> dict[int, Points]:
    degrees: dict[int, Points] = {}
    for row in number_rows(path, ("tensor_parallel_size", axis, column)):
        degrees.setdefault(int(row["tensor_parallel_size"]), {})[row[axis]] = row[column] * 1e-3
    return degrees


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [path.name for path in found]
        raise TableError(f"{folder}: must hold exactly one {pattern}, found {names}")
    return found[0]


def _open(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise TableError(f"{path}: must be readable ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: must be a CSV file ({error})") from error


def _header(path: Path) -> list[str]:
    rows = _open(path)
    if not rows:
        raise TableError(f"{path}: must have at least one row, found none")
    return list(rows[0])


def _column(path: Path, column: str) -> list[str]:
    if column not in _header(path):
        raise TableError(f"{path}: must have the column {column}, got {_header(path)}")
    return [row[column] for row in _open(path)]


def number_rows(path: Path, columns: Sequence[str]) -> list[dict[str, float]]:
    """Read numeric columns; every value is finite and not negative."""
    header = _header(path)
    missing = [column for column in columns if column not in header]
    if missing:
        raise TableError(f"{path}: must have the columns {list(columns)}, missing {missing}")
    rows = []
    for line, row in enumerate(_open(path), start=2):
        rows.append({column: _number(row[column], f"{path}, line {line}: {column}") for column in columns})
    return rows


def _number(text: str | None, place: str) -> float:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise TableError(f"{place} must be a finite number, at least 0, got {text!r}")
    return value

"""Readers of operator tables in the two layouts that public profilers leave behind.

*per-operator* (LLMServingSim's profiler of vLLM): tables.yaml, and per tensor-parallel size a folder tpN with three
files. They are dense.csv (layer, tokens, time_us), per_sequence.csv (layer, sequences, time_us) and attention.csv
(prefill_chunk, kv_prefill, n_decode, kv_decode, time_us), all of one layer on one GPU. For a model with experts one
folder has moe.csv (tokens, activated_experts, time_us), for a GPU that has all experts. Then dense.csv is the rest of
the layer.

*per-layer* (derived from Vidur's profiles): one CSV each named *_linear_ms_per_layer, *attn_prefill_ms_per_layer,
*_attn_decode_ms_per_layer, *_all_reduce_ms and *_cpu_overhead_ms.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import polars as pl
import yaml

from mosaic.core.checks import require

Points: TypeAlias = dict[float, float]
"""Seconds by one count."""
Cells: TypeAlias = dict[tuple[float, float], float]
"""Seconds by two counts."""

REPEATS = {"layernorm": 2}
"""Operators that a layer runs more than once: pre-norm decoders normalise before attention and before the FFN."""
ONCE = ("embedding", "final_layernorm")
"""Operators outside the layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JointAttention:
    """Attention of whole iterations, as one GPU of the size computes it."""

    decode: Cells
    """By sequences and tokens read by each, no prefill."""
    prefill: Cells
    """By chunk and context, no decodes."""
    joint: dict[tuple[float, float, float, float], float]
    """By chunk, context, decodes and tokens read by each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeparateAttention:
    """Attention of decodes and of prefills, as one GPU computes it that holds all heads."""

    decode: Cells
    """By sequences and tokens read by each."""
    prefill: Points
    """By prompt length."""
    prefill_heads: int | None
    """Query heads that ``prefill`` was measured with, if its column names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTables:
    """Operators of a model at one tensor-parallel size, whatever layout they came in."""

    name: str
    """For messages."""
    tp_degree: int
    source: str
    conditions: str
    """Under which they were measured."""
    curves: Mapping[str, Points]
    """``dense``: operators of one layer but attention, by tokens; ``once``: those outside the layers; ``head``: what is
    computed for each sequence."""
    attention: JointAttention | SeparateAttention
    experts: Cells | None = None
    """Routed experts of one layer, by tokens and experts that get any; None: a dense model."""
    all_reduce: Points | None = None
    """By bytes; None: not measured."""
    cpu: Points | None = None
    """Host time by batch size; None: not measured."""
    skew: Path | None = None
    """Batches of unequal lengths; None: not measured."""


def read_tables(folder: Path, source: str) -> list[OperatorTables]:
    """Read a folder in either layout, the smallest size first; ``source`` is that of tables that do not name theirs."""
    if (folder / "tables.yaml").is_file() or any(folder.glob("tp*/")):
        return _read_per_operator(folder)
    return _read_per_layer(folder, source)


def _read_source(folder: Path) -> str:
    """Say what tables.yaml states about the origin of per-operator tables."""
    path = folder / "tables.yaml"
    keys = ("model", "gpu", "vllm_version", "profiled_at")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: must be a YAML file that gives {list(keys)} ({error})") from error
    missing = [key for key in keys if not isinstance(data, dict) or key not in data]
    require(not missing, f"{path}: missing keys", "none", missing)
    return f"measured: {data['model']} on {data['gpu']}, vLLM {data['vllm_version']}, {str(data['profiled_at'])[:10]}"


def _read_per_operator(folder: Path) -> list[OperatorTables]:
    source = _read_source(folder)
    found = {int(match[1]): path for path in folder.glob("tp*") if (match := re.fullmatch(r"tp(\d+)", path.name))}
    require(bool(found), f"{folder}", "with at least one folder tpN", sorted(path.name for path in folder.iterdir()))
    moe = next((path / "moe.csv" for path in found.values() if (path / "moe.csv").is_file()), None)
    experts = None if moe is None else _read_cells(moe, ("tokens", "activated_experts"))
    return [_read_size(path, degree, source, experts) for degree, path in sorted(found.items())]


def _read_cells(path: Path, axes: tuple[str, str]) -> Cells:
    return {(row, column): us * 1e-6 for row, column, us in read_table(path, (*axes, "time_us")).rows()}


def _read_size(folder: Path, tp_degree: int, source: str, experts: Cells | None) -> OperatorTables:
    dense = read_table(folder / "dense.csv", ("tokens", "time_us"), ("layer",))
    head = read_table(folder / "per_sequence.csv", ("sequences", "time_us"), ("layer",))
    is_once = pl.col("layer").is_in(ONCE)
    curves = {
        "dense": _sum(dense.filter(~is_once), "tokens", folder / "dense.csv"),
        "once": _sum(dense.filter(is_once), "tokens", folder / "dense.csv"),
        "head": _sum(head, "sequences", folder / "per_sequence.csv"),
    }
    axes = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    path = folder / "attention.csv"
    joint = {cell: us * 1e-6 for *axis, us in read_table(path, (*axes, "time_us")).rows() for cell in (tuple(axis),)}
    attention = JointAttention(
        decode={(n, kv): value for (chunk, _, n, kv), value in joint.items() if not chunk},
        prefill={(chunk, kv): value for (chunk, kv, n, _), value in joint.items() if not n},
        joint={key: value for key, value in joint.items() if key[0] and key[2]},
    )
    for name, cells in (("decodes", attention.decode), ("prefills", attention.prefill), ("both", attention.joint)):
        require(bool(cells), f"{path}: rows with {name}", "at least one", 0)
    skew = folder / "skew.csv"
    return OperatorTables(
        name=f"{folder.parent}, tp{tp_degree}",
        tp_degree=tp_degree,
        source=source,
        conditions="one layer, eager, times of one GPU without all-reduces",
        curves=curves,
        attention=attention,
        experts=experts,
        skew=skew if skew.is_file() else None,
    )


def _sum(table: pl.DataFrame, axis: str, path: Path) -> Points:
    """Add operators up where all were measured."""
    layers = table["layer"].unique(maintain_order=True)
    once = table.unique([axis, "layer"], keep="last", maintain_order=True)
    whole = once.group_by(axis).agg(pl.len()).filter(len=len(layers))[axis]
    rule = f"at least one for all of {layers.to_list()}, operators of a layer and {list(ONCE)}"
    require(len(whole) > 0, f"{path}: common counts of {axis}", rule, 0)
    by_layer = once.partition_by("layer", as_dict=True)
    times = [dict(by_layer[(layer,)].select(axis, "time_us").rows()) for layer in layers]
    repeats = [REPEATS.get(layer, 1) for layer in layers]
    return {
        count: sum(number * (points[count] * 1e-6) for number, points in zip(repeats, times, strict=True))
        for count in whole.sort()
    }


def _read_per_layer(folder: Path, source: str) -> list[OperatorTables]:
    prefill = _find(folder, "*attn_prefill_ms_per_layer.csv")
    header = pl.read_csv(prefill, n_rows=0).columns
    time_column = next((name for name in header if name.startswith("attn_prefill_ms_per_layer")), None)
    require(time_column is not None, f"{prefill}: columns", "with attn_prefill_ms_per_layer", header)
    heads = re.search(r"_(\d+)q_heads$", str(time_column))
    decode = ("batch_size", "kv_tokens_per_request", "attn_decode_ms_per_layer")
    decode_rows = read_table(_find(folder, "*attn_decode_ms_per_layer.csv"), decode).rows()
    attention = SeparateAttention(
        decode={(batch, tokens): ms * 1e-3 for batch, tokens, ms in decode_rows},
        prefill=_points(prefill, "prompt_tokens", str(time_column)),
        prefill_heads=int(heads[1]) if heads else None,
    )
    dense = _by_degree(_find(folder, "*linear_ms_per_layer.csv"), "num_tokens", "linear_ms_per_layer")
    all_reduce = _by_degree(_find(folder, "*all_reduce_ms.csv"), "message_bytes", "all_reduce_ms")
    cpu = _points(_find(folder, "*cpu_overhead_ms.csv"), "batch_size", "cpu_ms")
    for degree in dense:
        rule = f"such that {degree} is one"
        require(degree == 1 or degree in all_reduce, f"{folder}: sizes with all-reduce", rule, sorted(all_reduce))
    return [
        OperatorTables(
            name=f"{folder}, tp{degree}",
            tp_degree=degree,
            source=source,
            conditions="attention measured at degree 1, shared out by heads",
            curves={"dense": points},
            attention=attention,
            all_reduce=all_reduce.get(degree),
            cpu=cpu,
        )
        for degree, points in sorted(dense.items())
    ]


def _points(path: Path, axis: str, column: str) -> Points:
    return {count: ms * 1e-3 for count, ms in read_table(path, (axis, column)).rows()}


def _by_degree(path: Path, axis: str, column: str) -> dict[int, Points]:
    degrees: dict[int, Points] = {}
    for degree, count, ms in read_table(path, ("tensor_parallel_size", axis, column)).rows():
        degrees.setdefault(int(degree), {})[count] = ms * 1e-3
    return degrees


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    require(len(found) == 1, f"{folder}: files {pattern}", "exactly one", [path.name for path in found])
    return found[0]


def read_table(path: Path, numbers: Sequence[str], texts: Sequence[str] = ()) -> pl.DataFrame:
    """Read columns of a CSV file in this order; every number is finite and not negative.

    Raises
    ------
    ValueError
        Naming the file, the rule and the value.
    """
    columns = [*numbers, *texts]
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path}: must be a CSV file with the columns {columns} ({error})") from error
    missing = [column for column in columns if column not in table.columns]
    require(not missing, f"{path}: missing columns", f"none of {columns}", missing)
    require(len(table) > 0, f"{path}: rows", "at least one", 0)
    cast = table.select(pl.col(numbers).cast(pl.Float64, strict=False), pl.col(texts))
    for column in numbers:
        is_bad = ~(cast[column].is_finite() & (cast[column] >= 0)).fill_null(False)
        if is_bad.any():
            line = is_bad.arg_max()
            assert line is not None
            rule = "a finite number, at least 0"
            require(False, f"{path}, line {line + 2}: {column}", rule, table[column][line])
    return cast

"""Turn measured operator tables into a conf/hardware file: coefficients or compact grids, errors and sources.

    python experiments/fit_hardware.py experiments/hardware/recipes/rtx4090.yaml --data DIR --out FILE.yaml

A recipe holds the keys of the file that no table has, with their sources. Under `fit` it has folders of tables below
--data with their models' shapes, in either layout of experiments/hardware/operator_tables.py. With num_sms, a skew.csv
gives the cost of unequal lengths. The recipe also gives the link if sharded tables have none. Instead it may name a
folder of tables by sizes of operators (experiments/hardware/size_tables.py), and measured closed loops
(experiments/hardware/closed_loop.py).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import msgspec
import typer
import yaml

from experiments.hardware.closed_loop import SERVER, fit_loops, is_full, kv_tokens_of, read_points
from experiments.hardware.dummy_checkpoint import read_shape
from experiments.hardware.hardware_yaml import LEGEND, attention_config, curve_block, to_yaml
from experiments.hardware.operator_tables import OperatorTables, read_tables
from experiments.hardware.size_tables import read_all_reduce, read_by_size
from experiments.hardware.skew_fit import SkewFit, fit_skew, read_skew
from experiments.hardware.table_fits import fit_attention, fit_cpu, fit_curve, fit_experts, measured_range
from mosaic.config.errors import exit_with_message
from mosaic.core.checks import require
from mosaic.core.workload import ModelShape
from sim.hardware.curves import Curve, curve_to_text, grid_to_text
from sim.hardware.hardware import Hardware, MeasuredAttention, hardware_from_config

DEFAULTS: dict[str, Any] = {
    "_target_": "sim.hardware.hardware_from_config",
    "name": None,
    "memory_gib": None,
    "memory_utilization_frac": 0.9,
    "load_bytes_per_s": 0.4e9,
    "load_fixed_s": 0.0,
    "load_scale": 1.0,
    "unload_s": ...,
    "cpu_base_s": 0.0,
    "cpu_per_seq_s": 0.0,
    "cpu_overhead_scale": 1.0,
    "memory_bytes_per_s": None,
    "graph_max_seqs": 512,
    "num_sms": 0,
    "attention_streams": 0.0,
    "cpu_per_kv_token_s": 0.0,
    "max_graph_tokens": None,
    "eager_layer_s": 0.0,
    "flops_per_s": None,
    "sampler_per_logit_s": 0.0,
    "host_link_bytes_per_s": None,
    "host": ...,
    "evidence": "",
}
"""Keys of the file in their order, and what a recipe need not say; ...: left out."""
SOURCES = {
    "load": "assumed: 0.4e9 bytes of weights per second, as the 38 to 47 s per session of four A100s suggest",
    "cpu": "not measured: 0",
    "cpu_overhead_scale": "the host as measured",
    "graph_max_seqs": "vLLM's captured batch sizes",
}


LOOP_START = (0.4e-3, 0.02, 1.03)
"""Seconds of the host a step, microseconds a head and scale of products, from which a fit to closed loops starts."""


class TableFolder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Operator tables of one model."""

    folder: str
    """Below --data."""
    shape: str
    """Of experiments/hardware/shapes, or a YAML file."""
    source: str = "measured per layer"
    """Of tables in the per-layer layout; the others name theirs."""


class SizeFolder(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Tables of operators by their sizes, see experiments/hardware/size_tables.py."""

    folder: str
    """Below --data."""
    source: str
    small_fixed_us: float
    """Assumed: small operators of one layer, beside what they move."""


class Loops(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Closed loops that show what tables of operators by size do not hold."""

    file: str
    """CSV file below --data, see experiments/hardware/closed_loop.py."""
    shape: str
    """Of the model that was served, as of tables."""
    source: str


class Link(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """All-reduces of tensor parallelism, where the tables have none."""

    fixed_us: float
    bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        rule = "'measured ...' or 'published ...': between assumed links the time of a run is a range"
        require(self.source.startswith(("measured", "published")), "fit.all_reduce.source", rule, self.source)


class Fit(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a recipe has fitted."""

    tables: tuple[TableFolder, ...] = ()
    by_size: SizeFolder | None = None
    all_reduce: Link | None = None
    cache_bytes: float | None = None
    """The GPU's last-level cache; tables of a model with experts need it."""
    loops: Loops | None = None


def main(
    recipe: Annotated[Path, typer.Argument(help="YAML file, see experiments/hardware/recipes.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the folders of tables.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="YAML file to write.")],
) -> None:
    """Fit a conf/hardware file to operator tables, and print the errors of the fits."""
    with exit_with_message():
        given, fit = read_recipe(recipe)
        config = fit_hardware(given, fit, data)
        command = f"python experiments/fit_hardware.py experiments/hardware/recipes/{recipe.name} --data DIR"
        head = f"# Written by\n#   {command} --out conf/hardware/{out.name}\n{LEGEND}"
        out.write_text(head + to_yaml(config), encoding="utf-8")
        print(out)


def read_recipe(path: Path) -> tuple[dict[str, Any], Fit]:
    """Read the given keys of a hardware file, and what is to be fitted.

    Raises
    ------
    ValueError
        Naming the file, the key and the rule.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: must be YAML") from error
    require(isinstance(content, dict), f"{path}", "a mapping with the keys of a hardware file and fit", content)
    known = {*DEFAULTS, "sources", "fit"} - {"_target_"}
    require(content.keys() <= known, f"{path}: keys", f"of {sorted(known)}", sorted(content.keys() - known))
    try:
        return content, msgspec.convert(content.pop("fit", None), Fit)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: fit: {error}") from error


def fit_hardware(given: Mapping[str, Any], fit: Fit, data: Path) -> dict[str, Any]:
    """Return the configuration of ``hardware_from_config``, fitted to tables."""
    config = {key: given.get(key, default) for key, default in DEFAULTS.items()}
    config = {key: value for key, value in config.items() if value is not ...}
    config |= {"sources": SOURCES | given.get("sources", {}), "all_reduce_us": {}, "tables": {}}
    for measured in fit.tables:
        folder, shape = data / measured.folder, read_shape(measured.shape)
        require(folder.is_dir(), "fit.tables.folder", "a folder below --data", str(folder))
        for tables in read_tables(folder, measured.source):
            name = f"{Path(measured.shape).stem}_tp{tables.tp_degree}"
            require(name not in config["tables"], "fit.tables: shape", "given once for each size", name)
            _add_tables(config, name, tables, shape, fit.cache_bytes)
            if tables.tp_degree > 1:
                _add_all_reduce(config, tables, fit.all_reduce)
    if fit.by_size is not None:
        _add_by_size(config, fit.by_size, data / fit.by_size.folder)
    if fit.loops is not None:
        _fit_loops(config, fit.loops, data / fit.loops.file)
    _hardware(config)  # checks it
    return config


def _hardware(config: Mapping[str, Any]) -> Hardware:
    return hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})


def _add_tables(
    config: dict[str, Any], name: str, tables: OperatorTables, shape: ModelShape, cache_bytes: float | None
) -> None:
    attention, errors = fit_attention(tables, shape)
    curves = {}
    for key, points in tables.curves.items():
        curves[key], errors[key] = fit_curve(points)
    experts = {}
    if tables.experts is not None:
        require(cache_bytes is not None, "fit.cache_bytes", f"given: {tables.name} has experts", cache_bytes)
        grid, errors["experts"] = fit_experts(tables.experts, shape, cache_bytes or 0.0, f"{tables.name}, experts")
        experts["experts_us"] = grid_to_text(grid)
        config["sources"]["experts"] = f"without times of so few that {cache_bytes:g} bytes of cache hold their weights"
    config["tables"][name] = {
        "source": f"{tables.source}; {tables.conditions}",
        "tp_degree": tables.tp_degree,
        "shape": _given(shape),
        "mape": errors,
        "measured": measured_range(tables.attention.decode),
        **{f"{key}_us": curve_block(curve) for key, curve in curves.items()},
        **experts,
        "attention": attention_config(attention),
    }
    print(f"{name}: MAPE " + ", ".join(f"{part} {100 * error:.1f}%" for part, error in errors.items()))
    if tables.cpu is not None:
        base_s, per_seq_s, error = fit_cpu(tables.cpu)
        config["cpu_base_s"], config["cpu_per_seq_s"] = float(f"{base_s:.4g}"), float(f"{per_seq_s:.4g}")
        reach = f"fitted to batches up to {max(tables.cpu):g}, linear beyond"
        config["sources"]["cpu"] = f"{tables.source}; {reach}; MAPE {error}"
    if config["num_sms"] and tables.skew is not None and not config["attention_streams"]:
        assert isinstance(attention, MeasuredAttention)
        heads = {key: max(1, getattr(shape, key) // tables.tp_degree) for key in ("num_query_heads", "num_kv_heads")}
        fit = fit_skew(read_skew(tables.skew), attention, replace(shape, **heads), config["num_sms"])
        _add_skew(config, fit, tables.skew.parents[1].name)


def _add_by_size(config: dict[str, Any], fit: SizeFolder, folder: Path) -> None:
    require(folder.is_dir(), "fit.by_size.folder", "a folder below --data", str(folder))
    given = {"source": fit.source, "small_fixed_us": fit.small_fixed_us, "decode_head_us": 0.0, "gemm_scale": 1.0}
    config["by_size"] = given | read_by_size(folder)
    bandwidth = "norms, rotary embedding and activation at the bandwidth of the largest product of one token"
    config["sources"]["by_size.small_fixed_us"] = f"assumed: 5 kernels of 2 us; {bandwidth}"
    for degree, points in read_all_reduce(folder).items():
        curve, error = fit_curve(points)
        config["all_reduce_us"][degree] = curve_block(curve)
        config["sources"][f"all_reduce_tp{degree}"] = f"{fit.source}; MAPE {error}"


def _given(shape: ModelShape) -> dict[str, Any]:
    """Return the fields of a shape that differ from their defaults."""
    defaults = {name: field.default for name, field in ModelShape.__dataclass_fields__.items()}
    return {name: value for name, value in asdict(shape).items() if value != defaults[name]}


def _add_skew(config: dict[str, Any], fit: SkewFit, tables: str) -> None:
    config["attention_streams"] = fit.streams
    shown = {name: f"{100 * after:.1f}% instead of {100 * before:.1f}%" for name, (before, after) in fit.errors.items()}
    text = "; ".join(f"{name} {error}" for name, error in shown.items())
    config["sources"]["attention_streams"] = f"fitted: {tables}, decodes alone of skew.csv; error: {text}"
    print(f"pairs of sequence and KV head that fill the bandwidth: {fit.streams:g}; error: {text}")


def _add_all_reduce(config: dict[str, Any], tables: OperatorTables, link: Link | None) -> None:
    degree = tables.tp_degree
    if tables.all_reduce is not None:
        curve, error = fit_curve(tables.all_reduce)
        config["all_reduce_us"][degree] = curve_block(curve)
        config["sources"][f"all_reduce_tp{degree}"] = f"{tables.source}; MAPE {error}"
        return
    rule = f"given: the tables of tensor-parallel size {degree} have no all-reduce"
    require(link is not None, "fit.all_reduce", rule, link)
    assert link is not None
    fixed_s, span = link.fixed_us * 1e-6, 2.0**26
    curve = Curve((0.0, span), (fixed_s, fixed_s + span / link.bytes_per_s))
    config["all_reduce_us"][degree] = curve_to_text(curve)
    config["sources"]["all_reduce"] = link.source


def _fit_loops(config: dict[str, Any], fit: Loops, file: Path) -> None:
    """Fit the host's seconds per step, what a step takes per decoding sequence and head, and the scale of products."""
    require("by_size" in config, "fit.loops", "given with fit.by_size", fit.file)
    shape = read_shape(fit.shape)
    hardware = _hardware(config)
    points = [
        point
        for point in read_points(file)
        if not is_full(point, kv_tokens_of(hardware, shape, point.tp_degree, SERVER))
    ]

    def with_constants(constants: Sequence[float]) -> dict[str, Any]:
        base_s, head_us, scale = (float(f"{value:.4g}") for value in constants)
        by_size = config["by_size"] | {"decode_head_us": head_us, "gemm_scale": scale}
        return {**config, "cpu_base_s": base_s, "by_size": by_size}

    found = fit_loops(points, shape, lambda constants: _hardware(with_constants(constants)), LOOP_START)
    config |= with_constants(found.constants)
    left_out = ", ".join(f"{axis} {100 * error:.1f}%" for axis, error in found.left_out.items())
    what = f"fitted: rounds of {len(points)} points of {fit.source}"
    text = f"{what}; mean absolute error of TPOT {100 * found.error:.1f}%, of points left out by {left_out}"
    config["sources"] |= {
        "cpu": text,
        "by_size.decode_head_us": "fitted with cpu; that it grows with layers and query heads of a GPU is assumed",
        "by_size.gemm_scale": "fitted with cpu: clocks under load, and what else slows products down in an engine",
    }
    head_us, scale = (config["by_size"][name] for name in ("decode_head_us", "gemm_scale"))
    print(f"{config['cpu_base_s']} s a step, {head_us} us a head of a decoding sequence and layer, products x {scale}")
    print(text)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()

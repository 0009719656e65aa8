"""Turn measured operator tables into a conf/hardware file: coefficients or compact grids, errors and sources.

    python experiments/fit_hardware.py --name rtx4090 --memory-gib 24 --tables DIR --shape SHAPE.yaml --out FILE.yaml

--tables and --shape come in pairs and may be repeated; both layouts of experiments/hardware/operator_tables.py are
read. With --num-sms a skew.csv in the per-operator layout gives what unequal lengths cost. With --log the host time of
an iteration is fitted to the decode steps of a recorded run, once all else is known; it is that machine's alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.hardware.hardware_yaml import attention_config, curve_block, header, to_yaml
from experiments.hardware.host_fit import fit_host, stretches
from experiments.hardware.log_replay import replay
from experiments.hardware.operator_tables import (
    TableError,
    is_per_operator,
    read_per_layer,
    read_per_operator,
    read_source,
)
from experiments.hardware.skew_fit import SkewFit, fit_skew, read_skew
from experiments.hardware.table_fits import fit_attention, fit_cpu, fit_curve, fit_measured_attention
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import ModelShape
from mosaic.report.replay import replay_errors, replay_table
from mosaic.workloads.request_log import load_request_log, measured_records
from sim.hardware.curves import Curve, curve_to_text
from sim.hardware.hardware import FittedAttention, Hardware, hardware_from_config
from sim.hardware.iteration_time import iteration_time

SETTINGS = (
    "unload_s", "cpu_per_kv_token_s", "max_graph_tokens", "eager_layer_s", "flops_per_s", "sampler_per_logit_s",
    "host_link_bytes_per_s",
)  # fmt: skip
"""Of an engine and its host, that operator tables do not have."""
LOAD_SOURCE = "assumed: 0.4e9 bytes of weights per second, as the 38 to 47 s per session of four A100s suggest"


def fit_host_to_log(
    hardware: Hardware, shape: ModelShape, tp_degree: int, log: Path, settings: EngineOptions, kv_tokens: int
) -> tuple[float, float, str]:
    """Fit the host's seconds per step and per sequence to the decode steps of a log.

    Returns
    -------
    tuple
        Both, rounded to a tenth of a microsecond, and a text: what was fitted to, and what a replay then gives.

    Raises
    ------
    TableError
        If the log shows too few steps.
    """
    workload, measured = load_request_log(log, expert="model"), measured_records(log, expert="model")
    context = max(record.prompt_tokens + record.output_tokens for record in measured)
    found = stretches(measured, iteration_time(hardware, shape, tp_degree))
    try:
        base_s, per_seq_s = fit_host(found, iteration_time(hardware, shape, tp_degree))
    except ValueError as error:
        raise TableError(f"{log}: {error}") from error
    base_s, per_seq_s = round(base_s, 7), round(per_seq_s, 7)
    time = iteration_time(replace(hardware, cpu_base_s=base_s, cpu_per_seq_s=per_seq_s), shape, tp_degree)
    records = replay(workload, iteration_time=time, settings=settings, kv_tokens=kv_tokens, context_tokens=context)
    steps = f"{sum(stretch.num_steps for stretch in found)} decode steps in {len(found)} stretches"
    return base_s, per_seq_s, f"{steps}\n{replay_table(replay_errors(records, measured))}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print the errors and write the file; return the exit status (2: bad input, nothing is written)."""
    options = _parser().parse_args(arguments)
    try:
        text = _fit(options)
        options.out.write_text(text, encoding="utf-8")
    except (TableError, ValueError, TypeError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}")
    print(options.out)
    return 0


def _fit(options: argparse.Namespace) -> str:
    if len(options.tables) != len(options.shape):
        raise TableError(f"--shape must be given once per --tables, got {len(options.shape)} for {len(options.tables)}")
    config: dict[str, Any] = {
        "_target_": "sim.hardware.hardware_from_config",
        "name": options.name,
        "memory_gib": options.memory_gib,
        "memory_utilization_frac": 0.9,
        "load_bytes_per_s": options.load_bytes_per_s,
        "load_fixed_s": 0.0,
        "load_scale": 1.0,
        "unload_s": 0.0,
        "cpu_base_s": options.cpu_base_s or 0.0,
        "cpu_per_seq_s": 0.0,
        "cpu_overhead_scale": options.cpu_overhead_scale,
        "memory_bytes_per_s": None,
        "graph_max_seqs": options.graph_max_seqs,
        "num_sms": options.num_sms or 0,
        "attention_streams": options.attention_streams or 0.0,
        "cpu_per_kv_token_s": 0.0,
        "max_graph_tokens": None,
        "eager_layer_s": 0.0,
        "flops_per_s": None,
        "sampler_per_logit_s": 0.0,
        "host_link_bytes_per_s": None,
        "sources": {
            "load": options.load_source,
            "cpu": options.cpu_source if options.cpu_base_s is not None else "not measured: 0",
            "cpu_overhead_scale": options.cpu_overhead_source,
            "graph_max_seqs": "vLLM's captured batch sizes",
        },
        "all_reduce_us": {},
        "tables": {},
    }
    if options.attention_streams is not None:
        config["sources"]["attention_streams"] = options.attention_streams_source
    for name, value, source in options.setting:
        if name not in SETTINGS:
            raise TableError(f"--setting: NAME must be one of {list(SETTINGS)}, got {name!r}")
        config[name], config["sources"][name] = _number(name, value), source
    if options.memory_bytes_per_s is not None:
        config["memory_bytes_per_s"] = options.memory_bytes_per_s
        config["sources"]["memory_bytes_per_s"] = options.memory_source
    for folder, shape_path in zip(options.tables, options.shape, strict=True):
        _add_tables(config, folder, shape_path, options)
    if options.log is not None:
        _fit_log(config, options)
    hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    return header(_parser(), options) + to_yaml(config)


def _number(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        raise TableError(f"--setting {name}: VALUE must be a number, got {value!r}") from None


def _add_tables(config: dict[str, Any], folder: Path, shape_path: Path, options: argparse.Namespace) -> None:
    if not folder.is_dir():
        raise TableError(f"--tables must be a folder, got {str(folder)!r}")
    shape = _read_shape(shape_path)
    if is_per_operator(folder):
        _add_per_operator(config, folder, shape, shape_path.stem, options)
    else:
        _add_per_layer(config, folder, shape, shape_path.stem, options.source)


def _add_per_operator(
    config: dict[str, Any], folder: Path, shape: dict[str, Any], model: str, options: argparse.Namespace
) -> None:
    source = read_source(folder)
    for profile in read_per_operator(folder):
        attention, errors = fit_measured_attention(profile, f"{folder}, tp{profile.tp_degree}")
        curves = {}
        for key, points in (("dense", profile.dense), ("once", profile.once), ("head", profile.head)):
            curves[key], errors[key] = fit_curve(points)
        entry = {
            "source": f"{source}; one layer, eager, times of one GPU without all-reduces",
            "tp_degree": profile.tp_degree,
            "shape": shape,
            "mape": errors,
            **{f"{key}_us": curve_block(curve) for key, curve in curves.items()},
            "attention": attention_config(attention),
        }
        _add_entry(config, f"{model}_tp{profile.tp_degree}", entry)
        path = folder / f"tp{profile.tp_degree}" / "skew.csv"
        if options.num_sms and path.is_file():
            heads = {key: max(1, shape[key] // profile.tp_degree) for key in ("num_query_heads", "num_kv_heads")}
            part = replace(ModelShape(**shape), **heads)
            _fit_skew(config, fit_skew(read_skew(path), attention, part, options.num_sms), path)
        if profile.tp_degree > 1:
            _link(config, profile.tp_degree, options)


def _fit_skew(config: dict[str, Any], fit: SkewFit, path: Path) -> None:
    config["attention_streams"] = fit.streams
    shown = {name: f"{100 * after:.1f}% instead of {100 * before:.1f}%" for name, (before, after) in fit.errors.items()}
    text = "; ".join(f"{name} {error}" for name, error in shown.items())
    config["sources"]["attention_streams"] = (
        f"fitted: {path.parent.parent.name}, half of skew.csv; error of the rest: {text}"
    )
    print(f"pairs of sequence and KV head that fill the bandwidth: {fit.streams:g}; held-out error: {text}")


def _link(config: dict[str, Any], tp_degree: int, options: argparse.Namespace) -> None:
    if options.all_reduce_fixed_us is None or options.all_reduce_bytes_per_s is None:
        raise TableError(
            f"the tables of tensor-parallel size {tp_degree} have no all-reduce: give --all-reduce-fixed-us and "
            "--all-reduce-bytes-per-s"
        )
    if not options.all_reduce_source.startswith(("measured", "published")):
        raise TableError(
            "--all-reduce-source must start with 'measured' or 'published': between assumed links the time of a run "
            f"is a range, got {options.all_reduce_source!r}"
        )
    fixed_s = options.all_reduce_fixed_us * 1e-6
    span = 2.0**26
    curve = Curve((0.0, span), (fixed_s, fixed_s + span / options.all_reduce_bytes_per_s))
    config["all_reduce_us"][tp_degree] = curve_to_text(curve)
    config["sources"]["all_reduce"] = options.all_reduce_source


def _add_per_layer(config: dict[str, Any], folder: Path, shape: dict[str, Any], model: str, source: str) -> None:
    profile = read_per_layer(folder)
    reference = ModelShape(**shape)
    attention, attention_errors = fit_attention(profile, reference.num_query_heads)
    base_s, per_seq_s, cpu_error = fit_cpu(profile.cpu)
    config["cpu_base_s"], config["cpu_per_seq_s"] = float(f"{base_s:.4g}"), float(f"{per_seq_s:.4g}")
    largest = max(profile.cpu)
    config["sources"]["cpu"] = f"{source}; fitted to batches up to {largest:g}, linear beyond; MAPE {cpu_error}"
    for tp_degree, points in sorted(profile.dense.items()):
        dense, dense_error = fit_curve(points)
        entry = {
            "source": f"{source}; attention measured at degree 1, shared out by heads",
            "tp_degree": tp_degree,
            "shape": shape,
            "mape": {**attention_errors, "dense": dense_error},
            "dense_us": curve_block(dense),
            "attention": attention_config(_sharded(attention, reference, tp_degree)),
        }
        _add_entry(config, f"{model}_tp{tp_degree}", entry)
        if tp_degree > 1:
            if tp_degree not in profile.all_reduce:
                raise TableError(f"{folder}: all-reduce must be measured at tensor-parallel size {tp_degree}")
            curve, error = fit_curve(profile.all_reduce[tp_degree])
            config["all_reduce_us"][tp_degree] = curve_block(curve)
            config["sources"][f"all_reduce_tp{tp_degree}"] = f"{source}; MAPE {error}"


def _add_entry(config: dict[str, Any], name: str, entry: dict[str, Any]) -> None:
    if name in config["tables"]:
        raise TableError(f"--shape: {name} must be given once, got it twice")
    config["tables"][name] = entry
    print(f"{name}: MAPE " + ", ".join(f"{part} {100 * error:.1f}%" for part, error in entry["mape"].items()))


def _sharded(attention: FittedAttention, shape: ModelShape, tp_degree: int) -> FittedAttention:
    """Attention of one GPU out of several, which holds a share of the heads."""
    kv_share = shape.kv_bytes_per_token(tp_degree) / shape.kv_bytes_per_token()
    return replace(
        attention,
        decode_per_kv_token_s=attention.decode_per_kv_token_s * kv_share,
        prefill_per_token_s=attention.prefill_per_token_s / tp_degree,
        prefill_per_token_pair_s=attention.prefill_per_token_pair_s / tp_degree,
    )


def _fit_log(config: dict[str, Any], options: argparse.Namespace) -> None:
    hardware = hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    if options.kv_tokens is None:
        raise TableError("--kv-tokens must be given with --log")
    settings = EngineOptions(
        order=options.order, max_num_seqs=options.max_num_seqs, max_num_batched_tokens=options.max_num_batched_tokens
    )
    table = hardware.tables[0]
    base_s, per_seq_s, errors = fit_host_to_log(
        hardware, table.shape, table.tp_degree, options.log, settings, options.kv_tokens
    )
    config["cpu_base_s"], config["cpu_per_seq_s"] = base_s, per_seq_s
    config["sources"]["cpu"] = f"fitted: {errors.splitlines()[0]} of a recorded run, after all else ({table.name})"
    print(f"host time, fitted: {1e3 * base_s:.4f} ms a step, {1e3 * per_seq_s:.4f} ms a sequence\n{errors}")


def _read_shape(path: Path) -> dict[str, Any]:
    try:
        shape = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TableError(f"{path}: must be YAML") from error
    if not isinstance(shape, dict):
        raise TableError(f"{path}: must hold the fields of a model's shape, got {shape!r}")
    ModelShape(**shape)
    return shape


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fit_hardware", description="Fit a conf/hardware file to operator tables.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--memory-gib", required=True, type=float)
    parser.add_argument("--tables", required=True, type=Path, action="append", help="folder; may be repeated")
    parser.add_argument(
        "--shape", required=True, type=Path, action="append", help="YAML of the model's shape, per folder"
    )
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--load-bytes-per-s", type=float, default=0.4e9)
    parser.add_argument("--load-source", default=LOAD_SOURCE)
    parser.add_argument("--source", default="measured per layer", help="origin of tables in the per-layer layout")
    parser.add_argument("--graph-max-seqs", type=int, default=512)
    parser.add_argument("--memory-bytes-per-s", type=float, help="prices the LM head where the tables have none")
    parser.add_argument("--memory-source", default="data sheet")
    parser.add_argument("--cpu-base-s", type=float, help="host time per iteration where nothing measures it")
    parser.add_argument("--cpu-source", default="assumed")
    parser.add_argument("--cpu-overhead-scale", type=float, default=1.0, help="phi: the engine's host over the table's")
    parser.add_argument("--cpu-overhead-source", default="the host as measured")
    parser.add_argument("--all-reduce-fixed-us", type=float)
    parser.add_argument("--all-reduce-bytes-per-s", type=float)
    parser.add_argument("--all-reduce-source", default="assumed", help="'measured ...' or 'published ...'")
    parser.add_argument("--num-sms", type=int, help="streaming multiprocessors; needed to use skew.csv")
    parser.add_argument("--attention-streams", type=float, help="where no skew.csv shows them")
    parser.add_argument("--attention-streams-source", default="assumed")
    parser.add_argument(
        "--setting", nargs=3, action="append", default=[], metavar=("NAME", "VALUE", "SOURCE"),
        help=f"what no table has, and where it comes from; may be repeated: {', '.join(SETTINGS)}",
    )  # fmt: skip
    parser.add_argument("--log", type=Path, help="recorded run of the first table's model: fits the host time")
    parser.add_argument("--order", default="mixed", help="the recorded engine's order")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--kv-tokens", type=int)
    return parser


def _complain(message: str) -> int:
    print(f"fit_hardware: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""Makes a conf/hardware file from rounds of sessions, as ``sim.hardware.hardware_from_config`` reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from experiments.hardware.engine_fit import MeasuredShape, ShapeFit, SkewShown, fit_loads, fit_shapes, serve_s
from experiments.hardware.engine_work import Processor
from experiments.hardware.hardware_yaml import LEGEND, curve_block, to_yaml
from experiments.hardware.sweep import WARM_UP
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order
from mosaic.core.workload import Expert
from sim.hardware.curves import Curve, Grid, grid_to_text
from sim.hardware.hardware import hardware_from_config

DEFAULT_BATCHED_TOKENS = {Device.CPU: 4096, Device.GPU: 8192}
"""vLLM 0.32's token budget of an iteration where none is given, for one offline engine (16384 on the largest GPUs)."""


def fit_rounds(
    measured: Sequence[MeasuredShape],
    *,
    name: str,
    memory_gib: float,
    source: str,
    processor: Processor | None = None,
    more_sources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Fit a conf/hardware file to what rounds showed of each expert, with how its engines schedule."""
    processor = processor or Processor()
    fits, skew = fit_shapes(measured, processor)
    load_s_by_bytes = {
        shape.expert.known_shape.weight_bytes: _load_s(fit, shape, processor)
        for fit, shape in zip(fits, measured, strict=True)
    }
    config = hardware_config(
        fits,
        fit_loads(load_s_by_bytes),
        name=name,
        memory_gib=memory_gib,
        source=source,
        processor=processor,
        skew=skew,
        more_sources=more_sources,
    )
    for fit, shape in zip(fits, measured, strict=True):
        config["tables"][_table_name(fit)]["measured"] = _measured_range(shape)
    return config


def _measured_range(measured: MeasuredShape) -> dict[str, int]:
    """Say how far sessions went, as a hardware file has it."""
    batches = [session.requests for each in measured.rounds for session in each.sessions]
    most_seqs = min(measured.settings.max_num_seqs, max(map(len, batches)))
    return {"seqs": most_seqs, "tokens": max(prompt + output for batch in batches for prompt, output in batch)}


def _load_s(fit: ShapeFit, measured: MeasuredShape, processor: Processor) -> float:
    ready_s = median(seconds for each in measured.rounds for seconds in each.ready_s)
    return max(0.0, ready_s - serve_s(fit, WARM_UP, measured.settings, processor))


def mirrored_settings(engine: EngineOptions, experts: Sequence[Expert]) -> EngineOptions:
    """Return the options of real engines for the simulator, with vLLM's defaults and sizes in tokens written out.

    NOTE: on CPU prompts are read whole, while the simulator may split the last prompt of an iteration. With prompts far
    below the token budget this has no effect. The KV cache of several shapes is that of the largest. Prefixes are not
    cached: prompts of a replay share none.
    """
    device = engine.loading.device
    budget = engine.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS[device]
    if device is Device.CPU:
        budget = max(budget, *(expert.context_limit for expert in experts))
    kv_tokens = engine.kv_cache_tokens
    if engine.kv_cache_memory_bytes is not None:
        hungriest = max(expert.known_shape.kv_bytes_per_token(expert.tp_degree) for expert in experts)
        kv_tokens = engine.kv_cache_memory_bytes // hungriest
    return replace(
        engine,
        order=Order.MIXED,
        max_num_batched_tokens=max(budget, engine.max_num_seqs),
        kv_cache_tokens=kv_tokens,
        kv_cache_memory_bytes=None,
        enable_prefix_caching=False,
        loading=ModelLoading(),
    )


PREFILL_KNOTS = (0, 1, *(round(2 ** (half / 2)) for half in range(8, 31)))
"""Tokens of a chunk for which its quadratic price is written down; between them the grid is linear."""


def hardware_config(
    fits: Sequence[ShapeFit],
    loads: tuple[float, float | None],
    *,
    name: str,
    memory_gib: float,
    source: str,
    processor: Processor | None = None,
    skew: SkewShown | None = None,
    more_sources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Put the fits together as ``sim.hardware.hardware_from_config`` reads them.

    NOTE: the CPU time is the same for all shapes, so it is taken from the cheapest. The excess of other shapes belongs
    to their tables. The price of a request is in the grid of prefills, which has a row for no tokens.
    """
    processor = processor or Processor()
    base_s = min(fit.base_s for fit in fits)
    per_seq_s = min(fit.per_seq_s for fit in fits)
    degrees = sorted({fit.tp_degree for fit in fits if fit.tp_degree > 1})
    config: dict[str, Any] = {
        "_target_": "sim.hardware.hardware_from_config",
        "name": name,
        "memory_gib": memory_gib,
        "memory_utilization_frac": 0.9,
        "load_bytes_per_s": None if loads[1] is None else _rounded(loads[1]),
        "load_fixed_s": _rounded(loads[0]),
        "load_scale": 1.0,
        "cpu_base_s": _rounded(base_s),
        "cpu_per_seq_s": _rounded(per_seq_s),
        "cpu_overhead_scale": 1.0,
        "memory_bytes_per_s": None,
        "graph_max_seqs": processor.graph_max_seqs,
        "evidence": "measured; its report.md has a batch not used",
        **({} if skew is None else {"num_sms": processor.num_sms, "attention_streams": skew.streams}),
        "sources": {
            "load": f"measured: {source}",
            "cpu": f"fitted: {source}; with all of an iteration that does not grow with tokens, and the sampler",
            "attention.prefill_us": "row 0: any prompt in an iteration; from there to row 1: admitting a request "
            "and handing it back",
            **({} if skew is None else {"attention_streams": _skew_source(skew)}),
            **({"all_reduce": "measured within the operators"} if degrees else {}),
            **(more_sources or {}),
        },
        "all_reduce_us": dict.fromkeys(degrees, "1:0"),
        "tables": {_table_name(fit): _table(fit, base_s, per_seq_s, source) for fit in fits},
    }
    hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    return config


def _skew_source(skew: SkewShown) -> str:
    before, after = (f"{100 * error:.1f}%" for error in (skew.error_before, skew.error_after))
    return f"fitted: batches of unequal lengths; error where lengths matter {after}, and {before} without"


def machine_yaml(config: dict[str, Any], command: str) -> str:
    """Write the file, with the command that measured it on top."""
    return f"# Measured by\n#   {command}\n{LEGEND}{to_yaml(config)}"


def _table_name(fit: ShapeFit) -> str:
    return f"h{fit.shape.hidden_size}_l{fit.shape.num_layers}_p{fit.shape.num_parameters}_tp{fit.tp_degree}"


def _table(fit: ShapeFit, base_s: float, per_seq_s: float, source: str) -> dict[str, Any]:
    layers = fit.shape.num_layers
    rest_s = fit.base_s - base_s
    dense = Curve(fit.dense.knots, tuple((value + rest_s) / layers for value in fit.dense.values_s))
    head_s = fit.per_seq_s - per_seq_s
    head = Curve((0.0, 1.0), (0.0, head_s))
    longest = float(fit.context_tokens)
    knots = [float(knot) for knot in PREFILL_KNOTS if knot < 2 * longest]
    prefill = tuple(tuple(_chunk_s(fit, chunk, before) / layers for before in (0.0, longest)) for chunk in knots)
    return {
        "source": f"{source}; all layers of the model, times of one worker",
        "tp_degree": fit.tp_degree,
        "shape": {name: getattr(fit.shape, name) for name in fit.shape.__slots__},
        "mape": dict(fit.mape),
        "dense_us": curve_block(dense),
        "head_us": curve_block(head),
        "attention": {
            "decode_us": grid_to_text(_reading(fit.per_kv_token_s / layers, longest)),
            "prefill_us": grid_to_text(Grid(tuple(knots), (0.0, longest), prefill)),
            "beside_us": grid_to_text(_reading(fit.per_kv_token_beside_s / layers, longest)),
            "beside_per_token_pair_us": 0.0,
        },
    }


def _reading(kv_token_s: float, longest: float) -> Grid:
    """Write a price per token read as a grid over sequences and the tokens of each: their product."""
    return Grid((0.0, 1.0), (0.0, longest), ((0.0, 0.0), (0.0, kv_token_s * longest)))


def _chunk_s(fit: ShapeFit, chunk: float, before: float) -> float:
    """Price a chunk; without tokens it is what an iteration with any chunk costs, once."""
    request_s = fit.per_request_s if chunk else 0.0
    return fit.per_prefill_s + request_s + fit.per_token_pair_s * chunk * (chunk + 2 * before)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")

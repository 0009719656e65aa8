"""From measured sessions to the coefficients of a conf/hardware file.

A stretch of a session is one linear equation in the coefficients: what its iterations held, see ``engine_work``, and
the seconds that it took.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linprog

from experiments.hardware.engine_work import DENSE_KNOTS, NUM_SCALARS, Floats, ramps, terms_of, works_of
from experiments.hardware.hardware_yaml import curve_block, to_yaml
from experiments.hardware.table_fits import mape
from mosaic.core.checks import require, require_number
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import ModelShape
from sim.hardware.curves import Curve, Grid, grid_to_text
from sim.hardware.hardware import hardware_from_config

PREFILL_KNOTS = (0, 1, *(round(2 ** (half / 2)) for half in range(8, 31)))
"""Tokens of a chunk for which its quadratic price is written down; between them the grid is linear."""


COEFFICIENTS = (
    "per_session_s", "base_s", "per_seq_s", "per_prefill_s", "per_request_s", "per_kv_token_s", "per_kv_token_beside_s",
    "per_token_pair_s",
)  # fmt: skip
"""Of `ShapeFit`, in the order of the terms of `experiments.hardware.engine_work`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSession:
    """What a session held and how long it took; instants are seconds since its engine was ready."""

    requests: tuple[tuple[int, int], ...]
    """Prompt and output tokens of each, in the order in which they were given to the engine."""
    serve_s: float
    first_token_s: float
    last_token_s: float
    cpu_s: float | None = None
    """Processor time of its worker; None: not known, or not what limits the worker."""

    def __post_init__(self) -> None:
        require(len(self.requests) > 0, "measured session: requests", "at least one", 0)
        require_number(self.serve_s, "measured session: serve_s", above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFit:
    """Coefficients of one model on one gang of workers, in seconds per iteration of the whole model."""

    shape: ModelShape
    tp_degree: int
    context_tokens: int
    base_s: float
    per_seq_s: float
    per_session_s: float
    """From the end of a session to the next of the same expert; no part of the hardware, a load takes its place."""
    per_request_s: float
    """Taking a request in and handing its response out."""
    per_prefill_s: float
    """Of an iteration that computes any prompt, whatever it computes."""
    per_kv_token_s: float
    per_kv_token_beside_s: float
    """Of decodes in an iteration that computes a prompt too."""
    per_token_pair_s: float
    dense: Curve
    """Beyond the base: by tokens, 0 at none."""
    mape: Mapping[str, float]


def fit_shape(
    shape: ModelShape,
    tp_degree: int,
    context_tokens: int,
    settings: EngineOptions,
    measured: Sequence[MeasuredSession],
) -> ShapeFit:
    """Fit the coefficients of a shape to sessions: least absolute error, none below 0."""
    rows, seconds = _equations(settings, context_tokens, measured)
    found = _least_deviation(rows, seconds)
    predicted, is_short = rows @ found, seconds <= np.median(seconds)
    knots = (*DENSE_KNOTS, 2 * DENSE_KNOTS[-1])
    dense = Curve(
        tuple(float(knot) for knot in knots), tuple(float(ramps(knot) @ found[NUM_SCALARS:]) for knot in knots)
    )
    coefficients = dict(zip(COEFFICIENTS, map(float, found[:NUM_SCALARS]), strict=True))
    return ShapeFit(
        shape=shape,
        tp_degree=tp_degree,
        context_tokens=context_tokens,
        **coefficients,
        dense=dense,
        mape={
            f"{name}_stretches": mape(predicted[those], seconds[those])
            for name, those in (("short", is_short), ("long", ~is_short))
            if those.any()
        },
    )


def serve_s(fit: ShapeFit, requests: Sequence[tuple[int, int]], settings: EngineOptions) -> float:
    """Price a session, all of its requests there from the start."""
    works = works_of(
        requests,
        settings,
        kv_tokens=_kv_tokens(settings, fit.context_tokens),
        context_tokens=fit.context_tokens,
    )
    scalars = terms_of(works, is_start=True)[:NUM_SCALARS]
    dense_s: float = sum(work.num_iterations * fit.dense(work.num_tokens) for work in works)
    scalar_s: float = sum(getattr(fit, name) * number for name, number in zip(COEFFICIENTS, scalars, strict=True))
    return dense_s + scalar_s


def _kv_tokens(settings: EngineOptions, context_tokens: int) -> int:
    return settings.kv_cache_tokens or settings.max_num_seqs * context_tokens


def _equations(
    settings: EngineOptions, context_tokens: int, measured: Sequence[MeasuredSession]
) -> tuple[Floats, Floats]:
    """Write each stretch as what it held and its seconds: shapes (num_stretches, num_terms) and (num_stretches,).

    NOTE: a session whose requests all start in its first iteration has two stretches, before and after the first token.
    Where processor time is known it is one, and counts by that time: on a worker with a core to itself that is the time
    by the clock, and waiting for a core that others use does not lengthen it.
    """
    kv_tokens = _kv_tokens(settings, context_tokens)
    rows, seconds = [], []
    for session in measured:
        works = works_of(session.requests, settings, kv_tokens=kv_tokens, context_tokens=context_tokens)
        is_whole = len(session.requests) > settings.max_num_seqs or len(works) == 1
        if is_whole or session.cpu_s is not None:
            rows.append(terms_of(works, is_start=True))
            seconds.append(session.serve_s if session.cpu_s is None else session.cpu_s)
        else:
            rows += [terms_of(works[:1], is_start=True), terms_of(works[1:], is_start=False)]
            seconds += [session.first_token_s, session.last_token_s - session.first_token_s]
    return np.array(rows), np.array(seconds)


def _least_deviation(terms: Floats, seconds: Floats) -> Floats:
    """Minimise the sum of |prediction - measurement| / sqrt(measurement) with coefficients that are not negative.

    Not least squares: what else a machine does lengthens single sessions a lot, and a median does not follow them.
    The root is between absolute errors, by which short stretches would not count, and relative ones, by which the
    noise of a few milliseconds would count as much as that of a second.
    """
    require(bool(seconds.min() > 0), "engine sweep: measured seconds", "above 0", float(seconds.min()))
    target = np.sqrt(seconds)
    relative = terms / target[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)
    num_rows, num_terms = terms.shape
    over_and_under = np.hstack([relative / scale, -np.eye(num_rows), np.eye(num_rows)])
    prices = np.concatenate([np.zeros(num_terms), np.ones(2 * num_rows)])
    # Each term is priced a little, so that one that nothing was measured of is 0.
    prices[:num_terms] = 1e-6
    solved = linprog(prices, A_eq=over_and_under, b_eq=target, bounds=(0, None), method="highs")
    assert solved.status == 0, solved.message
    return np.asarray(solved.x[:num_terms] / scale)


def fit_loads(load_s_by_bytes: Mapping[int, float]) -> tuple[float, float | None]:
    """Fit loads: fixed seconds and bytes per second (None: one size only, so all of it is fixed)."""
    require(len(load_s_by_bytes) > 0, "engine sweep: loads", "at least one", 0)
    sizes = np.array(list(load_s_by_bytes), dtype=float)
    seconds = np.array(list(load_s_by_bytes.values()))
    if len(sizes) == 1:
        return float(seconds[0]), None
    fixed_s, per_byte_s = _least_deviation(np.column_stack([np.ones_like(sizes), sizes]), seconds)
    return float(fixed_s), None if per_byte_s <= 0 else float(1 / per_byte_s)


def hardware_config(
    fits: Sequence[ShapeFit],
    loads: tuple[float, float | None],
    *,
    name: str,
    memory_gib: float,
    source: str,
) -> dict[str, Any]:
    """Put the fits together as ``sim.hardware.hardware_from_config`` reads them.

    NOTE: the host's time is the same for all shapes, so it is what the cheapest of them shows; what others show beyond
    it belongs to their tables. The price of a request is in the grid of prefills, which has a row for no tokens.
    """
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
        "graph_max_seqs": 0,
        "sources": {
            "load": f"measured: {source}",
            "cpu": f"fitted: {source}; with all of an iteration that does not grow with tokens, and the sampler",
            "attention.prefill_us": "row 0: any prompt in an iteration; from there to row 1: admitting a request "
            "and handing it back",
            **({"all_reduce": "measured within the operators"} if degrees else {}),
        },
        "all_reduce_us": dict.fromkeys(degrees, "1:0"),
        "tables": {_table_name(fit): _table(fit, base_s, per_seq_s, source) for fit in fits},
    }
    hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    return config


def machine_yaml(config: dict[str, Any], command: str) -> str:
    """Write the file, with the command that measured it on top."""
    legend = "In microseconds: curves are count:time; grids have the columns' counts in line one, each row's in front."
    return f"# Measured by\n#   {command}\n# {legend}\n{to_yaml(config)}"


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

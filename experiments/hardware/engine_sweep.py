"""Fit a conf/hardware file to rounds of sessions whose content is known, with the options that engines ran with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from experiments.hardware.engine_fit import MeasuredShape, ShapeFit, fit_loads, fit_shapes, serve_s
from experiments.hardware.engine_work import Processor
from experiments.hardware.machine_config import hardware_config
from experiments.hardware.sweep_round import Group, MeasuredRound
from experiments.hardware.sweep_sessions import WARM_UP
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order
from mosaic.core.workload import Expert

DEFAULT_BATCHED_TOKENS = {Device.CPU: 4096, Device.GPU: 8192}
"""vLLM 0.32's token budget of an iteration where none is given, for one offline engine (16384 on the largest GPUs)."""


def fit_rounds(
    rounds: Sequence[tuple[Group, EngineOptions, Sequence[MeasuredRound]]],
    *,
    name: str,
    memory_gib: float,
    source: str,
    processor: Processor | None = None,
    more_sources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Fit a conf/hardware file to what rounds showed of each group, with how its engines schedule."""
    processor = processor or Processor()
    measured = [_measured_shape(*those) for those in rounds]
    fits, skew = fit_shapes(measured, processor)
    load_s_by_bytes = {
        group.shape.weight_bytes: _load_s(fit, settings, those, processor)
        for fit, (group, settings, those) in zip(fits, rounds, strict=True)
    }
    return hardware_config(
        fits,
        fit_loads(load_s_by_bytes),
        name=name,
        memory_gib=memory_gib,
        source=source,
        processor=processor,
        skew=skew,
        more_sources=more_sources,
    )


def _measured_shape(group: Group, settings: EngineOptions, rounds: Sequence[MeasuredRound]) -> MeasuredShape:
    return MeasuredShape(
        shape=group.shape,
        tp_degree=group.tp_degree,
        context_tokens=group.context_tokens,
        settings=settings,
        sessions=tuple(session for each in rounds for session in each.sessions),
    )


def _load_s(fit: ShapeFit, settings: EngineOptions, rounds: Sequence[MeasuredRound], processor: Processor) -> float:
    ready_s = median(seconds for each in rounds for seconds in each.ready_s)
    return max(0.0, ready_s - serve_s(fit, WARM_UP, settings, processor))


def mirrored_settings(engine: EngineOptions, experts: Sequence[Expert]) -> EngineOptions:
    """Give the simulator the options of real engines, with what these leave to vLLM or say in bytes written out.

    NOTE: on CPU prompts are read whole, where the simulator may split the last prompt of an iteration; with prompts far
    below the token budget that changes nothing. The KV cache of several shapes is that of the hungriest. Prefixes are
    not cached: prompts of a replay share none.
    """
    device = engine.loading.device
    budget = engine.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS[device]
    if device is Device.CPU:
        budget = max(budget, *(expert.context_tokens for expert in experts))
    kv_tokens = engine.kv_cache_tokens
    if engine.kv_cache_memory_bytes is not None:
        hungriest = max(expert.shape.kv_bytes_per_token(expert.tp_degree) for expert in experts)
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

"""Measure what an engine's iterations cost on the machine in front of you, by sessions whose content is known.

``fit_machine`` runs equal requests in batches of several sizes, prompts of several lengths, and long queues through a
replay backend, with all workers busy, and fits a conf/hardware file to what the records say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from experiments.hardware.engine_fit import MeasuredShape, ShapeFit, fit_loads, fit_shapes, serve_s
from experiments.hardware.engine_work import Processor
from experiments.hardware.machine_config import hardware_config
from experiments.hardware.sweep_round import Group, MakeBackend, MeasuredRound, groups_of, measure_round
from experiments.hardware.sweep_sessions import WARM_UP, SweepSize
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order
from mosaic.core.workload import Expert

DEFAULT_BATCHED_TOKENS = {Device.CPU: 4096, Device.GPU: 8192}
"""vLLM 0.32's token budget of an iteration where none is given, for one offline engine (16384 on the largest GPUs)."""


def fit_machine(
    experts: Sequence[Expert],
    cluster: Cluster,
    make_backend: MakeBackend,
    *,
    settings: EngineOptions,
    name: str,
    memory_gib: float,
    source: str,
    by_cpu: bool = False,
    size: SweepSize | None = None,
) -> dict[str, Any]:
    """Sweep each distinct shape of the experts and fit the coefficients of this machine.

    Parameters
    ----------
    experts, cluster
        The experts; of those that share a shape only the first few are loaded. All workers run at once.
    make_backend
        Makes the backend of a round.
    settings
        The simulator's name for how these engines schedule: what was in an iteration follows from it.
    name, memory_gib
        Of the hardware.
    source
        What was measured where, for the file.
    by_cpu
        Where workers are CPU cores: by the processor time of sessions, which other work on the machine does not
        lengthen as much as the time by the clock.
    size
        How much to measure.

    Returns
    -------
    dict
        Configuration of ``sim.hardware.hardware_from_config``, see `experiments.hardware.engine_fit.machine_yaml`.

    Raises
    ------
    BackendError
        If a call of the sweep did not finish.
    """
    size = size or SweepSize()
    groups = groups_of(experts)
    rounds = [
        [
            measure_round(
                group, cluster, make_backend, settings, size, number, f"sweep-{place}-{number}", by_cpu=by_cpu
            )
            for number in range(size.num_rounds)
        ]
        for place, group in enumerate(groups)
    ]
    clock = "by the clock" if not by_cpu else "by processor time, loads by the clock"
    return fit_rounds(
        [(group, settings, those) for group, those in zip(groups, rounds, strict=True)],
        name=name,
        memory_gib=memory_gib,
        source=f"{source}; {cluster.num_workers} workers busy at once, {size.num_rounds} rounds, {clock}",
    )


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

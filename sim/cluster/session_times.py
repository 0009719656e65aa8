"""Predicts sessions and loads on simulated machines for planners, from predicted lengths and without the world."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

from mosaic.core.cluster import Cluster, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert
from mosaic.planning.costs import WeightLocation
from mosaic.planning.problem import Request
from mosaic.planning.wrapped_costs import HostLoads
from sim.cluster.expert_on_gpu import ExpertsOnGpus, GpuUse, Keep, shared_iteration_time
from sim.hardware.hardware import Hardware


class SimulatedSessions:
    """Steps the engine of one session over requests of given lengths; see ``SessionModel``.

    It uses hardware and engine options. It does not use the true lengths, or which prompts begin alike: real engines
    with prefix caching are stepped without it.
    """

    def __init__(
        self,
        hardware: Mapping[str, Hardware],
        cluster: Cluster,
        settings: EngineOptions,
    ) -> None:
        plain = replace(settings, enable_prefix_caching=False)
        self._models = ExpertsOnGpus((), hardware, cluster, plain, shared_iteration_time)
        self._workers = cluster.workers

    def serve_s(self, expert: Expert, requests: Sequence[Request], workers: Sequence[Worker]) -> float:
        engine = self._models.engine(self._models.on(expert, workers), 0.0)
        running = [
            engine.submit(number, request.prompt_tokens, request.output_tokens, 0.0)
            for number, request in enumerate(requests)
        ]
        engine.advance_to(inf)
        return max(request.finished_ts or 0.0 for request in running)

    def load_s(self, expert: Expert, num_workers: int) -> float:
        """Seconds from idle workers to a ready engine, over so many of the first worker's kind."""
        return self._models.on(expert, self._workers[:num_workers]).load_s

    def unload_s(self, expert: Expert, num_workers: int) -> float:
        """Seconds to unload another expert before it."""
        return self._models.on(expert, self._workers[:num_workers]).unload_s


def kept_loads(
    hardware: Mapping[str, Hardware], cluster: Cluster, options: EngineOptions, use: GpuUse
) -> HostLoads | None:
    """Return load times from CPU memory; None: the machine keeps no models.

    Assumptions about the machine are known to planners.
    """
    if use.keep is Keep.NOTHING:
        return None
    models = ExpertsOnGpus((), hardware, cluster, options, shared_iteration_time, use)

    def load_s(expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        model = models.on(expert, workers)
        wakes = location is WeightLocation.ASLEEP and use.keep is Keep.ENGINES
        return model.sleep_s if wakes else model.warm_load_s

    return load_s

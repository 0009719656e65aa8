"""What planners may know of simulated machines: sessions over predicted lengths, and loads. Nothing of the world."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

from mosaic.core.cluster import Cluster, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert
from mosaic.planning.costs import WeightLocation
from mosaic.planning.problem import Request
from sim.cluster.expert_on_gpu import ExpertsOnGpus, GpuUse, IterationTimes, Keep, shared_iteration_time
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import iteration_time


class SimulatedSessions:
    """Steps the engine of one session over requests of given lengths; see ``SessionModel``.

    It knows hardware and engine options, and nothing of what calls would really write, or of which prompts begin alike:
    real engines that keep prefixes are stepped without.
    """

    def __init__(
        self,
        hardware: Mapping[str, Hardware],
        cluster: Cluster,
        settings: EngineOptions,
        iteration_times: IterationTimes = iteration_time,
    ) -> None:
        plain = replace(settings, enable_prefix_caching=False)
        self._models = ExpertsOnGpus((), hardware, cluster, plain, iteration_times)
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
        """Seconds to make room for it where another expert was."""
        return self._models.on(expert, self._workers[:num_workers]).unload_s


class KeptLoads:
    """Knows the machines as ``hardware`` has them: what is assumed of the host is no secret of the world."""

    def __init__(self, hardware: Mapping[str, Hardware], cluster: Cluster, options: EngineOptions, use: GpuUse) -> None:
        self._models = ExpertsOnGpus((), hardware, cluster, options, shared_iteration_time, use)
        self._keep = use.keep

    def load_s(self, expert: Expert, workers: tuple[Worker, ...], location: WeightLocation) -> float | None:
        """Give the seconds of a load from the host's memory, or of waking an engine."""
        if location not in (WeightLocation.HOST, WeightLocation.ASLEEP):
            return None
        model = self._models.on(expert, workers)
        wakes = location is WeightLocation.ASLEEP and self._keep is Keep.ENGINES
        return model.sleep_s if wakes else model.warm_load_s

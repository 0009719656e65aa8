"""What planners may know of simulated machines: sessions over predicted lengths, and loads. Nothing of the world."""

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

    It knows hardware and engine options, and nothing of what calls would really write, or of which prompts begin alike:
    real engines that keep prefixes are stepped without.
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
        """Seconds to make room for it where another expert was."""
        return self._models.on(expert, self._workers[:num_workers]).unload_s


def kept_loads(
    hardware: Mapping[str, Hardware], cluster: Cluster, options: EngineOptions, use: GpuUse
) -> HostLoads | None:
    """Give what loads take where the host keeps something; None: it keeps nothing.

    What is assumed of the host is no secret of the world.
    """
    if use.keep is Keep.NOTHING:
        return None
    models = ExpertsOnGpus((), hardware, cluster, options, shared_iteration_time, use)

    def load_s(expert: Expert, workers: Sequence[Worker], location: WeightLocation) -> float:
        model = models.on(expert, workers)
        wakes = location is WeightLocation.ASLEEP and use.keep is Keep.ENGINES
        return model.sleep_s if wakes else model.warm_load_s

    return load_s

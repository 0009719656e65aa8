"""What loads take where the simulated host keeps something, for planning."""

from collections.abc import Mapping

from mosaic.core.cluster import Cluster, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert
from mosaic.planning.costs import Residency
from sim.cluster.expert_on_gpu import ExpertsOnGpus, shared_iteration_time
from sim.cluster.gpu_use import GpuUse, Keep
from sim.hardware.hardware import Hardware


class KeptLoads:
    """Knows the machines as ``hardware`` has them: what is assumed of the host is no secret of the world."""

    def __init__(self, hardware: Mapping[str, Hardware], cluster: Cluster, options: EngineOptions, use: GpuUse) -> None:
        self._models = ExpertsOnGpus((), hardware, cluster, options, shared_iteration_time, use)
        self._keep = use.keep

    def load_s(self, expert: Expert, workers: tuple[Worker, ...], residency: Residency) -> float | None:
        """Give the seconds of a load from the host's memory, or of waking an engine."""
        if residency not in (Residency.HOST, Residency.ASLEEP):
            return None
        model = self._models.on(expert, workers)
        wakes = residency is Residency.ASLEEP and self._keep is Keep.ENGINES
        return model.sleep_s if wakes else model.warm_load_s

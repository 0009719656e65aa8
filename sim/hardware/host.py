"""The host of the GPUs: what its memory keeps of experts between two sessions, and how fast that is back."""

from dataclasses import dataclass

from mosaic.core.checks import require_name, require_number
from mosaic.core.workload import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Memory of the machine that the GPUs sit in, and seconds of loads that need no disk.

    NOTE: an expert that has been loaded on the host once is in its memory (the page cache): another engine of it starts
    without the disk. An engine that is put to sleep (vLLM's sleep mode, level 1) copies its weights to the host and
    gives up its KV cache; it wakes by copying them back, with all that starting an engine takes behind it.
    """

    memory_gib: float
    """For weights alone."""
    load_fixed_s: float
    """To start an engine whose weights are in host memory, beside reading them: process, profile, graphs."""
    load_bytes_per_s: float
    """Rate at which an engine reads weights from host memory as it starts."""
    sleep_fixed_s: float
    """To put an engine to sleep, and to wake it, beside copying its weights over the host link."""
    asleep_gpu_gib: float
    """What an engine asleep keeps on each of its GPUs."""
    source: str
    """Where the numbers come from."""

    def __post_init__(self) -> None:
        require_number(self.memory_gib, "hardware host: memory_gib", at_least=0)
        require_number(self.load_fixed_s, "hardware host: load_fixed_s", at_least=0)
        require_number(self.load_bytes_per_s, "hardware host: load_bytes_per_s", above=0)
        require_number(self.sleep_fixed_s, "hardware host: sleep_fixed_s", at_least=0)
        require_number(self.asleep_gpu_gib, "hardware host: asleep_gpu_gib", at_least=0)
        require_name(self.source, "hardware host: source")

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    @property
    def asleep_gpu_bytes(self) -> int:
        return int(self.asleep_gpu_gib * 2**30)

    def load_s(self, shape: ModelShape) -> float:
        """Time from idle workers to a ready engine, the weights being in host memory."""
        return self.load_fixed_s + shape.weight_bytes / self.load_bytes_per_s

    def sleep_s(self, shape: ModelShape, tp_degree: int, link_bytes_per_s: float) -> float:
        """Time to put an engine to sleep, or to wake it; each GPU copies its part over its own link."""
        return self.sleep_fixed_s + shape.weight_bytes / tp_degree / link_bytes_per_s

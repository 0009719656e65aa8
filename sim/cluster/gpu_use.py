"""How sessions use GPUs and their host one after the other, and beside each other."""

from dataclasses import dataclass, replace
from enum import StrEnum

from mosaic.core.checks import require, require_count, require_number
from mosaic.core.cluster import Gpu


class Keep(StrEnum):
    """What the host keeps of an expert when another takes its GPUs."""

    NOTHING = "nothing"
    WEIGHTS = "weights"
    """In host memory, for whoever loads the expert next, as far as they fit."""
    ENGINES = "engines"
    """The engine sleeps instead of ending, and weights that were loaded stay in host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """What sessions share; as it stands one session has a GPU for itself, and every load is cold.

    At most one of the two ways to have more than one expert on a GPU is taken.
    """

    keep: Keep = Keep.NOTHING
    load_ahead_gib: float | None = None
    """Memory that every GPU keeps free, for the weights of the session behind: they load while the one before ends."""
    experts_per_gpu: int = 1
    """Equal shares of a GPU's memory, each for one session; those that have calls take turns by iterations."""

    is_alone: bool = False
    """Whether a session waits until it has a GPU for itself all the same: to measure what its share is worth."""

    def __post_init__(self) -> None:
        kinds = [kind.value for kind in Keep]
        require(self.keep in kinds, "backend.keep", f"one of {kinds}", self.keep)
        object.__setattr__(self, "keep", Keep(self.keep))
        require_count(self.experts_per_gpu, "backend.experts_per_gpu", at_least=1)
        if self.load_ahead_gib is not None:
            require_number(self.load_ahead_gib, "backend.load_ahead_gib", above=0)
            rule = "null where backend.experts_per_gpu is above 1: experts load beside each other anyhow"
            require(self.experts_per_gpu == 1, "backend.load_ahead_gib", rule, self.load_ahead_gib)

    @property
    def one_at_a_time(self) -> "GpuUse":
        """The same shares of memory, for sessions one after the other, each from disk."""
        return replace(self, keep=Keep.NOTHING, is_alone=True)

    @property
    def num_slots(self) -> int:
        """How many sessions may have memory on a GPU at once."""
        return self.experts_per_gpu if self.load_ahead_gib is None else 2

    @property
    def ahead_bytes(self) -> int:
        """What is kept free for weights that load ahead."""
        return 0 if self.load_ahead_gib is None else int(self.load_ahead_gib * 2**30)

    def share_of(self, gpu: Gpu) -> Gpu:
        """Give a GPU as one session sees it: with its share of the memory that engines may take."""
        if self.num_slots == 1:
            return gpu
        usable = gpu.usable_bytes // self.experts_per_gpu - self.ahead_bytes
        return replace(gpu, memory_bytes=max(1, usable), memory_utilization_frac=1.0)

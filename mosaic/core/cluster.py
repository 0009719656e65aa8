"""The machines: their workers, and the kind of GPU of each worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from mosaic.core.checks import AtLeast1, Limit, Name, checked, require, require_count


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("gpu {0.name}: ")
class Gpu:
    """A kind of accelerator: what a scheduler may know about it."""

    name: Name
    memory_bytes: AtLeast1
    memory_utilization_frac: Annotated[float, Limit(above=0, at_most=1)] = 0.9
    """Share of the memory that the engine may use (vLLM's gpu_memory_utilization)."""

    @property
    def usable_bytes(self) -> int:
        """Memory for weights, activations and KV cache."""
        return int(self.memory_bytes * self.memory_utilization_frac)


@dataclass(frozen=True, slots=True)
class Worker:
    """One GPU and the process that drives it."""

    id: int
    gpu: Gpu
    host: int = 0
    """Number of the worker's machine; a session stays within one machine."""

    @property
    def place(self) -> str:
        """Name of the worker and its machine, for messages."""
        return f"{self.gpu.name} in machine {self.host}"


GANG_RULE = "of one kind and in one machine"


def may_be_gang(workers: Sequence[Worker]) -> bool:
    """Return whether a session may span some workers: they are of one kind and in one machine."""
    return len({(worker.gpu, worker.host) for worker in workers}) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("cluster {0.name}: ")
class Cluster:
    """The workers of a run, numbered 0 .. N-1."""

    name: Name
    workers: tuple[Worker, ...]

    def __post_init__(self) -> None:
        require(len(self.workers) > 0, f"cluster {self.name}: workers", "at least one worker", 0)
        ids = [worker.id for worker in self.workers]
        require(ids == list(range(len(ids))), f"cluster {self.name}: worker ids", "0 .. N-1 in order", ids)

    @property
    def num_workers(self) -> int:
        return len(self.workers)

    def select(self, ids: tuple[int, ...]) -> tuple[Worker, ...]:
        """Return workers by id.

        Raises
        ------
        ValueError
            If an id is not on the cluster.
        """
        for worker in ids:
            if not 0 <= worker < len(self.workers):
                raise ValueError(f"worker must be one of 0 .. {len(self.workers) - 1} of {self.name}, got {worker!r}")
        return tuple(self.workers[worker] for worker in ids)


def uniform_cluster(*, name: str, num_workers: int, gpu: Gpu) -> Cluster:
    """Build a cluster of equal workers."""
    require_count(num_workers, f"cluster {name}: num_workers", at_least=1)
    return cluster_of_hosts(name=name, host_sizes=(num_workers,), gpu=gpu)


def cluster_of_hosts(*, name: str, host_sizes: Sequence[int], gpu: Gpu) -> Cluster:
    """Build a cluster of equal workers, with the given number in each machine; they are numbered machine by machine."""
    hosts = [host for host, size in enumerate(host_sizes) for _ in range(size)]
    return Cluster(name=name, workers=tuple(Worker(worker, gpu, host) for worker, host in enumerate(hosts)))

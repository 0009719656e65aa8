"""Combines experts with the kinds of GPU of a cluster: shares, loads, times, KV capacity, engines."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from mosaic.core.checks import AtLeast1, Positive, checked, require
from mosaic.core.cluster import Cluster, Gpu, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError
from mosaic.core.kv_memory import CONTEXT_BYTES, activation_bytes, check_sparse_kv, fits_memory, kv_capacity_tokens
from mosaic.core.plan import Session
from mosaic.core.workload import Expert, ExpertName, ModelShape, SparseKv
from sim.engine.engine import Engine
from sim.engine.ranked_engine import RankedEngine
from sim.engine.sparse_engine import PageSizes, SparseEngine
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import IterationTime, iteration_time
from sim.hardware.rank_time import RankTime, rank_time
from sim.hardware.sparse_time import SparseTime, sparse_time


class Keep(StrEnum):
    """What the machine keeps of an expert when another one takes its GPUs."""

    NOTHING = "nothing"
    WEIGHTS = "weights"
    """In CPU memory, for the next load of the expert, if there is room."""
    ENGINES = "engines"
    """The engine sleeps instead of ending, and loaded weights stay in CPU memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("backend.")
class GpuUse:
    """Resources that sessions share; by default each session has a GPU for itself, and every load is cold.

    At most one of the two ways to have more than one expert on a GPU is used.
    """

    keep: Keep = Keep.NOTHING
    load_ahead_gib: Positive | None = None
    """Memory that every GPU keeps free for the weights of the next session: they load while the session before ends."""
    experts_per_gpu: AtLeast1 = 1
    """Equal shares of a GPU's memory, each for one session; sessions with calls take turns by iterations."""

    is_alone: bool = False
    """Whether a session nevertheless waits until it has a GPU for itself: to measure the effect of its share."""

    def __post_init__(self) -> None:
        if self.load_ahead_gib is not None:
            rule = "null where backend.experts_per_gpu is above 1: experts load beside each other anyhow"
            require(self.experts_per_gpu == 1, "backend.load_ahead_gib", rule, self.load_ahead_gib)

    @property
    def one_at_a_time(self) -> "GpuUse":
        """Return the same shares of memory, for sessions one after the other, each loaded from disk."""
        return replace(self, keep=Keep.NOTHING, is_alone=True)

    @property
    def num_slots(self) -> int:
        """Number of sessions that may have memory on a GPU at once."""
        return self.experts_per_gpu if self.load_ahead_gib is None else 2

    @property
    def ahead_bytes(self) -> int:
        """Memory that is kept free for weights that load ahead."""
        return 0 if self.load_ahead_gib is None else int(self.load_ahead_gib * 2**30)

    def share_of(self, gpu: Gpu) -> Gpu:
        """Return a GPU as one session has it: with its share of the memory for engines."""
        if self.num_slots == 1:
            return gpu
        usable = gpu.usable_bytes // self.experts_per_gpu - self.ahead_bytes
        return replace(gpu, memory_bytes=max(1, usable), memory_utilization_frac=1.0)


IterationTimes: TypeAlias = Callable[[Hardware, ModelShape, int], IterationTime]
"""Builds the iteration time of a model on a kind of GPU at a tensor-parallel degree."""
MOST_KEPT = 128
_kept: dict[tuple[int, ModelShape, int], tuple[Hardware, IterationTime]] = {}


def shared_iteration_time(hardware: Hardware, shape: ModelShape, tp_degree: int) -> IterationTime:
    """Share one iteration time among all backends on the same hardware: it never changes, and caches its tables."""
    key = (id(hardware), shape, tp_degree)  # the hardware is kept, so that no other one gets its id
    if key not in _kept:
        if len(_kept) == MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = hardware, iteration_time(hardware, shape, tp_degree)
    return _kept[key][1]


class ExpertOnGpu(NamedTuple):
    """An expert on one kind of GPU, at one tensor-parallel degree."""

    expert: Expert
    load_s: float
    unload_s: float
    """Seconds to unload another expert before it."""
    time: IterationTime
    kv_tokens: int
    """Capacity of its KV cache, or of each rank's."""
    held_bytes: int
    """Memory of its engine on each GPU; if the KV capacity is given by hand, only weights and activations."""
    ahead_bytes: int
    """Its memory there while it has weights and no KV cache."""
    num_slots: int = 1
    """Slots on each GPU."""
    warm_load_s: float = 0.0
    """Seconds of a load if the weights are in CPU memory."""
    sleep_s: float = 0.0
    """Seconds to put its engine to sleep, or to wake it."""


class ExpertsOnGpus:
    """All experts on all kinds of GPU; each pair is built when it is first needed."""

    def __init__(
        self,
        experts: Sequence[Expert],
        hardware: Mapping[str, Hardware],
        cluster: Cluster,
        settings: EngineOptions,
        iteration_times: IterationTimes,
        use: GpuUse | None = None,
    ) -> None:
        self.settings = settings
        self._experts = {expert.name: expert for expert in experts}
        self._hardware = hardware
        self._cluster = cluster
        self._iteration_times = iteration_times
        self._use = use or GpuUse()
        self._built: dict[tuple[ExpertName, Gpu, int, SparseKv | None], ExpertOnGpu] = {}

    def expert(self, name: ExpertName) -> Expert:
        """Find an expert.

        Raises
        ------
        BackendError
            If the backend does not have it.
        """
        expert = self._experts.get(name)
        if expert is None:
            raise BackendError(f"expert must be one of {sorted(self._experts)}, got {name!r}")
        return expert

    def of_session(self, session: Session) -> ExpertOnGpu:
        """Return a session's expert on the session's workers; their number is the tensor-parallel degree.

        Raises
        ------
        BackendError
            If the expert or a worker does not exist, workers are of two kinds, or cannot hold the expert.
        """
        label = f"session {session.id} of {session.expert!r}"
        try:
            expert = self.expert(session.expert)
            workers = self._cluster.select(session.workers)
            if len({worker.gpu for worker in workers}) > 1:
                raise BackendError(f"workers must be of one kind, got {[worker.gpu.name for worker in workers]}")
            return self.on(expert, workers)
        except (ValueError, BackendError) as error:
            raise BackendError(f"{label}: {error}") from error

    def everywhere(self, name: ExpertName) -> list[ExpertOnGpu]:
        """List an expert on every kind of GPU that can hold it, at its own degree."""
        expert, found = self._experts[name], []
        for gpu in dict.fromkeys(worker.gpu for worker in self._cluster.workers):
            workers = [worker for worker in self._cluster.workers if worker.gpu == gpu][: expert.tp_degree]
            if len(workers) < expert.tp_degree:
                continue
            try:
                found.append(self.on(expert, workers))
            except ValueError:
                continue  # It cannot run there, so no plan can use it.
        return found

    def engine(self, model: ExpertOnGpu, start_ts: float) -> Engine:
        """Build the engine of a session that is up at an instant."""
        expert, time = model.expert, model.time
        if isinstance(time, SparseTime):
            assert expert.kv is not None, "its time was built for it"
            return SparseEngine(
                iteration_time=time,
                settings=self.settings,
                kv_tokens=model.kv_tokens,
                context_tokens=expert.context_limit,
                sizes=PageSizes.of(expert.kv, expert.known_shape.num_kv_heads_on_worker(expert.tp_degree)),
                start_ts=start_ts,
            )
        kind: type[Engine] = RankedEngine if isinstance(time, RankTime) else Engine
        return kind(
            iteration_time=time,
            settings=self.settings,
            kv_tokens=model.kv_tokens,
            context_tokens=expert.context_limit,
            start_ts=start_ts,
        )

    def on(self, expert: Expert, workers: Sequence[Worker]) -> ExpertOnGpu:
        """Return an expert on workers of one kind, at a tensor-parallel degree of their number.

        Raises
        ------
        ValueError
            If they cannot hold it.
        """
        gpu, degree = workers[0].gpu, len(workers)
        key = (expert.name, gpu, degree, expert.kv)
        model = self._built.get(key)
        if model is None:
            share, num_slots = self._share(expert, workers)
            capacity = kv_capacity_tokens(expert, share, self.settings)
            if capacity < self.settings.block_size:
                raise ValueError(f"{expert.name} must fit into {degree} x {gpu.name}, KV tokens left: {capacity}")
            check_sparse_kv(expert.name, expert.kv, self.settings)
            hardware = self._hardware[gpu.name]
            time = self._iteration_times(hardware, expert.known_shape, expert.attention_degree(degree))
            if expert.dp_attention and degree > 1:
                time = rank_time(time, expert, degree, hardware, self.settings)
            if expert.kv is not None:
                time = sparse_time(time, expert, degree, hardware)
            model = ExpertOnGpu(
                expert=replace(expert, tp_degree=degree),
                load_s=hardware.load_s(expert.known_shape, degree),
                unload_s=hardware.unload_s,
                time=time,
                kv_tokens=capacity,
                **self._memory(expert, share, capacity),
                num_slots=num_slots,
            )
            if self._use.keep is not Keep.NOTHING:
                model = _kept_by(hardware, model)
            self._built[key] = model
        return model

    def _share(self, expert: Expert, workers: Sequence[Worker]) -> tuple[list[Worker], int]:
        """Return the workers as an expert's session has them, and the number of slots that it takes of each.

        It takes one slot if its share holds a call of full length, and if all that loads ahead fits into the memory
        kept free.
        """
        use, settings = self._use, self.settings
        share = [Worker(worker.id, use.share_of(worker.gpu)) for worker in workers]
        if use.num_slots == 1:
            return share, 1
        fits = len(workers) == 1 and fits_memory(expert, share, settings)
        if use.ahead_bytes:
            fits = fits and self._memory(expert, share, 0)["ahead_bytes"] <= use.ahead_bytes
        return (share if fits else list(workers)), (1 if fits and not use.is_alone else use.num_slots)

    def _memory(self, expert: Expert, workers: Sequence[Worker], kv_tokens: int) -> dict[str, int]:
        degree, settings = len(workers), self.settings
        weight_bytes = expert.weight_bytes_on_worker(degree)
        weights = weight_bytes + activation_bytes(expert, settings, degree)
        is_given = settings.kv_cache_tokens is not None or settings.kv_cache_memory_bytes is not None
        kv_bytes = 0 if is_given else kv_tokens * expert.known_shape.kv_bytes_per_token(expert.attention_degree(degree))
        return {"held_bytes": weights + kv_bytes, "ahead_bytes": weight_bytes + CONTEXT_BYTES}


def _kept_by(hardware: Hardware, model: ExpertOnGpu) -> ExpertOnGpu:
    """Add the load times from CPU memory, if the machine keeps models.

    Raises
    ------
    ValueError
        If nothing is known of the machine.
    """
    host, link, owner = hardware.host, hardware.host_link_bytes_per_s, f"hardware {hardware.gpu.name}"
    if host is None or link is None:
        raise ValueError(f"{owner}: host and host_link_bytes_per_s must be given where backend.keep is, got none")
    expert = model.expert
    sleep_s = host.sleep_s(expert.weight_bytes_on_worker(expert.tp_degree), link)
    return model._replace(warm_load_s=min(model.load_s, host.load_s(expert.known_shape)), sleep_s=sleep_s)


def check_hardware(cluster: Cluster, names: Iterable[str]) -> None:
    """Check that the GPUs of a cluster are known.

    Raises
    ------
    ValueError
        If one is not.
    """
    known = sorted(names)
    for worker in cluster.workers:
        if worker.gpu.name not in known:
            raise ValueError(f"sim backend: GPU of a worker must be one of {known}, got {worker.gpu.name!r}")

"""A job on a Ray cluster: what is asked of the cluster before, and the machines that serve while it lasts."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from mosaic.core.engine_options import Device, EngineOptions
from mosaic.core.errors import BackendError
from mosaic.engines.berths import group_sizes
from mosaic.engines.fleet import Fleet
from mosaic.engines.host_process import VLLM_ENGINE
from mosaic.engines.machine_agent import installed_versions
from mosaic.engines.machine_launcher import MachineLauncher
from mosaic.engines.machine_messages import AgentSetup, WantedCheckpoint
from mosaic.engines.ray_machines import RayMachines, Room, connect


class RayCluster:
    """Keeps an agent on every machine that serves, while it is open.

    Parameters
    ----------
    address
        As ``connect`` takes it.
    room
        What each worker takes of its machine.
    host_sizes
        Workers by host.
    options
        Of the engines.
    wanted
        Gives the checkpoints that every machine must have.
    tell
        Told why a machine that came later cannot serve, and that none is left.
    engine_module
        Name of an `EngineModule`.
    """

    def __init__(
        self,
        address: str,
        room: Room,
        host_sizes: Sequence[int],
        options: EngineOptions,
        wanted: Callable[[], tuple[WantedCheckpoint, ...]],
        tell: Callable[[str], None],
        engine_module: str = VLLM_ENGINE,
    ) -> None:
        self._address = address
        self._room = room
        self._host_sizes = tuple(host_sizes)
        self._options = options
        self._wanted = wanted
        self._tell = tell
        self._engine_module = engine_module
        self._fleet: Fleet | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Start the agents, and end them.

        Raises
        ------
        BackendError
            With all that is missing, on all machines.
        """
        connect(self._address)
        setup = AgentSetup(
            settings=self._options,
            engine_module=self._engine_module,
            device=self._room.device,
            versions=installed_versions(),
            checkpoints=self._wanted(),
            num_threads=os.environ.get("OMP_NUM_THREADS"),
        )
        self._fleet = Fleet(RayMachines(self._room, setup), self._host_sizes, self._tell)
        try:
            self._fleet.open()
            yield
        finally:
            self._fleet.close()
            self._fleet = None

    def launcher(self) -> MachineLauncher:
        """Make the launcher of one run."""
        assert self._fleet is not None, "a run starts while the cluster is open"
        return MachineLauncher(self._fleet)


def device_of(address: str) -> Device:
    """Tell whether any machine of a cluster has a GPU.

    Raises
    ------
    BackendError
        If there is no such cluster.
    """
    return Device.GPU if _resources(address).get("GPU", 0) else Device.CPU


def accelerator_of(address: str) -> str | None:
    """Name the kind of GPU that a cluster has, as Ray calls it; None: it has none.

    Raises
    ------
    BackendError
        If there is no such cluster.
    """
    kinds = sorted(name for name in _resources(address) if name.startswith("accelerator_type:"))
    return kinds[0].partition(":")[2] if kinds else None


def hosts_of(address: str, room: Room, num_workers: int | None) -> tuple[int, ...]:
    """Count the workers of each host, as the machines stand now.

    Raises
    ------
    BackendError
        If there is no such cluster, or it has no room for a worker.
    """
    connect(address)
    sizes = [one.num_workers for one in RayMachines(room).find()]
    if not sizes:
        needs, has = room.bundle(1), {name: _resources(address).get(name, 0) for name in ("CPU", "GPU")}
        raise BackendError(f"no machine of the Ray cluster has room for a worker, which takes {needs}: all have {has}")
    return group_sizes(sizes, num_workers)


def _resources(address: str) -> Mapping[str, float]:
    connect(address)
    import ray

    resources: Mapping[str, float] = ray.cluster_resources()
    return resources

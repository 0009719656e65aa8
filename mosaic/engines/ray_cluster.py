"""Manages a Ray cluster: one actor on each node, in its own placement group, is the agent and holds its resources.

Ray places, monitors and carries messages; serving and storage are mosaic's. Ray is imported only when it is needed.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mosaic.core.checks import Positive, checked, require
from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.engines.machine_agent import AgentSetup, MachineAgent, Order, Report, Stop
from mosaic.engines.messages import clipped, one_line

INSTALL_RAY = "Ray is not installed here: pip install -e '.[ray]'"
START = "start it with `ray start --head`, and on each other machine `ray start --address=HEAD:6379`"
CONNECT_S = 5.0
ANSWER_S = 1.0
PLACE_S = 10.0
"""Free resources are granted in less time."""
START_S = 300.0
"""Time limit for an agent to start, check its checkpoints and import the engine."""
CLOSE_S = 15.0
ORDERS = "orders"
"""Concurrency group of an agent for orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("cluster.")
class Room:
    """The resources that a worker takes of a machine."""

    device: Device
    cpus_per_worker: Positive

    def num_workers(self, resources: Mapping[str, float]) -> int:
        """Count the workers for which a machine's resources are enough."""
        num = int(resources.get("CPU", 0.0) / self.cpus_per_worker)
        return min(num, int(resources.get("GPU", 0.0))) if self.device is Device.GPU else num

    def bundle(self, num_workers: int) -> dict[str, float]:
        """Return the resources of so many workers."""
        cpus = {"CPU": num_workers * self.cpus_per_worker}
        return {**cpus, "GPU": float(num_workers)} if self.device is Device.GPU else cpus


class Node(NamedTuple):
    """A machine of the cluster, with or without an agent."""

    id: str
    """Unique; a machine that comes back has a new one."""
    name: str
    """For messages."""
    num_workers: int
    """Number of workers that it has room for."""


@dataclass(eq=False)
class RayCluster:
    """The nodes of a cluster, for `RemoteLauncher`."""

    address: str
    """``auto``: the cluster of this machine; ``HOST:PORT`` of its head, or ``ray://HOST`` from elsewhere."""
    room: Room
    """The resources of each worker on its node; the rest is left to others."""
    make_setup: Callable[[], AgentSetup] | None = None
    """Returns the data for agents; None: no agent is started."""
    _setup: AgentSetup | None = field(default=None, init=False)
    _is_left: bool = field(default=False, init=False)

    def connect(self) -> None:
        """Connect, and describe the run for agents.

        Raises
        ------
        BackendError
            Naming what is missing.
        """
        connect(self.address)
        self._is_left = False
        self._setup = None if self.make_setup is None else self.make_setup()

    def find(self) -> Sequence[Node]:
        """List the nodes that are up and have room for a worker, in the order of their names.

        Raises
        ------
        BackendError
            If the list is not available now.
        """
        import ray
        from ray.exceptions import RayError

        try:
            alive = [node for node in ray.nodes() if node["Alive"]]
        except (RayError, ConnectionError, RuntimeError) as error:
            raise BackendError(f"the Ray cluster does not list its machines: {_last_line(error)}") from error
        # For seconds after a node is lost Ray lists it as alive. From outside the cluster nodes cannot be reached.
        is_outside = ray.util.client.ray.is_connected()
        found = [
            Node(
                node["NodeID"],
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, Ray node {node['NodeID'][:8]})",
                self.room.num_workers(node["Resources"]),
            )
            for node in alive
            if is_outside or _answers(node["NodeManagerAddress"], node["NodeManagerPort"])
        ]
        return sorted((node for node in found if node.num_workers > 0), key=lambda node: (node.name, node.id))

    def start(self, node: Node, num_workers: int) -> "RayAgent":
        """Reserve the workers' share of a node, and start an agent in it.

        Raises
        ------
        BackendError
            If it does not start or cannot serve, with all that is missing, or if the cluster is left in the meantime.
        """
        import ray
        from ray.exceptions import RayError
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle, agent = self.room.bundle(num_workers), RayAgent()
        try:
            agent.group = placement_group([bundle], "STRICT_PACK", bundle_label_selector=[{"ray.io/node-id": node.id}])
            if not agent.group.wait(PLACE_S):
                free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
                raise BackendError(f"has not {bundle} free, others use it (free in the cluster: {free})")
            placed = ray.remote(concurrency_groups={ORDERS: 1})(MachineAgent).options(
                num_cpus=bundle["CPU"],  # an actor has no resources of its own unless it asks
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(agent.group, placement_group_bundle_index=0),
                max_restarts=0,
            )
            agent.actor = placed.remote(self._setup, num_workers)
            if problems := ray.get(self._awaited(agent.actor.check.remote())):
                raise BackendError(", ".join(problems))
        except BaseException as error:
            agent.end()
            if isinstance(error, RayError):
                raise BackendError(f"cannot start an agent: {_last_line(error)}") from error
            raise
        return agent

    def _awaited(self, check: Any) -> Any:
        """Wait until an agent has checked its machine, unless the cluster is left in the meantime."""
        import ray

        end_ts = time.monotonic() + START_S
        while not ray.wait([check], timeout=ANSWER_S)[0]:
            if self._is_left:
                raise BackendError("starts no agent: the run has left the cluster")
            if time.monotonic() > end_ts:
                raise BackendError(f"starts no agent in {START_S:g} s")
        return check

    def cause_of_loss(self, node: Node, error: Exception) -> str:
        """Return what was lost, the node or only its agent, from the error of its report."""
        with suppress(BackendError):
            if node.id in {up.id for up in self.find()}:
                return f"the agent on {node.name} is gone, and the machine is there: {_last_line(error)}"
        return f"machine {node.name} is gone"

    def disconnect(self, unfinished: Collection[Future[Any]]) -> None:
        """Leave the cluster after all threads that use it have ended: Ray crashes if one calls it afterwards."""
        self._is_left = True
        wait(unfinished, CLOSE_S)
        if self._setup is not None:
            import ray

            ray.shutdown()


class RayAgent:
    """An actor in its placement group, or the parts of it that exist so far."""

    def __init__(self) -> None:
        self.group: Any = None
        self.actor: Any = None

    def report(self, timeout_s: float) -> Future[Report]:
        """Request a report: all messages so far, at once if there are any. It fails if the agent is lost."""
        report: Future[Report] = self.actor.report.remote(timeout_s).future()
        return report

    def send(self, orders: Sequence[Order]) -> None:
        """Send orders; returns at once. Its report shows whether the agent is lost."""
        with suppress(Exception):
            self.actor.send.options(concurrency_group=ORDERS).remote(orders)

    def end(self) -> None:
        """Let the agent end its processes, then end it."""
        import ray
        from ray.util.placement_group import remove_placement_group

        with suppress(Exception):
            self.send([Stop()])
            ray.get(self.actor.report.remote(0.0), timeout=PLACE_S)
        with suppress(Exception):
            ray.kill(self.actor)
        with suppress(Exception):
            remove_placement_group(self.group)


def device_of(address: str) -> Device:
    """Find out whether any machine of a cluster has a GPU.

    Raises
    ------
    BackendError
        If there is no such cluster.
    """
    return Device.GPU if _resources(address).get("GPU", 0) else Device.CPU


def accelerator_of(address: str) -> str | None:
    """Return Ray's name of the kind of GPU of a cluster; None: it has none.

    Raises
    ------
    BackendError
        If there is no such cluster.
    """
    kinds = sorted(name for name in _resources(address) if name.startswith("accelerator_type:"))
    return kinds[0].partition(":")[2] if kinds else None


def hosts_of(address: str, room: Room, num_workers: int | None) -> tuple[int, ...]:
    """Count the workers of each machine of the cluster at the moment.

    Raises
    ------
    BackendError
        If there is no such cluster, or it has no room for a worker.
    """
    connect(address)
    rooms = [node.num_workers for node in RayCluster(address, room).find()]
    if not rooms:
        needs, has = room.bundle(1), {name: _resources(address).get(name, 0) for name in ("CPU", "GPU")}
        raise BackendError(f"no machine of the Ray cluster has room for a worker, which takes {needs}: all have {has}")
    return group_sizes(rooms, num_workers)


def group_sizes(rooms: Sequence[int], num_workers: int | None) -> tuple[int, ...]:
    """Return the number of workers of each machine of a run.

    Parameters
    ----------
    rooms
        Number of workers for which each node that is up has room.
    num_workers
        Number of workers of the run; None: all. If there are fewer, the rest waits for nodes like the largest.

    Examples
    --------
    >>> group_sizes([2, 4], None), group_sizes([2, 4], 3), group_sizes([2, 4], 11)
    ((2, 4), (2, 1), (2, 4, 4, 1))
    """
    wanted = sum(rooms) if num_workers is None else num_workers
    sizes: list[int] = []
    for size in [*rooms, *[max(rooms, default=1)] * wanted]:
        if sum(sizes) < wanted and size > 0:
            sizes.append(min(size, wanted - sum(sizes)))
    return tuple(sizes)


def connect(address: str) -> None:
    """Connect to a cluster, within seconds or not at all.

    Raises
    ------
    BackendError
        Naming what is missing.
    """
    # A thread that still calls Ray after the job has left the cluster must not connect again by itself: Ray would
    # start a cluster of its own here, and a connection that is made at the same time breaks.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    try:
        import ray
    except ImportError as error:
        raise BackendError(INSTALL_RAY) from error
    if ray.is_initialized():
        return
    if address.startswith("ray://") and ":" not in address.removeprefix("ray://"):
        address = f"{address}:10001"
    if address != "auto":
        _check_port(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise BackendError(f"no Ray cluster at {address}: {one_line(error)}; {START}") from error


def _check_port(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    require(bool(host) and port.isdigit(), "cluster.address", "auto, HOST:PORT or ray://HOST", address)
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise BackendError(f"no Ray cluster at {address}: {error.strerror or error}; {START}") from error


def _answers(host: str, port: int) -> bool:
    """Return whether a node listens, which it does while it is up."""
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def _resources(address: str) -> Mapping[str, float]:
    connect(address)
    import ray

    resources: Mapping[str, float] = ray.cluster_resources()
    return resources


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return clipped(lines[-1] if lines else type(error).__name__)

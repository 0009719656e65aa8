"""Machines of a Ray cluster: one placement group and one actor on each, which hold all that its workers need.

Ray places, watches and carries messages; what is served and kept is ours. It is imported when it is asked for only.
"""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from mosaic.core.checks import require
from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.engines.fleet import Found, Machine, MachineLostError
from mosaic.engines.machine_agent import MachineAgent
from mosaic.engines.machine_clock import Offset, measure_offset
from mosaic.engines.machine_messages import AgentSetup, News, Order
from mosaic.engines.messages import clipped, one_line

INSTALL_RAY = "Ray is not installed here: pip install -e '.[ray]'"
START = "start it with `ray start --head`, and on each other machine `ray start --address=HEAD:6379`"
CONNECT_S = 5.0
PLACE_S = 10.0
"""Resources that are free are given in less time."""
BEGIN_S = 60.0
"""A process that imports what the agent needs is up in this time."""
READY_S = 300.0
"""It has looked at its checkpoints and imported the engine in this time."""
ASK_S = 30.0
NEWS = "news"
"""What is waited for beside all else that an agent is asked."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a worker takes of a machine."""

    device: Device
    cpus_per_worker: float

    def __post_init__(self) -> None:
        require(self.cpus_per_worker > 0, "cluster.cpus_per_worker", "above 0", self.cpus_per_worker)

    def num_workers(self, resources: dict[str, float]) -> int:
        """Count the workers that a machine's resources are enough for."""
        num = int(resources.get("CPU", 0.0) / self.cpus_per_worker)
        return min(num, int(resources.get("GPU", 0.0))) if self.device is Device.GPU else num

    def bundle(self, num_workers: int) -> dict[str, float]:
        """Say what so many workers take."""
        cpus = {"CPU": num_workers * self.cpus_per_worker}
        return {**cpus, "GPU": float(num_workers)} if self.device is Device.GPU else cpus


class RayMachines:
    """The machines of the cluster that it is connected to.

    Parameters
    ----------
    room
        What each worker takes; the rest is others'.
    setup
        What agents need to know; None: none is started.
    """

    def __init__(self, room: Room, setup: AgentSetup | None = None) -> None:
        self._room = room
        self._setup = setup

    def find(self) -> Sequence[Found]:
        """List the machines that have room for a worker, in the order of their names.

        Raises
        ------
        BackendError
            If the cluster cannot be asked.
        """
        import ray
        from ray.exceptions import RayError

        try:
            alive = [node for node in ray.nodes() if node["Alive"]]
        except (RayError, ConnectionError, RuntimeError) as error:
            raise BackendError(f"the Ray cluster does not list its machines: {_last_line(error)}") from error
        # From outside of the cluster its machines cannot be reached.
        may_knock = not ray.util.client.ray.is_connected()
        found = [
            Found(
                id=node["NodeID"],
                name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, Ray node {node['NodeID'][:8]})",
                num_workers=self._room.num_workers(node["Resources"]),
                door=(node["NodeManagerAddress"], node["NodeManagerPort"]) if may_knock else None,
            )
            for node in alive
        ]
        # For seconds after a machine is gone Ray lists it as alive.
        there = (one for one in found if one.num_workers > 0 and one.answers())
        return sorted(there, key=lambda one: (one.name, one.id))

    def start(self, found: Found, num_workers: int) -> Machine:
        """Reserve the workers' share of a machine, and start an agent in it.

        Raises
        ------
        BackendError
            If it is not free, or the agent does not start.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._setup is not None, "an agent needs to know what it serves"
        bundle, group = self._room.bundle(num_workers), None
        try:
            group = placement_group([bundle], "STRICT_PACK", bundle_label_selector=[{"ray.io/node-id": found.id}])
            if not group.wait(PLACE_S):
                free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
                raise BackendError(f"has not {bundle} free, others use it (free in the cluster: {free})")
            agent = ray.remote(concurrency_groups={NEWS: 1})(MachineAgent)
            strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
            placed = agent.options(  # a Ray actor has no resources of its own unless it asks
                num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), scheduling_strategy=strategy, max_restarts=0
            )
            actor = placed.remote(self._setup, num_workers)
            ray.get(actor.clock_s.remote(), timeout=BEGIN_S)
        except BaseException as error:
            with suppress(Exception):
                remove_placement_group(group)
            if isinstance(error, GetTimeoutError):
                raise BackendError(f"starts no agent in {BEGIN_S:g} s") from error
            if isinstance(error, RayError):
                raise BackendError(f"cannot start an agent: {_last_line(error)}") from error
            raise
        return RayMachine(found, actor, group)

    def close(self) -> None:
        """Leave the cluster."""
        import ray

        ray.shutdown()


class RayMachine:
    """A machine on which an agent runs."""

    def __init__(self, found: Found, actor: Any, group: Any) -> None:
        self.id = found.id
        self.name = found.name
        self._found = found
        self._actor = actor
        self._group = group

    def problems(self) -> Sequence[str]:
        problems: Sequence[str] = self._ask(self._actor.problems.remote, READY_S)
        return problems

    def clock(self) -> Offset:
        return measure_offset(lambda: self._ask(self._actor.clock_s.remote, ASK_S))

    def tell(self, orders: Sequence[Order]) -> None:
        with suppress(Exception):  # who waits for news hears that it is gone
            self._actor.tell.remote(pickle.dumps(orders))

    def news(self, timeout_s: float) -> News:
        ask = self._actor.news.options(concurrency_group=NEWS)
        news = pickle.loads(self._ask(lambda: ask.remote(timeout_s), None))
        assert isinstance(news, News)
        return news

    def end(self) -> None:
        """Ask the agent to end its processes, then end it."""
        import ray
        from ray.util.placement_group import remove_placement_group

        with suppress(Exception):
            ray.get(self._actor.close.remote(), timeout=PLACE_S)
        with suppress(Exception):
            ray.kill(self._actor)
        with suppress(Exception):
            remove_placement_group(self._group)

    def _ask(self, call: Callable[[], Any], timeout_s: float | None) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(call(), timeout=timeout_s)
        except (RayError, ConnectionError) as error:
            raise MachineLostError(self._cause(error)) from error

    def _cause(self, error: Exception) -> str:
        """Say whether the machine is gone, or only what ran there."""
        import ray

        with suppress(Exception):
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            if self.id in alive and self._found.answers():
                return f"the agent on {self.name} is gone, and the machine is there: {_last_line(error)}"
        return f"machine {self.name} is gone"


def connect(address: str) -> None:
    """Connect to a cluster, within seconds or not at all.

    Parameters
    ----------
    address
        ``auto``: the cluster that this machine is part of; ``HOST:PORT`` of its head, or ``ray://HOST`` from elsewhere.

    Raises
    ------
    BackendError
        Saying what is missing.
    """
    # A thread that still asks after the job has left the cluster must not connect again by itself: Ray would start a
    # cluster of its own here, and a connection that is made at the same time breaks.
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


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return clipped(lines[-1] if lines else type(error).__name__)

"""Machines of a fleet that are threads of the test's own process, and can be unplugged."""

import pickle
import threading
import time

from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.engines.backend import EngineBackend
from mosaic.engines.berths import group_sizes
from mosaic.engines.fleet import Fleet, Found, MachineLostError
from mosaic.engines.machine_agent import MachineAgent
from mosaic.engines.machine_clock import Offset
from mosaic.engines.machine_launcher import MachineLauncher
from mosaic.engines.machine_messages import AgentSetup
from mosaic.engines.ray_cluster import RayCluster
from mosaic.engines.vllm_engines import VllmEngines
from tests.engines.executor_runs import FAKE_ENGINE, OPTIONS, Runs


class HereMachine:
    def __init__(self, found: Found, agent: MachineAgent, ahead_s: float) -> None:
        self.id, self.name = found.id, found.name
        self.agent = agent
        self.ahead_s = ahead_s
        self.unplugged = threading.Event()
        self.zeros = []

    def problems(self):
        return self.agent.problems()

    def clock(self) -> Offset:
        return Offset(self.ahead_s, 0.0)

    def tell(self, orders) -> None:
        if not self.unplugged.is_set():
            self.agent.tell(pickle.dumps(orders))

    def news(self, timeout_s: float):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            news = pickle.loads(self.agent.news(0.05))
            if self.unplugged.is_set():  # what it said last is lost on the way
                raise MachineLostError(f"machine {self.name} is gone")
            if news.said:
                return news
        return news

    def end(self) -> None:
        self.unplugged.set()
        self.agent.close()


class HereMachines:
    """Machines by name, with room for so many workers each; tests unplug them and plug others in."""

    def __init__(self, rooms: dict[str, int], engine_module: str = FAKE_ENGINE, **setup) -> None:
        self.rooms = dict(rooms)
        self.started: dict[str, HereMachine] = {}
        self.broken: dict[str, str] = {}
        self.doors: dict[str, tuple[str, int]] = {}
        self.num_deaf = 0
        """So many times it cannot be told which machines are there."""
        self.ahead_s: dict[str, float] = {}
        self.setup = AgentSetup(
            settings=OPTIONS, engine_module=engine_module, device=Device.CPU, **({"versions": {}} | setup)
        )

    def find(self):
        if self.num_deaf:
            self.num_deaf -= 1
            raise BackendError("does not list its machines")
        return [Found(name, name, room, self.doors.get(name)) for name, room in sorted(self.rooms.items())]

    def start(self, found: Found, num_workers: int) -> HereMachine:
        if found.id in self.broken:
            raise BackendError(self.broken[found.id])
        machine = HereMachine(found, MachineAgent(self.setup, num_workers), self.ahead_s.get(found.id, 0.0))
        self.started[found.id] = machine
        return machine

    def close(self) -> None:
        pass

    def unplug(self, name: str) -> None:
        del self.rooms[name]
        self.started[name].unplugged.set()


class MachineRuns(Runs):
    """As `Runs`, on a fleet or a cluster of machines."""

    def __init__(self, folder, machines: Fleet | RayCluster, **changes) -> None:
        super().__init__(folder, None, **changes)
        self.machines = machines

    def backend(self, **changes) -> EngineBackend:
        return EngineBackend(
            name="vllm",
            experts=self.experts,
            cluster=self._cluster,
            journal=self.journal,
            content=self._content,
            engines=VllmEngines(options=self._options, with_tokenizer=self._content.prompts is not None),
            launcher=MachineLauncher(self.machines) if isinstance(self.machines, Fleet) else self.machines.launcher(),
            patience=self._patience,
        )


def open_fleet(machines: HereMachines, num_workers: int | None = None, tell=lambda line: None) -> Fleet:
    fleet = Fleet(machines, group_sizes([one.num_workers for one in machines.find()], num_workers), tell)
    fleet.open()
    return fleet

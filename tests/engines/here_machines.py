"""Nodes of a cluster whose agents are threads of the test's own process, and can be unplugged."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

from mosaic.core.errors import BackendError
from mosaic.engines.machine_agent import AgentSetup, MachineAgent, Report, Stop
from mosaic.engines.ray_cluster import Node, group_sizes
from mosaic.engines.remote_launcher import RemoteLauncher
from mosaic.engines.vllm_engines import VllmEngines
from tests.engines.executor_runs import FAKE_ENGINE, OPTIONS

ENGINES = VllmEngines(options=OPTIONS)


class HereAgent:
    def __init__(self, agent: MachineAgent, ahead_s: float) -> None:
        self.agent = agent
        self.ahead_s = ahead_s
        self.is_unplugged = False
        self.orders = []
        self._thread = ThreadPoolExecutor(1)

    def report(self, timeout_s: float) -> Future[Report]:
        def report() -> Report:
            report = self.agent.report(timeout_s)
            if self.is_unplugged:  # what it sent last is lost on the way
                raise ConnectionError
            return report._replace(sent_ts=report.sent_ts + self.ahead_s)

        return self._thread.submit(report)

    def send(self, orders) -> None:
        self.orders += orders
        if not self.is_unplugged:
            self.agent.send(orders)

    def unplug(self) -> None:
        self.is_unplugged = True
        self.agent.send([])  # a report under way fails

    def end(self) -> None:
        self.agent.send([Stop()])
        self._thread.submit(self.agent.report, 0.0).result()
        self._thread.shutdown()


class HereMachines:
    """Nodes by name, with room for so many workers each; tests unplug them and plug others in."""

    def __init__(self, rooms: dict[str, int], engine_module: str = FAKE_ENGINE, **setup) -> None:
        self.rooms = dict(rooms)
        self.started: dict[str, HereAgent] = {}
        self.broken: dict[str, str] = {}
        """Why nodes start no agent; those that are gone by then have no room either."""
        self.num_deaf = 0
        """So many times it cannot be found out which nodes are up."""
        self.ahead_s: dict[str, float] = {}
        self.setup = AgentSetup(**({"engines": ENGINES, "engine_module": engine_module, "versions": {}} | setup))

    def connect(self) -> None:
        pass

    def find(self):
        if self.num_deaf:
            self.num_deaf -= 1
            raise BackendError("does not list its machines")
        return [Node(name, name, room) for name, room in sorted(self.rooms.items())]

    def start(self, node: Node, num_workers: int) -> HereAgent:
        if node.id in self.broken:
            if self.broken[node.id] == GONE:
                del self.rooms[node.id]
            raise BackendError(self.broken[node.id])
        agent = HereAgent(MachineAgent(self.setup, num_workers), self.ahead_s.get(node.id, 0.0))
        if problems := agent.agent.check():
            agent.end()
            raise BackendError(", ".join(problems))
        self.started[node.id] = agent
        return agent

    def cause_of_loss(self, node: Node, error: Exception) -> str:
        return f"machine {node.name} is gone"

    def disconnect(self, unfinished) -> None:
        wait(unfinished)

    def unplug(self, name: str) -> None:
        del self.rooms[name]
        self.started[name].unplug()


GONE = "cannot start an agent: its node is dead"


def launcher_on(machines: HereMachines, num_workers: int | None = None, log=lambda line: None) -> RemoteLauncher:
    return RemoteLauncher(machines, group_sizes([node.num_workers for node in machines.find()], num_workers), log)

"""Runs worker processes on the machines of a cluster; their messages are on the driver's disk before they are used.

One thread does all of it: the one that listens. Each serving node has an agent with one pending report. A report comes
at least every `HEARTBEAT_S`, so it is also the agent's heartbeat. Only slow operations have a thread of their own,
which is one more future to wait for: starting an agent, and searching for nodes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any, TypeVar

from mosaic.core.errors import BackendError
from mosaic.engines.local_launcher import output_of
from mosaic.engines.machine_agent import Forward, Order, Report, Start
from mosaic.engines.messages import MACHINE_LOST, Exited, FromWorker, Gone, Kill, Load, There, ToWorker
from mosaic.engines.ray_cluster import Node, RayAgent, RayCluster

ABSENT = "no machine is there for it"
HEARTBEAT_S = 2.0
"""Longest interval between an agent's reports."""
LOST_S = 10.0
"""An agent whose report is late by so much is lost."""
RESTART_S = 120.0
"""Time to restart a fork server that died."""
LOOK_S = 0.5
"""Interval of the search for joining nodes, while some workers have none."""
SETTLE_S = 10.0
"""Pause before a node with a lost agent may serve again: by then it is known whether the node is lost too."""
TRY_AGAIN_S = 60.0
COME_BACK_S = 300.0
"""How long a run without any machine waits for one."""
NUM_CLOCK_READINGS = 8
T = TypeVar("T")


@dataclass(eq=False, slots=True, kw_only=True)
class Machine:
    """A node with an agent that serves workers."""

    node: Node
    agent: RayAgent
    workers: tuple[int, ...]
    orders: list[Order] = field(default_factory=list)
    """Orders that are not yet sent."""
    delays_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    """Of the latest reports: received, by the clock here, minus sent, by the machine's own. Clocks drift."""
    report: Future[Report] = field(init=False)
    """The pending report."""
    due_ts: float = field(init=False)
    restart_s: float = 0.0
    """Extra time for a report: an agent that restarts a fork server imports the engine in that time."""

    def __post_init__(self) -> None:
        self.request(0.0)

    @property
    def offset_s(self) -> float:
        """Return how far the clock here is ahead of the machine's: the least delay is almost only the offset."""
        return min(self.delays_s)

    def request(self, timeout_s: float) -> None:
        """Request a report."""
        self.report, self.due_ts = self.agent.report(timeout_s), time.monotonic() + timeout_s + LOST_S

    def receive(self, next_timeout_s: float = HEARTBEAT_S) -> Report:
        """Return the report, or raise its error, and request the next one."""
        try:
            report = self.report.result(max(0.0, self.due_ts - time.monotonic()))
        except TimeoutError:
            raise TimeoutError(f"it sent nothing for {LOST_S:g} s") from None
        self.delays_s.append(time.monotonic() - report.sent_ts)
        self.request(next_timeout_s)
        return report


@dataclass(eq=False)
class RemoteLauncher:
    """Launches on the nodes of a cluster, for several runs one after the other, while it is kept.

    A worker process may continue after its node was given up as lost. It can do no harm: its messages are not received,
    and only messages that the driver receives are in the journal.
    """

    cluster: RayCluster
    """Source of the nodes; several threads call its methods."""
    group_sizes: Sequence[int]
    """Workers of each machine; a node serves those of one machine, or of several."""
    log: Callable[[str], None] = lambda line: None
    """Receives why a joined node cannot serve (it is tried again later), and that no node is left."""

    def __post_init__(self) -> None:
        self._groups = groups_of(self.group_sizes)
        self._machines: dict[str, Machine] = {}
        """By node."""
        self._starting: dict[Future[Machine], tuple[Node, tuple[int, ...]]] = {}
        self._refused: dict[str, float] = {}
        """When to try nodes again that cannot serve."""
        self._ending: list[Future[None]] = []
        """Of agents that are no longer used."""
        self._looking: Future[Sequence[Node]] | None = None
        self._next_look_ts = 0.0
        self.numbers = count()  # an agent may still report processes of an earlier run
        self._folder = Path()
        self._processes: dict[int, tuple[Machine, tuple[int, ...]]] = {}
        """Machine and workers of the run's processes."""
        self._changes: list[Gone | There] = []
        self._missed: Gone | None = None
        """Workers of the last lost node: the run cannot continue without them, and waits for another node."""
        self._missed_until_ts = 0.0

    @property
    def nodes(self) -> Mapping[int, Node]:
        """Return the node of each worker."""
        return {worker: machine.node for machine in self._machines.values() for worker in machine.workers}

    @property
    def absent(self) -> tuple[int, ...]:
        """List the workers without a node."""
        served = self.nodes
        return tuple(worker for group in self._groups for worker in group if worker not in served)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep an agent on every serving node.

        Raises
        ------
        BackendError
            If a node cannot serve, with all that is missing on all of them, or none is left.
        """
        try:
            self.cluster.connect()
            self._start_all()
            yield
        finally:
            self._ending += [in_thread(partial(_end_started, starting)) for starting in self._starting]
            self._ending += [in_thread(machine.agent.end) for machine in self._machines.values()]
            self.cluster.disconnect([*self._ending, *([self._looking] if self._looking else [])])
            self._starting, self._machines, self._looking, self._ending = {}, {}, None, []

    def begin(self, folder: Path, num_workers: int, *, is_new: bool) -> None:
        self._folder, self._processes = folder, {}
        for _ in self.listen(0.0):
            pass
        if absent := self.absent:
            self._miss(absent, ABSENT)

    def open(self, process: int, workers: tuple[int, ...]) -> bool:
        machine = next((machine for machine in self._machines.values() if workers[0] in machine.workers), None)
        if machine is None:
            return False  # it is lost, which is reported next
        machine.orders.append(Start(process, tuple(map(machine.workers.index, workers))))
        self._processes[process] = machine, workers
        return True

    def send(self, process: int, message: ToWorker) -> None:
        machine, _ = self._processes[process]
        if isinstance(message, Load):
            message = replace(message, zero_ts=message.zero_ts - machine.offset_s)
        machine.orders.append(Forward(process, message))

    def kill(self, process: int) -> None:
        machine, _ = self._processes[process]
        machine.orders.append(Kill(process))

    def listen(self, timeout_s: float) -> Iterator[tuple[int, FromWorker | Exited]]:
        for machine in self._machines.values():
            if machine.orders:
                machine.agent.send(machine.orders)
                machine.orders = []
        self._look()
        waited: list[Future[Any]] = [*self._starting, *(machine.report for machine in self._machines.values())]
        wait_s = 0.0 if self._changes else min(timeout_s, LOOK_S)
        if waited:
            wait(waited, wait_s, FIRST_COMPLETED)
        else:
            time.sleep(wait_s)  # until a node joins
        for node, cause in self._take_started():
            self.log(f"{node.name} {cause}")
        for machine in list(self._machines.values()):
            if not machine.report.done() and time.monotonic() < machine.due_ts:
                continue
            try:
                report = machine.receive()
            except Exception as error:  # each kind of cluster has errors of its own
                yield from self._lose(machine, self.cluster.cause_of_loss(machine.node, error))
            else:
                if any(isinstance(one, Exited) and one.fork_server_died for _, one in report.received):
                    machine.restart_s = RESTART_S
                elif report.received:
                    machine.restart_s = 0.0
                machine.due_ts += machine.restart_s
                yield from self._pass_on(report)

    def changes(self) -> Sequence[Gone | There]:
        if self._missed is not None and time.monotonic() > self._missed_until_ts:
            self._give_up_missed()
        changes, self._changes = self._changes, []
        return changes

    def _start_all(self) -> None:
        """Start an agent on each needed node; nodes that are lost before it is up are absent."""
        for node in self.cluster.find():
            self._begin_start(node)
        wait(self._starting)
        if refused := self._take_started():
            up = {node.id for node in self.cluster.find()} if self._machines else set()
            problems = [f"{node.name} {cause}" for node, cause in refused if not self._machines or node.id in up]
            if problems:
                raise BackendError("machines cannot serve: " + "; ".join(problems))

    def _begin_start(self, node: Node) -> None:
        held = {worker for _, workers in self._starting.values() for worker in workers} | self.nodes.keys()
        if workers := slots_for(node.num_workers, self._groups, held):
            self._starting[in_thread(lambda: self._start(node, workers))] = node, workers

    def _start(self, node: Node, workers: tuple[int, ...]) -> Machine:
        agent = self.cluster.start(node, len(workers))
        try:
            machine = Machine(node=node, agent=agent, workers=workers)
            for _ in range(NUM_CLOCK_READINGS):
                machine.receive(0.0)
        except BaseException:
            agent.end()
            raise
        return machine

    def _take_started(self) -> list[tuple[Node, str]]:
        """Use the agents that have started; returns the nodes that cannot serve, and why."""
        refused = []
        for starting in [starting for starting in self._starting if starting.done()]:
            node, workers = self._starting.pop(starting)
            if (error := starting.exception()) is None:
                self._machines[node.id] = starting.result()
                self._changes.append(There(workers))
                self._give_up_missed()
                continue
            self._refused[node.id] = time.monotonic() + TRY_AGAIN_S
            known = isinstance(error, BackendError)
            refused.append((node, str(error) if known else self.cluster.cause_of_loss(node, Exception(error))))
        return refused

    def _look(self) -> None:
        """Add joining nodes while some workers have none."""
        if self._looking is not None and self._looking.done():
            looking, self._looking = self._looking, None
            self._next_look_ts = time.monotonic() + LOOK_S
            if isinstance(looking.exception(), BackendError):
                return  # the next search follows soon; reports show which nodes are lost
            known = {node.id for node, _ in self._starting.values()} | self._machines.keys()
            for node in looking.result():
                if node.id not in known and time.monotonic() > self._refused.get(node.id, 0.0):
                    self._begin_start(node)
        if self._looking is None and self.absent and time.monotonic() > self._next_look_ts:
            self._looking = in_thread(self.cluster.find)

    def _lose(self, machine: Machine, cause: str) -> Iterator[tuple[int, Exited]]:
        """Give a node up, and all processes there."""
        del self._machines[machine.node.id]
        self._refused[machine.node.id] = time.monotonic() + SETTLE_S
        self._ending.append(in_thread(machine.agent.end))
        self._miss(machine.workers, cause)
        for process in [process for process, (there, _) in self._processes.items() if there is machine]:
            del self._processes[process]
            yield process, MACHINE_LOST

    def _miss(self, workers: Sequence[int], cause: str) -> None:
        """Give workers up, unless there are no others: their sessions then wait for a joining node."""
        if self._machines:
            self._changes.append(Gone(tuple(workers), cause))
        elif self._missed is None:
            self._missed_until_ts = time.monotonic() + COME_BACK_S
            self.log(f"no machine is left ({cause}): waiting {COME_BACK_S:g} s for one")
            self._missed = Gone(tuple(workers), cause)
        else:
            self._missed = Gone(tuple({*self._missed.workers, *workers}), self._missed.cause)

    def _give_up_missed(self) -> None:
        """Give up the missed workers that no joined node serves."""
        if self._missed is not None:
            left = tuple(worker for worker in self._missed.workers if worker in self.absent)
            self._changes += [Gone(left, self._missed.cause)] if left else []
            self._missed = None

    def _pass_on(self, report: Report) -> Iterator[tuple[int, FromWorker | Exited]]:
        """Yield the messages of processes, in order."""
        for process, message in report.received:
            if process not in self._processes:
                continue  # of an earlier run
            if isinstance(message, Exited):
                machine, workers = self._processes.pop(process)
                if message.printed:
                    with suppress(OSError), output_of(self._folder, workers).open("ab") as file:
                        file.write(f"--- on {machine.node.name}\n".encode() + message.printed)
            yield process, message


def in_thread(do: Callable[[], T]) -> Future[T]:
    """Run a function in a thread of its own, which is not joined at the end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _end_started(starting: Future[Machine]) -> None:
    if starting.exception() is None:
        starting.result().agent.end()


def groups_of(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Number the workers of each machine, machine by machine.

    Examples
    --------
    >>> groups_of([2, 1])
    ((0, 1), (2,))
    """
    return tuple(tuple(range(low, high)) for low, high in pairwise(accumulate(sizes, initial=0)))


def slots_for(room: int, groups: Sequence[tuple[int, ...]], held: Collection[int]) -> tuple[int, ...]:
    """Choose the workers that a node serves: workers of a group that a session spans stay on one node.

    It takes groups of which none is held, while it has room, the largest that fit first. If none fits it takes a part
    of the smallest, and the rest of that group has no node.

    Examples
    --------
    >>> groups = groups_of([2, 2])
    >>> slots_for(2, groups, ()), slots_for(3, groups, {0, 1}), slots_for(8, groups, {0, 2})
    ((0, 1), (2, 3), ())
    >>> slots_for(1, groups, {2, 3}), slots_for(8, groups, ())
    ((0,), (0, 1, 2, 3))
    """
    free = [group for group in groups if not set(held) & set(group)]
    chosen: tuple[int, ...] = ()
    while free and room > len(chosen):
        fitting = [group for group in free if len(group) <= room - len(chosen)]
        if chosen and not fitting:
            break
        group = max(fitting, key=len) if fitting else min(free, key=len)
        free.remove(group)
        chosen += group[: room - len(chosen)]
    return chosen

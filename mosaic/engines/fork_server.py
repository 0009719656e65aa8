"""Runs the fork server: it imports the engine once, then forks a worker process for each session of an expert.

Importing takes seconds and a fork almost no time, so a new worker costs only a load. All resources of a worker process,
GPU memory included, are free when it has ended. The server itself never uses a device.

    python -m mosaic.engines.fork_server FD MODULE

FD is a socket to the driver and MODULE an `EngineModule`. The driver sends its settings first. It receives None, or the
reason why the module cannot be imported. The server ends when the socket closes, and so do its workers.
"""

import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import cast

from mosaic.engines.engine import EngineModule
from mosaic.engines.messages import Fork, Forked, Kill, Reaped, one_line
from mosaic.engines.worker import run_worker


def run_fork_server(control: Connection, engine_module: str) -> None:
    """Import the modules that engines need, then fork and reap workers until the driver has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = control.recv()
    try:
        module = cast(EngineModule, importlib.import_module(engine_module))
        module.prepare(settings)
    except Exception as error:
        traceback.print_exc()
        control.send(one_line(error))
        return
    gc.collect()
    gc.freeze()
    control.send(None)
    ForkServer(control, module).run()


class ForkServer:
    """Forks workers and reports how they end."""

    def __init__(self, control: Connection, module: EngineModule) -> None:
        self._control = control
        self._module = module
        self._pids: dict[int, int] = {}
        """By number of the worker process, while it runs."""
        self._wakeup, wakes = socket.socketpair()
        self._wakeup.setblocking(False)
        wakes.setblocking(False)
        self._wakes = wakes  # kept open for the signal handler
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Handle messages until the driver closes the socket, then kill the remaining workers."""
        try:
            while True:
                ready = wait([self._control, self._wakeup])
                if self._wakeup in ready:
                    self._reap()
                if self._control in ready:
                    self._handle(self._control.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # the driver has ended
        finally:
            for pid in self._pids.values():
                kill_group(pid)

    def _handle(self, message: Fork | Kill) -> None:
        if isinstance(message, Kill):
            if message.process in self._pids:
                kill_group(self._pids[message.process])
            return
        link = recv_handle(self._control)
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (self._wakeup, self._wakes, self._control):
                other.close()
            run_worker(message, Connection(link), self._module, server)
        os.close(link)
        self._pids[message.process] = pid
        self._control.send(Forked(message.process, pid))

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._wakeup.recv(4096)
        for process, pid in list(self._pids.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)  # processes that the worker started and left behind
                del self._pids[process]
                self._control.send(Reaped(process, os.waitstatus_to_exitcode(status)))


def kill_group(pid: int) -> None:
    """End a worker process and all processes that it started."""
    for kill in (os.kill, os.killpg):  # its process group may not exist yet
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    run_fork_server(Connection(int(sys.argv[1])), sys.argv[2])

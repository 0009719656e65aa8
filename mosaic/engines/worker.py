"""Runs a worker process: it loads one expert, serves its sessions, and frees all memory at its end.

The fork server forks it for the sessions of an expert on its workers. In the run's folder it writes only its log.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

from mosaic.core.errors import FatalEngineError, MosaicError, OutageError
from mosaic.core.safe_text import printable_output
from mosaic.engines.engine import EngineModule
from mosaic.engines.messages import Failure, Fork, FromWorker, Load, Quit, Serve, one_line
from mosaic.engines.serving import SessionService

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent ends, for any reason.

    Linux only; elsewhere a worker detects the closed link at its next step.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it ended before that


@printable_output()
def run_worker(fork: Fork, link: Connection, module: EngineModule, server: int) -> NoReturn:
    """Run a worker process from its fork to its end; ``server`` is the process that forked it."""
    status = 0
    try:
        die_with_parent(server)
        os.setpgid(0, 0)  # so that the fork server can kill what an engine may start
        _redirect_output(fork.log)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if fork.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, fork.cores)
        if fork.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(fork.gpus)
        gc.freeze()  # otherwise most of the load time is garbage collection of the fork server's imports
        _serve_link(link, module)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 1  # the driver has ended
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        _leave(status)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve_link(link: Connection, module: EngineModule) -> None:
    load = link.recv()
    assert isinstance(load, Load)
    message = link.recv()
    try:
        engine = module.open_engine(load.spec)
    except Exception as error:
        traceback.print_exc()
        link.send([_failure(error, f"{load.spec.expert} cannot be loaded", module)])
        return
    sender = Sender(link)
    try:
        while not isinstance(message, Quit):
            if isinstance(message, Serve):  # a cancellation may arrive after its session has ended
                SessionService(message, load, engine, sender.send, link).run()
            message = link.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        traceback.print_exc()
        sender.send(_failure(error, f"{load.spec.expert} failed", module))
    sender.finish()
    if load.spec.num_workers == 1:
        _leave(0)  # the kernel frees everything at once, while closing an engine takes a second


def _failure(error: Exception, what: str, module: EngineModule) -> Failure:
    """Describe an error; errors of this project have their own message."""
    return Failure(
        str(error) if isinstance(error, MosaicError) else f"{what}: {one_line(error)}",
        module.is_device_lost(error),
        is_fatal=isinstance(error, FatalEngineError),
        wait_s=error.wait_s if isinstance(error, OutageError) else 0.0,
    )


class Sender:
    """Sends the worker's messages to the driver, in a thread of its own.

    The driver may be writing a long prompt to this worker at the same time. If both waited for room in their pipes,
    neither would ever read.
    """

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._queue: SimpleQueue[FromWorker | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, message: FromWorker) -> None:
        self._queue.put(message)

    def finish(self) -> None:
        """Wait until all messages are sent."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            messages: list[FromWorker | None] = []
            while None not in messages:
                messages = [self._queue.get()]
                while not self._queue.empty():
                    messages.append(self._queue.get())
                self._link.send([message for message in messages if message is not None])
        except BaseException:  # the driver has ended, or this is a bug: without a link there is nothing to do
            traceback.print_exc()
            os._exit(1)


def _redirect_output(log: Path) -> None:
    """Send what this process and its libraries print to the worker's log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)

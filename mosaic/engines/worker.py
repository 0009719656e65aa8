"""A worker process: loads one expert, serves its sessions, journals every finish, and takes all memory with it.

It is forked from the host for an expert's stay on its workers. Requests that finish go to a second thread, which puts
them on the disk, as many at once as have come meanwhile, and only then tells the executor: a disk that takes
milliseconds to sync does not hold up the engine.
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
from mosaic.engines.session_service import SessionService
from mosaic.runtime.journal import JournalError, Log
from mosaic.runtime.journal_records import Entry, to_line

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however that ends.

    Linux only; elsewhere a worker notices at its next step that its link is closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it ended before the kernel was asked


@printable_output()
def run_worker(fork: Fork, link: Connection, module: EngineModule, host: int) -> NoReturn:
    """Be a worker process from its fork to its end; ``host`` is the process that forked it."""
    status = 0
    try:
        die_with_parent(host)
        os.setpgid(0, 0)  # so that the host can kill what an engine may start
        _redirect_output(fork.log)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if fork.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, fork.cores)
        if fork.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(fork.gpus)
        gc.freeze()  # else loading spends most of its time on collecting what the host imported
        _serve_link(link, module)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        status = 1  # the executor is gone
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
        log = None if load.journal is None else Log(load.journal)
        engine = module.open_engine(load.spec)
    except Exception as error:
        traceback.print_exc()
        link.send([_failure(error, f"{load.spec.expert} cannot be loaded", module)])
        return
    reporter = Reporter(log, link)
    try:
        while not isinstance(message, Quit):
            if isinstance(message, Serve):  # a cancellation may come when its session is over
                SessionService(message, engine, reporter.tell, link, load.zero_ts).run()
            message = link.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        traceback.print_exc()
        reporter.tell(_failure(error, f"{load.spec.expert} failed", module))
    reporter.finish()
    if load.spec.num_workers == 1:
        _leave(0)  # the kernel frees all at once, where taking an engine apart takes a second


def _failure(error: Exception, what: str, module: EngineModule) -> Failure:
    """Say what went wrong; errors of this project say it themselves."""
    return Failure(
        str(error) if isinstance(error, MosaicError) else f"{what}: {one_line(error)}",
        module.is_device_lost(error),
        is_journal=isinstance(error, JournalError),
        is_fatal=isinstance(error, FatalEngineError),
        wait_s=error.wait_s if isinstance(error, OutageError) else 0.0,
    )


class Reporter:
    """Puts what ends on the disk and then tells the executor, in a thread of its own.

    What it is told while a sync is under way goes to the disk with the next one, all at once. Without a log it only
    tells, and who hears it puts it on the disk.
    """

    def __init__(self, log: Log | None, link: Connection) -> None:
        self._log = log
        self._link = link
        self._queue: SimpleQueue[FromWorker | Entry | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def tell(self, message: FromWorker | Entry) -> None:
        self._queue.put(message)

    def finish(self) -> None:
        """Wait until all is said."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            messages: list[FromWorker | Entry | None] = []
            while None not in messages:
                messages = [self._queue.get()]
                while not self._queue.empty():
                    messages.append(self._queue.get())
                self._report([message for message in messages if message is not None])
        except JournalError as error:
            self._link.send([Failure(str(error), is_worker=False, is_journal=True)])
            os._exit(1)
        except BaseException:  # the executor is gone, or this is a mistake: without a voice there is nothing to do
            traceback.print_exc()
            os._exit(1)

    def _report(self, messages: list[FromWorker | Entry]) -> None:
        # An entry is told as it stands in the journal: it is turned into bytes once.
        said = [to_line(message) if isinstance(message, Entry) else message for message in messages]
        lines = [line for line in said if isinstance(line, bytes)]
        if lines and self._log is not None:
            self._log.append(lines)
        self._link.send(said)


def _redirect_output(log: Path) -> None:
    """Send what this process and its libraries print to the worker's log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)

"""Worker processes as a run has them: how they start, here or on other machines, and when they count as hung."""

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from mosaic.core.checks import AtLeast0, Positive, checked
from mosaic.engines.endpoint import EndpointPatience
from mosaic.engines.engine import EngineSpec
from mosaic.engines.messages import Exited, Failure, FromWorker, Gone, There, ToWorker

FORK_SERVER_LOG = "fork_server.log"


class Launcher(Protocol):
    """Starts worker processes, which make their engines by one `EngineModule`, and receives what they send."""

    @property
    def numbers(self) -> Iterator[int]:
        """Numbers of processes, none of which is given twice."""

    def begin(self, folder: Path, num_workers: int, *, is_new: bool) -> None:
        """Take up a run.

        Parameters
        ----------
        folder
            Where processes print: ``worker-N.log``, and ``fork_server.log``.
        num_workers
            Among which this machine is dealt out.
        is_new
            Nothing of the run is done yet: what will be needed is got ready now, which is no time of the run's.

        Raises
        ------
        BackendError
            If what is needed now cannot be had.
        """

    def open(self, process: int, workers: tuple[int, ...]) -> bool:
        """Start a process; False: not now, try again.

        Raises
        ------
        BackendError
            If no process can be started at all.
        """

    def send(self, process: int, message: ToWorker) -> None:
        """Send it a message; one that is dying is noticed when it exits."""

    def kill(self, process: int) -> None:
        """End it and all it started, at once."""

    def listen(self, timeout_s: float) -> Iterator[tuple[int, FromWorker | Exited]]:
        """Wait for messages, not longer than that, and give them; the last of a process is ``Exited``."""

    def changes(self) -> Sequence[Gone | There]:
        """List the workers that went down and came up since the last call; at first, those that are not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("patience.")
class Patience:
    """When a worker counts as hung, and how often what failed is tried again."""

    load_timeout_s: Positive = 900.0
    """An engine must be ready within this time."""
    stall_timeout_s: Positive = 180.0
    """Once ready it must finish a step within this time."""
    close_timeout_s: Positive = 30.0
    """A process must be gone this long after it was to end."""
    max_retries: AtLeast0 = 2
    """Times that a session is tried again after a failure; when a call finishes in between, counting starts anew.

    The last time its calls are served one at a time, so that a call which breaks its engine fails alone.
    """
    max_restarts: AtLeast0 = 2
    """Times that a worker may fail to load anything, likewise, before it is given up.

    It may lose its fork server so often too; a call that any worker finishes lets that count start anew.
    """
    servers: EndpointPatience = field(default_factory=EndpointPatience)
    """Where workers are servers."""


class Phase(StrEnum):
    """What a worker process does."""

    LOADING = "loading"
    SERVING = "serving"
    IDLE = "idle"
    """Its expert stays, for the next session of the same."""
    CLOSING = "closing"


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerProcess:
    """A worker process while it lives."""

    number: int
    spec: EngineSpec
    workers: tuple[int, ...]
    session: int | None = None
    """The number of the one that it serves."""
    phase: Phase = Phase.LOADING
    one_at_a_time: bool = False
    """It serves no two suspected calls together, to find the one that breaks it."""
    received_ts: float = field(default_factory=time.monotonic)
    """When it last sent anything, on the machine's monotonic clock."""
    failure: Failure | None = None
    hung: str | None = None
    """Why it was killed."""
    unsent: list[ToWorker] = field(default_factory=list)

    def send(self, message: ToWorker) -> None:
        """Send it something when messages are received next: not before what caused it is on the disk."""
        self.unsent.append(message)

    def begin(self, phase: Phase) -> None:
        """Enter a phase; its time limit counts from now."""
        self.phase = phase
        self.received_ts = time.monotonic()

    def is_overdue(self, patience: Patience) -> bool:
        """Find whether it just has sent nothing for too long."""
        limits = {
            Phase.LOADING: patience.load_timeout_s,
            Phase.SERVING: patience.stall_timeout_s,
            Phase.CLOSING: patience.close_timeout_s,
        }
        limit_s = limits.get(self.phase)
        if limit_s is None or self.hung is not None or time.monotonic() - self.received_ts <= limit_s:
            return False
        self.hung = f"{self.spec.expert} made no progress for {limit_s:g} s while {self.phase}"
        return True

    def cause(self, exited: Exited) -> str:
        """Give in one line why it ended."""
        if self.hung is not None:
            return self.hung
        if self.failure is not None:
            return self.failure.cause
        name = f"the worker process of {self.spec.expert}"
        if exited.fork_server_died:
            return f"{name} ended with its fork server ({FORK_SERVER_LOG})"
        if exited.exit_code < 0:
            signal_name = signal.Signals(-exited.exit_code).name
            hint = ": out of memory, or killed from outside" if signal_name == "SIGKILL" else ""
            return f"{name} was ended by {signal_name} while {self.phase}{hint}"
        return f"{name} ended with exit code {exited.exit_code} while {self.phase}"

    @property
    def is_workers_fault(self) -> bool:
        """Whether another session would fail on the worker too.

        A process that cannot even load, for no reason that the engine could name, speaks of its worker. A gang
        does not say which of its workers it is, so its failures are the session's.
        """
        if len(self.workers) > 1:
            return False
        if self.failure is not None:
            return self.failure.is_worker
        return self.phase is Phase.LOADING

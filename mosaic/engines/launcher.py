"""Defines how a run starts and watches worker processes, on this machine or others."""

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
        """Numbers of processes; none is used twice."""

    def begin(self, folder: Path, num_workers: int, *, is_new: bool) -> None:
        """Prepare for a run.

        Parameters
        ----------
        folder
            Folder of the processes' output: ``worker-N.log``, and ``fork_server.log``.
        num_workers
            Number of workers among which this machine is divided.
        is_new
            The run has not started: slow preparations are done now, outside the run's time.

        Raises
        ------
        BackendError
            If a required resource is not available.
        """

    def open(self, process: int, workers: tuple[int, ...]) -> bool:
        """Start a process; False: not now, try again.

        Raises
        ------
        BackendError
            If no process can be started at all.
        """

    def send(self, process: int, message: ToWorker) -> None:
        """Send it a message; if it is ending, its exit is reported later."""

    def kill(self, process: int) -> None:
        """End it and all processes that it started, at once."""

    def listen(self, timeout_s: float) -> Iterator[tuple[int, FromWorker | Exited]]:
        """Yield messages, with a limited wait; the last one of a process is ``Exited``."""

    def changes(self) -> Sequence[Gone | There]:
        """List the workers that went down and came up since the last call; at first, those that are down."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("patience.")
class Patience:
    """When a worker counts as hung, and how often failures are repeated."""

    load_timeout_s: Positive = 900.0
    """An engine must be ready within this time."""
    stall_timeout_s: Positive = 180.0
    """Once ready it must finish a step within this time."""
    close_timeout_s: Positive = 30.0
    """A process must have ended within this time after its end was ordered."""
    max_retries: AtLeast0 = 2
    """Retries of a session after a failure; when a call finishes in between, counting restarts.

    In the last try its calls are served one at a time, so that a call which breaks its engine fails alone.
    """
    max_restarts: AtLeast0 = 2
    """Failed loads of a worker before it is given up, counted likewise.

    It may also lose its fork server so many times; any finished call of any worker resets that count.
    """
    servers: EndpointPatience = field(default_factory=EndpointPatience)
    """For workers that are servers."""


class Phase(StrEnum):
    """What a worker process is doing."""

    LOADING = "loading"
    SERVING = "serving"
    IDLE = "idle"
    """Its expert stays loaded, for the next session of the same expert."""
    CLOSING = "closing"


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerProcess:
    """A running worker process."""

    number: int
    spec: EngineSpec
    workers: tuple[int, ...]
    session: int | None = None
    """Number of the session that it serves."""
    phase: Phase = Phase.LOADING
    one_at_a_time: bool = False
    """It does not serve two suspected calls together, to find the one that breaks it."""
    received_ts: float = field(default_factory=time.monotonic)
    """When it last sent a message, on the machine's monotonic clock."""
    failure: Failure | None = None
    hung: str | None = None
    """Why it was killed."""
    unsent: list[ToWorker] = field(default_factory=list)

    def send(self, message: ToWorker) -> None:
        """Queue a message, sent when messages are received next: not before its cause is on disk."""
        self.unsent.append(message)

    def begin(self, phase: Phase) -> None:
        """Enter a phase, whose time limit starts now."""
        self.phase = phase
        self.received_ts = time.monotonic()

    def is_overdue(self, patience: Patience) -> bool:
        """Return whether it has sent nothing for too long."""
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
        """Describe in one line why it ended."""
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

        If a process cannot even load, and the engine gives no reason, the worker is the cause. In a gang it is not
        known which worker is the cause, so its failures count for the session.
        """
        if len(self.workers) > 1:
            return False
        if self.failure is not None:
            return self.failure.is_worker
        return self.phase is Phase.LOADING

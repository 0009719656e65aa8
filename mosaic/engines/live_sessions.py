"""The executor's view of what runs: sessions on their way, and the worker processes that serve them."""

import signal
import time
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection

from mosaic.core.checks import require_count, require_number
from mosaic.core.plan import Session
from mosaic.core.workload import CallKey
from mosaic.engines.engine import EngineSpec
from mosaic.engines.orders import Failure, Job, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When a worker counts as hung, and how often what failed is tried again."""

    load_timeout_s: float = 900.0
    """An engine must be ready within this time."""
    stall_timeout_s: float = 180.0
    """Once ready it must finish a step within this time."""
    close_timeout_s: float = 30.0
    """A process must be gone this long after it was told to end."""
    max_retries: int = 2
    """Times that a session is tried again after a failure; when a call finishes in between, counting starts anew.

    The last time its calls are served one at a time, so that a call which breaks its engine fails alone.
    """
    max_restarts: int = 2
    """Times that a worker may fail to load anything, likewise, before it is given up; for the host the same."""

    def __post_init__(self) -> None:
        for name in ("load_timeout_s", "stall_timeout_s", "close_timeout_s"):
            require_number(getattr(self, name), f"patience.{name}", above=0)
        require_count(self.max_retries, "patience.max_retries")
        require_count(self.max_restarts, "patience.max_restarts")


MAX_ISOLATED = 3
"""So many calls in a row that break their session: it is not the calls."""


class Stage(StrEnum):
    """Where a session is."""

    WAITING = "waiting"
    RUNNING = "running"
    OVER = "over"
    """All its calls have ended."""
    ABANDONED = "abandoned"
    """A worker of it is gone for good; what is left of it can be planned anew."""


@dataclass(slots=True, kw_only=True)
class LiveSession:
    """A session on its way; one that fails waits again, with the calls that are left."""

    session: Session
    spec: EngineSpec
    jobs: dict[CallKey, Job]
    """Those that have not ended, in the plan's order."""
    cancelling: set[CallKey] = field(default_factory=set)
    """Those that a process was told to drop."""
    attempt: int = 0
    num_failures: int = 0
    """In a row."""
    num_isolated: int = 0
    """Calls found to break the session, in a row."""
    stage: Stage = Stage.WAITING
    end_ts: float = 0.0
    """Of the last that happened in it."""

    @property
    def running_alone(self) -> CallKey:
        """The call that was served when calls go one at a time: the first that is ready, of those that are left."""
        return min(self.jobs.values(), key=lambda job: job.ready_s).key

    @property
    def has_ended(self) -> bool:
        return self.stage in (Stage.OVER, Stage.ABANDONED)


class Phase(StrEnum):
    """What a worker process does."""

    LOADING = "loading"
    SERVING = "serving"
    IDLE = "idle"
    """Its expert stays, for the next session of the same."""
    CLOSING = "closing"


@dataclass(slots=True, kw_only=True)
class LiveProcess:
    """A worker process while it lives."""

    number: int
    link: Connection | None
    """None once it is closed and all that was said is heard."""
    spec: EngineSpec
    workers: tuple[int, ...]
    live: LiveSession | None
    """The session that it serves."""
    phase: Phase = Phase.LOADING
    one_at_a_time: bool = False
    """Its session serves no two calls together, to find the one that breaks it."""
    heard_ts: float = field(default_factory=time.monotonic)
    """When it last said anything, on the machine's monotonic clock."""
    pid: int | None = None
    progress: Progress | None = None
    """What it last said of its session."""
    failure: Failure | None = None
    exit_code: int | None = None
    hung: str | None = None
    """Why it was killed."""
    host_died: bool = False

    def begin(self, phase: Phase) -> None:
        """Enter a phase; its time limit counts from now."""
        self.phase = phase
        self.heard_ts = time.monotonic()

    def silence_limit_s(self, patience: Patience) -> float | None:
        """How long it may say nothing; None: as long as it likes."""
        limits = {
            Phase.LOADING: patience.load_timeout_s,
            Phase.SERVING: patience.stall_timeout_s,
            Phase.CLOSING: patience.close_timeout_s,
        }
        return limits.get(self.phase)

    def cause(self) -> str:
        """Say in one line why it ended."""
        if self.hung is not None:
            return self.hung
        if self.failure is not None:
            return self.failure.cause
        name = f"the worker process of {self.spec.expert}"
        if self.host_died:
            return f"{name} ended with its host process"
        if self.exit_code is not None and self.exit_code < 0:
            signal_name = signal.Signals(-self.exit_code).name
            hint = ": out of memory, or killed from outside" if signal_name == "SIGKILL" else ""
            return f"{name} was ended by {signal_name} while {self.phase}{hint}"
        return f"{name} ended with exit code {self.exit_code} while {self.phase}"

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

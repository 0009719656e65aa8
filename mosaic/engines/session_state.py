"""The executor's view of what runs: calls and sessions on their way, and the worker processes that serve them."""

import math
import signal
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum

from mosaic.core.checks import require_count, require_number
from mosaic.core.plan import Session
from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.engines.call_queue import CallQueue
from mosaic.engines.engine import EngineSpec, Request
from mosaic.engines.launcher import Channel
from mosaic.engines.messages import Exited, Failure, ToWorker
from mosaic.runtime.journal_records import OpenedSession


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
    """Times that a worker may fail to load anything, likewise, before it is given up; for the fork server the same."""
    outage_timeout_s: float = 1800.0
    """A server that has served calls, and serves no more, is waited for so long."""
    first_pause_s: float = 0.5
    """Before it is tried again; the pause doubles each time."""
    max_pause_s: float = 30.0

    def __post_init__(self) -> None:
        pauses = ("outage_timeout_s", "first_pause_s", "max_pause_s")
        for name in ("load_timeout_s", "stall_timeout_s", "close_timeout_s", *pauses):
            require_number(getattr(self, name), f"patience.{name}", above=0)
        require_count(self.max_retries, "patience.max_retries")
        require_count(self.max_restarts, "patience.max_restarts")


OWN_BATCHES = 2
"""A process gets of its session's calls so many full batches: enough that its engine never runs dry."""
SHARED_BATCHES = 1.25
"""And of its expert's queue no more than this, so that sessions which share one end at about the same time."""
MAX_ISOLATED = 3
"""So many calls in a row that break their session: it is not the calls."""


@dataclass(slots=True, kw_only=True)
class CallState:
    """A call that was submitted and has not ended."""

    call: Call
    request: Request
    to: int | ExpertName
    """The session or the expert's queue that it was last sent to."""
    rank: tuple[int, int]
    """Its priority, and its number among all calls."""
    queue: CallQueue | None = None
    """Where it waits; None: a process has it."""
    holder: int | None = None
    """The session whose process has it."""
    is_cancelled: bool = False
    """Its process was told to drop it."""
    is_moving: bool = False
    """Its process was told to give it back; then it goes where it was sent."""
    num_moves: int = 0


class Stage(StrEnum):
    """Where a session is."""

    WAITING = "waiting"
    RUNNING = "running"
    OVER = "over"
    LOST = "lost"
    """A worker of it is gone for good."""


@dataclass(slots=True, kw_only=True)
class SessionState:
    """A session on its way; one that fails waits again, with the calls that are left."""

    session: Session
    spec: EngineSpec
    opened_ts: float
    load_start_ts: float = 0.0
    """Of its latest attempt."""
    queue: CallQueue = field(default_factory=CallQueue)
    """Its calls that no process has."""
    hands: set[CallKey] = field(default_factory=set)
    """Those that its process has."""
    coming: set[CallKey] = field(default_factory=set)
    """Those that the process of another session still has, and gives back for it."""
    suspects: set[CallKey] = field(default_factory=set)
    """Those that a process had when it broke: one of them may have done it."""
    stage: Stage = Stage.WAITING
    process: "WorkerProcess | None" = None
    """That serves it; None: its engine is not ready."""
    is_closing: bool = False
    has_all: bool = False
    """Its process knows that no call follows."""
    attempt: int = 0
    num_failures: int = 0
    """In a row."""
    num_isolated: int = 0
    """Calls found to break the session, in a row."""
    broken: str | None = None
    """Why it is not tried again: it fails what it is sent."""
    end_ts: float = 0.0
    """Of the last that happened in it."""
    ill_ts: float | None = None
    """Since when its server serves nothing; None: it serves."""
    resume_ts: float = 0.0
    """It is not tried again before."""

    @property
    def has_calls(self) -> bool:
        return bool(self.hands or self.queue or self.coming)

    def note_served(self) -> None:
        """Take note that it has served a call: failures are counted anew."""
        self.num_failures = self.num_isolated = 0
        self.ill_ts = None
        if not self.spec.has_served:
            self.spec = replace(self.spec, has_served=True)

    def opened(self, start_ts: float) -> OpenedSession:
        """Describe the start of its latest attempt, for the journal."""
        session, load_start_ts = self.session, self.load_start_ts
        return OpenedSession(
            session=session.id,
            expert=session.expert,
            node=session.node,
            workers=session.workers,
            load_start_ts=load_start_ts,
            load_s=start_ts - load_start_ts,
            start_ts=start_ts,
        )

    def is_paused(self, now: float) -> bool:
        """Whether its server is left alone for a while."""
        return self.stage is Stage.WAITING and self.resume_ts > now

    @property
    def has_ended(self) -> bool:
        return self.stage in (Stage.OVER, Stage.LOST)


class Phase(StrEnum):
    """What a worker process does."""

    LOADING = "loading"
    SERVING = "serving"
    IDLE = "idle"
    """Its expert stays, for the next session of the same."""
    CLOSING = "closing"


@dataclass(slots=True, kw_only=True)
class WorkerProcess:
    """A worker process while it lives."""

    channel: Channel
    spec: EngineSpec
    workers: tuple[int, ...]
    session: SessionState | None
    """The one that it serves."""
    phase: Phase = Phase.LOADING
    one_at_a_time: bool = False
    """It serves no two suspects together, to find the call that breaks it."""
    heard_ts: float = field(default_factory=time.monotonic)
    """When it last said anything, on the machine's monotonic clock."""
    failure: Failure | None = None
    hung: str | None = None
    """Why it was killed."""
    _unsent: list[ToWorker] = field(default_factory=list)

    @property
    def room(self) -> tuple[int, int]:
        """How many calls it may have at once, and with how many it gets none of its expert's queue."""
        session = self.session
        if session is not None and session.ill_ts is not None:
            return 1, 1  # until its server has served a call
        if self.one_at_a_time and session is not None and session.suspects and not self.spec.is_remote:
            return 1, 0
        batch = self.spec.max_num_seqs
        return OWN_BATCHES * batch, math.ceil(SHARED_BATCHES * batch)

    def send(self, message: ToWorker) -> None:
        """Send it something with the next ``flush``: not before what caused it is on the disk."""
        self._unsent.append(message)

    def flush(self) -> None:
        """Send it all that is meant for it."""
        for message in self._unsent:
            self.channel.send(message)
        self._unsent.clear()

    def begin(self, phase: Phase) -> None:
        """Enter a phase; its time limit counts from now."""
        self.phase = phase
        self.heard_ts = time.monotonic()

    def watch(self, patience: Patience) -> None:
        """Kill it if it said nothing for too long."""
        limits = {
            Phase.LOADING: patience.load_timeout_s,
            Phase.SERVING: patience.stall_timeout_s,
            Phase.CLOSING: patience.close_timeout_s,
        }
        limit_s = limits.get(self.phase)
        if limit_s is not None and self.hung is None and time.monotonic() - self.heard_ts > limit_s:
            self.hung = f"{self.spec.expert} made no progress for {limit_s:g} s while {self.phase}"
            self.channel.kill()

    def cause(self, exited: Exited) -> str:
        """Say in one line why it ended."""
        if self.hung is not None:
            return self.hung
        if self.failure is not None:
            return self.failure.cause
        name = f"the worker process of {self.spec.expert}"
        if exited.fork_server_died:
            return f"{name} ended with its fork server"
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

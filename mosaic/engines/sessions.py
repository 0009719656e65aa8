"""Sessions on their way: who loads when and where, what is tried again, and which call breaks its session."""

import heapq
import math
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from mosaic.core.checks import require_count, require_number
from mosaic.core.events import Lost
from mosaic.core.plan import Session
from mosaic.core.workload import CallKey, ExpertName
from mosaic.engines.engine import EngineSpec
from mosaic.engines.launcher import Channel
from mosaic.engines.messages import Exited, Failure, Gone, There, ToWorker
from mosaic.runtime.journal import OpenedSession


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


class CallQueue:
    """Gives calls whose time has come, of those the lower priority first, and of equal ones the one that came first."""

    def __init__(self) -> None:
        self._future: list[tuple[float, tuple[int, int], CallKey]] = []
        self._ready: list[tuple[tuple[int, int], CallKey]] = []
        self._ranks: dict[CallKey, tuple[int, int]] = {}
        """Of those that wait; what else is in the heaps has left."""

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, key: CallKey) -> bool:
        return key in self._ranks

    def in_order(self) -> list[CallKey]:
        """List the calls in the order of their ranks."""
        return sorted(self._ranks, key=self._ranks.__getitem__)

    def add(self, key: CallKey, rank: tuple[int, int], ready_s: float) -> None:
        """Let a call wait; ``rank`` is its priority and its number."""
        self._ranks[key] = rank
        heapq.heappush(self._future, (ready_s, rank, key))

    def discard(self, key: CallKey) -> bool:
        """Take a call out; False: it was not there."""
        return self._ranks.pop(key, None) is not None

    def pop(self, now: float) -> CallKey | None:
        """Take the next call out; None: none is ready."""
        self._sort(now)
        if not self._ready:
            return None
        _, key = heapq.heappop(self._ready)
        del self._ranks[key]
        return key

    def next_ready_s(self, now: float) -> float | None:
        """Tell when a call will be ready; None: one is, or none waits."""
        self._sort(now)
        return None if self._ready or not self._future else self._future[0][0]

    def _sort(self, now: float) -> None:
        """Move calls whose time has come, and drop those that have left."""
        while self._future and (self._future[0][0] <= now or self._has_left(self._future[0][2], self._future[0][1])):
            _, rank, key = heapq.heappop(self._future)
            heapq.heappush(self._ready, (rank, key))
        while self._ready and self._has_left(self._ready[0][1], self._ready[0][0]):
            heapq.heappop(self._ready)

    def _has_left(self, key: CallKey, rank: tuple[int, int]) -> bool:
        return self._ranks.get(key) != rank


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


def may_start(opened: Sequence[SessionState], sessions: Mapping[int, SessionState], now: float) -> list[SessionState]:
    """List the waiting sessions that have no other before them on their workers, and whose predecessors have ended.

    Parameters
    ----------
    opened
        Those that have not ended, in the order in which they were opened.
    sessions
        All, by number.
    now
        The instant, on the run's clock: servers that serve nothing are left alone for a while.
    """
    held: set[int] = set()
    found = []
    for state in opened:
        session = state.session
        is_followed = all(sessions[number].has_ended for number in session.after)
        is_due = state.stage is Stage.WAITING and not state.is_paused(now)
        if is_due and is_followed and held.isdisjoint(session.workers):
            found.append(state)
        held.update(session.workers)
    return found


def is_wanted(process: WorkerProcess, opened: Sequence[SessionState]) -> bool:
    """Whether what comes next on all workers of a process is one session of its expert."""
    following = [
        next((state for state in opened if worker in state.session.workers), None) for worker in process.workers
    ]
    first = following[0]
    same = first is not None and first.session.workers == process.workers and first.spec == process.spec
    return same and all(state is first for state in following)


def can_move(
    opened: Sequence[SessionState],
    processes: Iterable[WorkerProcess],
    queue_of: Callable[[ExpertName], CallQueue],
    now: float,
) -> bool:
    """Whether anything can happen by itself."""
    if any(process.phase in (Phase.LOADING, Phase.CLOSING) for process in processes):
        return True
    return any(
        state.has_all or state.has_calls or (not state.is_closing and queue_of(state.session.expert))
        for state in opened
        if state.stage is Stage.RUNNING or state.is_paused(now)
    )


def fair_share(state: SessionState, opened: Sequence[SessionState], queue: CallQueue, now: float) -> float:
    """Say how many calls a server may have, so that those of its expert are as loaded as each other."""
    if not state.spec.is_remote:
        return math.inf
    others = [one for one in opened if one.session.expert == state.session.expert and not one.is_paused(now)]
    return math.ceil((len(queue) + sum(len(one.hands) for one in others)) / len(others))


def next_changes(opened: Sequence[SessionState], queues: Iterable[CallQueue], now: float) -> list[float]:
    """List instants at which a call is ready, of a session or in a queue, or a session may be tried again."""
    waited_for = (*queues, *(state.queue for state in opened))
    ready = [ready_s for queue in waited_for if (ready_s := queue.next_ready_s(now)) is not None]
    return ready + [state.resume_ts for state in opened if state.is_paused(now)]


def why_stuck(opened: Sequence[SessionState], experts: Sequence[str]) -> str:
    """Say why nothing can happen any more, where calls wait in the queues of some experts."""
    waiting = [state.session.id for state in opened if state.stage is Stage.WAITING]
    idle = [state.session.id for state in opened if state.stage is Stage.RUNNING]
    if waiting:
        return (
            f"sessions {waiting} wait for sessions {idle}, which have no calls and are not closed, and can never start"
        )
    if experts:
        return f"calls wait for sessions of {list(experts)}, and none is open"
    return f"sessions {idle} have no calls and are not closed"


NUM_TIMES = 3
"""A call fails alone when its server has failed so often in a row, the last time with this call alone."""


def note_outage(state: SessionState, failure: Failure, patience: Patience, now: float) -> bool:
    """Let a session wait before its server is tried again; False: it is not waited for any longer.

    Pauses grow from try to try. A server that never served a call is not waited for, unless it asked for time, nor one
    whose refusal no waiting heals.
    """
    state.ill_ts = now if state.ill_ts is None else state.ill_ts
    is_awaited = (state.spec.has_served or failure.wait_s > 0) and not failure.is_fatal
    if not is_awaited or now + failure.wait_s - state.ill_ts > patience.outage_timeout_s:
        return False
    pause_s = min(patience.max_pause_s, patience.first_pause_s * 2.0 ** min(state.num_failures, 60))
    state.resume_ts = now + max(pause_s, failure.wait_s)
    state.num_failures += 1
    return True


def is_by_a_call(state: SessionState, failure: Failure, num_held: int) -> bool:
    """Say whether the only call that a server had is why it failed, as it did before.

    After some such calls in a row it is not the calls.
    """
    if failure.is_worker or num_held != 1 or state.num_failures < NUM_TIMES or state.num_isolated >= MAX_ISOLATED:
        return False
    state.num_isolated += 1
    return True


class WorkerBook:
    """Workers of a run: who is lost, since when each is free, and how often nothing could be loaded there.

    Parameters
    ----------
    num_workers
        They are numbered from 0.
    start_ts
        When the run begins or goes on.
    lost
        Workers that were given up, and why; runs that share it know of each other's.
    changes
        What has become of workers since.
    """

    def __init__(
        self, num_workers: int, start_ts: float, lost: dict[int, str], changes: Iterable[Gone | There] = ()
    ) -> None:
        self.lost = lost
        for change in changes:
            for worker in change.workers:
                if isinstance(change, Gone):
                    lost.setdefault(worker, change.cause)
                else:
                    lost.pop(worker, None)
        self._free_ts = [start_ts] * num_workers
        self._num_failed_loads = [0] * num_workers
        self._busy: set[int] = set()

    def losses(self) -> list[Lost]:
        """Tell which workers a run begins without."""
        lost = sorted(self.lost.items())
        return [Lost(0.0, worker, cause, len(lost) - number) for number, (worker, cause) in enumerate(lost, start=1)]

    def are_there(self, workers: Iterable[int]) -> bool:
        """Tell whether none of some workers is lost."""
        return self.lost.keys().isdisjoint(workers)

    def take(self, workers: Iterable[int]) -> None:
        """Note that a session waits for workers."""
        self._busy.update(workers)

    def idle(self, busy: Collection[int]) -> list[int]:
        """List the workers that no session waits for any more, given those that are waited for or in use."""
        idle = sorted(self._busy - set(busy) - self.lost.keys())
        self._busy = set(busy)
        return idle

    def free(self, workers: Iterable[int], ts: float) -> None:
        """Note that workers are free from an instant on."""
        for worker in workers:
            self._free_ts[worker] = max(self._free_ts[worker], ts)

    def free_ts(self, workers: Sequence[int]) -> float:
        """Tell since when all of some workers are free."""
        return max(self._free_ts[worker] for worker in workers)

    def note_served(self, workers: Iterable[int]) -> None:
        """Note that workers serve: failures to load are counted anew."""
        for worker in workers:
            self._num_failed_loads[worker] = 0

    def note_failed_load(self, worker: int) -> int:
        """Count a failure to load; gives how many there are in a row."""
        self._num_failed_loads[worker] += 1
        return self._num_failed_loads[worker]

    def bring_back(self, workers: Iterable[int], ts: float) -> list[int]:
        """Note that workers are there; gives those that were lost."""
        back = [worker for worker in workers if self.lost.pop(worker, None) is not None]
        self.free(back, ts)
        self.note_served(back)
        return back

"""Tracks the unended calls of a run and its sessions: the state of each determines how it can end."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

import msgspec

from mosaic.core.commands import Cancel, Cut, Move
from mosaic.core.plan import Session
from mosaic.core.results import CallRecord, CallStatus, Response
from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.engines.engine import EngineSpec, Output, Prompt, Request
from mosaic.engines.messages import ToWorker
from mosaic.runtime.journal import NO_SESSION


class CallQueue:
    """A queue of calls that are ready from an instant on; first in, first out."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, CallKey]] = []
        self._numbers: dict[CallKey, int] = {}
        """Numbers of the waiting calls; other entries of the heap have left."""

    def __len__(self) -> int:
        return len(self._numbers)

    def in_order(self) -> list[CallKey]:
        """List the calls in the order of their numbers."""
        return sorted(self._numbers, key=self._numbers.__getitem__)

    def add(self, key: CallKey, number: int, queued_ts: float) -> None:
        """Add a call that is ready at an instant, under its number among all calls."""
        self._numbers[key] = number
        heapq.heappush(self._heap, (queued_ts, number, key))

    def discard(self, key: CallKey) -> bool:
        """Remove a call; False: it was not in the queue."""
        return self._numbers.pop(key, None) is not None

    def pop(self, now: float) -> CallKey | None:
        """Remove the next call; None: no call is ready."""
        if self._first_ts() > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._numbers[key]
        if not self._numbers:
            self._numbers.clear()  # a dictionary keeps the memory of removed items
        return key

    def next_ready_s(self, now: float) -> float | None:
        """Return the instant at which a call will be ready; None: one is ready, or the queue is empty."""
        first_ts = self._first_ts()
        return first_ts if now < first_ts < math.inf else None

    def _first_ts(self) -> float:
        """Find the instant of the first call, and drop earlier entries that have left."""
        while self._heap and self._numbers.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf


@dataclass(slots=True, kw_only=True)
class CallState:
    """A submitted call that has not ended."""

    call: Call
    request: Request
    """Without its prompt, which is written when a process takes the call: the prompts of a batch need much memory."""
    to: int | ExpertName
    """The session or the expert's queue that it was last sent to."""
    number: int
    """Among all calls; where they are billed that of its question: what may be the last to be sent ends a question."""
    came_ts: float
    """Calls are sent in the order of their arrival, and then in that of their numbers."""
    queue: CallQueue | None = None
    """The queue in which it waits; None: a process has it."""
    holder: int | None = None
    """The session whose process has it."""
    is_cancelled: bool = False
    """Its process must drop it."""
    is_moving: bool = False
    """Its process must return it; then it goes to its new session."""
    num_moves: int = 0


class Stage(StrEnum):
    """The state of a session."""

    WAITING = "waiting"
    RUNNING = "running"
    OVER = "over"
    LOST = "lost"
    """One of its workers is lost."""


@dataclass(slots=True, kw_only=True, eq=False)
class SessionState:
    """The state of a session; after a failure it waits again, with the calls that are left."""

    session: Session
    spec: EngineSpec
    opened_ts: float
    load_start_ts: float = 0.0
    """Of its latest attempt."""
    stage: Stage = Stage.WAITING
    is_closing: bool = False
    has_all: bool = False
    """Its process knows that no more calls follow."""
    num_failures: int = 0
    """Consecutive failures."""
    num_isolated: int = 0
    """Consecutive calls that were found to break the session."""
    end_ts: float = 0.0
    """Instant of its last event."""
    ill_ts: float | None = None
    """Since when its server has served nothing; None: it serves."""
    resume_ts: float = 0.0
    """It is not tried again before this instant."""
    queue: CallQueue = field(default_factory=CallQueue)
    """Its calls that no process has."""
    held: set[CallKey] = field(default_factory=set)
    """Calls that its process has."""
    incoming: set[CallKey] = field(default_factory=set)
    """Calls that the process of another session still has and will return for this one."""
    suspected: set[CallKey] = field(default_factory=set)
    """Calls that a process had when it failed: one of them may be the cause."""
    send: Callable[[ToWorker], None] | None = None
    """Sends its process a message; None: its engine is not ready."""
    attempt: int = 0
    broken: str | None = None
    """Why it fails all calls."""

    @property
    def has_ended(self) -> bool:
        return self.stage in (Stage.OVER, Stage.LOST)

    @property
    def has_calls(self) -> bool:
        return bool(self.held or self.queue or self.incoming)

    def is_paused(self, now: float) -> bool:
        """Whether its server is paused for a while."""
        return self.stage is Stage.WAITING and self.resume_ts > now

    def note_served(self) -> None:
        """Reset the count of failures, since it has served a call."""
        self.num_failures = self.num_isolated = 0
        self.ill_ts = None
        if not self.spec.has_served:
            self.spec = replace(self.spec, has_served=True)


Admit: TypeAlias = Callable[[CallState, Request], Request | None]
"""Returns the request of a call that may be sent now, and None for other calls."""


@dataclass(eq=False)
class Calls:
    """All submitted calls that have not ended.

    A call waits in the queue of a session or of its expert, or a session's process has it.
    """

    sessions: Mapping[int, SessionState]
    """All opened sessions, by number."""
    now: Callable[[], float]
    """Returns the instant on the run's clock."""
    end_call: Callable[[CallRecord], None]
    """Receives the record of a call that ends here."""
    prompt_of: Callable[[CallState], Prompt]
    """Writes the prompt of a call."""

    def __post_init__(self) -> None:
        self._calls: dict[CallKey, CallState] = {}
        self._queues: dict[ExpertName, CallQueue] = defaultdict(CallQueue)

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, key: CallKey) -> CallState | None:
        """Find a call; None: it has ended, or is lost."""
        return self._calls.get(key)

    def queue_of(self, expert: ExpertName) -> CallQueue:
        """Return the queue that all sessions of an expert share."""
        return self._queues[expert]

    def experts_waited_for(self) -> list[ExpertName]:
        """List the experts whose queues are not empty."""
        return [expert for expert, queue in self._queues.items() if queue]

    def submit(self, call: CallState) -> None:
        """Queue a call where it was sent; a lost session has no queue for it."""
        self._calls[call.request.key] = call
        self._place(call)

    def redirect(self, call: CallState, to: int | ExpertName) -> None:
        """Send an unended call to another session or queue."""
        self._leave(call)
        call.to = to
        if call.holder is None:
            self._place(call)
        elif call.is_moving or (call.holder != to and not call.is_cancelled):
            if isinstance(to, int) and not self.sessions[to].has_ended:
                self.sessions[to].incoming.add(call.request.key)
            if not call.is_moving:
                call.is_moving = True
                self._send_holder(call, Move(call.request.key, NO_SESSION))

    def cancel(self, call: CallState) -> None:
        """Stop a call."""
        if call.holder is None:
            self.end([call], CallStatus.CANCELLED)
        elif not call.is_cancelled:
            call.is_cancelled = True
            if not call.is_moving:
                self._send_holder(call, Cancel(call.request.key))

    def cut(self, call: CallState, tokens: int) -> None:
        """Limit the tokens that a call may write."""
        earlier = call.request.cut_tokens
        call.request = call.request._replace(cut_tokens=tokens if earlier is None else min(earlier, tokens))
        if call.holder is not None and not call.is_moving:
            self._send_holder(call, Cut(call.request.key, tokens))

    def take(self, session: SessionState, room: int, shared_room: float, admit: Admit) -> list[Request]:
        """Give a session's process the next calls, its own first and then its expert's.

        It has at most ``room`` then, and gets none of its expert's where it has ``shared_room``; one that ``admit``
        refuses waits on.
        """
        taken: list[Request] = []
        now = self.now()
        while len(session.held) < room:
            key = session.queue.pop(now)
            if key is None and len(session.held) < shared_room:
                key = self._queues[session.session.expert].pop(now)
            if key is None:
                break
            call = self._calls[key]
            attempt = session.attempt + call.num_moves
            request = admit(call, call.request._replace(prompt=self.prompt_of(call), attempt=attempt))
            if request is None:
                assert call.queue is not None, "it has just left it"
                self._wait(call, call.queue)
                break
            call.queue, call.holder = None, session.session.id
            session.held.add(key)
            taken.append(request)
        return taken

    def take_back(self, session: SessionState, output: Output) -> None:
        """Forward a call that a session's process returned, with its written tokens; its KV cache is lost."""
        call = self._calls.get(output.key)
        if call is None or call.holder != session.session.id or not call.is_moving:
            return
        request, generated = call.request, output.token_ids
        num_read = request.prompt_tokens if output.prompt_tokens is None else output.prompt_tokens
        wasted_tokens = request.wasted_tokens + (num_read + len(generated) - 1 if generated else 0)
        call.request = request._replace(generated=generated, wasted_tokens=wasted_tokens, queued_ts=self.now())
        call.came_ts = call.request.queued_ts
        call.num_moves += 1
        session.held.discard(output.key)
        self._release(call)

    def empty(self, session: SessionState) -> list[CallState]:
        """Take all calls from a process that has ended; returns those that wait again, in their order.

        They wait for its session; calls from an expert's queue may be served by the expert's other servers.
        """
        held = sorted((self._calls[key] for key in session.held), key=lambda call: call.number)
        session.held.clear()
        waiting = [call for call in held if not (call.is_cancelled or call.is_moving)]
        for call in held:
            if call.is_cancelled or call.is_moving or (session.spec.is_remote and isinstance(call.to, str)):
                self._release(call)
            else:
                call.holder = None
                self._wait(call, session.queue)
        session.suspected.update(call.request.key for call in waiting)
        session.attempt += 1
        return waiting

    def fail(self, queue: CallQueue, cause: str) -> None:
        """End all calls of a queue as failed."""
        self.end(self._in(queue), CallStatus.FAILED, cause)

    def fail_waiting(self, cause: str) -> bool:
        """End all calls that no process has; returns whether there were any."""
        waiting = [call for call in self._calls.values() if call.holder is None]
        self.end(waiting, CallStatus.FAILED, cause)
        return bool(waiting)

    def lose(self, session: SessionState) -> None:
        """Release the calls of a lost session: its own are lost, others return to their expert's queue."""
        for call in self._in(session.queue):
            self._leave(call)
            self._place(call)

    def lose_all(self) -> None:
        """Drop all calls that wait for a session that no controller opens."""
        self._calls = {key: call for key, call in self._calls.items() if call.holder is not None}
        self._queues.clear()

    def remove(self, record: CallRecord) -> CallRecord | None:
        """Remove an ended call; returns its record, None: it was removed before.

        What is known here replaces what a process sent.
        """
        call = self._calls.pop(record.key, None)
        if call is None:
            return None
        self._leave(call)
        session = self.sessions.get(record.session)
        holder = None if call.holder is None else self.sessions[call.holder]
        for state in (session, holder):
            if state is not None:
                state.held.discard(record.key)
                state.suspected.discard(record.key)
        workers = () if session is None else session.session.workers
        return msgspec.structs.replace(record, key=call.call.key, expert=call.call.expert, workers=workers)

    def end(self, calls: Sequence[CallState], status: CallStatus, error: str | None = None) -> None:
        """End calls that no process has."""
        for record in [self._record(call, status, error) for call in calls]:
            self.end_call(record)

    def _record(self, call: CallState, status: CallStatus, error: str | None) -> CallRecord:
        request, now = call.request, self.now()
        session = self.sessions.get(call.to) if isinstance(call.to, int) else None
        return CallRecord(
            key=request.key,
            expert=call.call.expert,
            session=NO_SESSION if session is None else session.session.id,
            workers=() if session is None else session.session.workers,
            prompt_tokens=request.prompt_tokens,
            output_tokens=len(request.generated),
            queued_ts=min(max(call.call.ready_s, request.queued_ts), now),
            admitted_ts=None,
            first_token_ts=None,
            finished_ts=now,
            attempt=call.num_moves + (0 if session is None else session.attempt),
            wasted_tokens=request.wasted_tokens + len(request.generated),
            status=status,
            response=Response(error=error, fingerprint=request.fingerprint),
        )

    def _in(self, queue: CallQueue) -> list[CallState]:
        return [self._calls[key] for key in queue.in_order()]

    def _release(self, call: CallState) -> None:
        """Queue a call that no process has any more where it was sent."""
        self._leave(call)
        call.holder, call.is_moving = None, False
        if call.is_cancelled:
            self.end([call], CallStatus.CANCELLED)
        else:
            self._place(call)

    def _place(self, call: CallState) -> None:
        session = None if isinstance(call.to, str) else self.sessions[call.to]
        if session is None:
            self._wait(call, self._queues[call.call.expert])
        elif session.broken is not None:
            self.end([call], CallStatus.FAILED, session.broken)
        elif session.has_ended:
            del self._calls[call.request.key]  # lost, until it is submitted again
        else:
            self._wait(call, session.queue)

    def _wait(self, call: CallState, queue: CallQueue) -> None:
        call.queue = queue
        queue.add(call.request.key, call.number, call.came_ts)

    def _leave(self, call: CallState) -> None:
        if call.queue is not None:
            call.queue.discard(call.request.key)
            call.queue = None
        if isinstance(call.to, int):
            self.sessions[call.to].incoming.discard(call.request.key)

    def _send_holder(self, call: CallState, message: Cancel | Cut | Move) -> None:
        assert call.holder is not None, "a process has it"
        send = self.sessions[call.holder].send
        if send is not None:
            send(message)

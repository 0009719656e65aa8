"""The calls of a run that have not ended: where each waits or runs, and how it ends."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mosaic.core.commands import Cancel, Cut, Move
from mosaic.core.results import CallRecord, CallStatus, Response
from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.engines.engine import Output, Request
from mosaic.engines.sessions import CallQueue, SessionState
from mosaic.runtime.journal import NO_SESSION


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


class CallBook:
    """Knows every call that was submitted and has not ended.

    A call waits in a session's queue or its expert's, or a session's process has it.
    """

    def __init__(
        self,
        sessions: Mapping[int, SessionState],
        now: Callable[[], float],
        on_end: Callable[[CallRecord], None],
    ) -> None:
        self._sessions = sessions
        self._now = now
        self._on_end = on_end
        self._calls: dict[CallKey, CallState] = {}
        self._queues: dict[ExpertName, CallQueue] = defaultdict(CallQueue)

    def __len__(self) -> int:
        return len(self._calls)

    def get(self, key: CallKey) -> CallState | None:
        """Find a call; None: it has ended, or is nowhere."""
        return self._calls.get(key)

    def queue_of(self, expert: ExpertName) -> CallQueue:
        """The calls that any session of an expert may take."""
        return self._queues[expert]

    def experts_waited_for(self) -> list[ExpertName]:
        """Name the experts whose queues are not empty."""
        return [expert for expert, queue in self._queues.items() if queue]

    def submit(self, call: CallState) -> None:
        """Let a call wait where it was sent; a session that is lost has no place for it."""
        self._calls[call.request.key] = call
        self._place(call)

    def redirect(self, call: CallState, to: int | ExpertName) -> None:
        """Send a call that has not ended elsewhere."""
        key = call.call.key
        self._leave(call)
        call.to = to
        if call.holder is None:
            self._place(call)
        elif call.is_moving or (call.holder != to and not call.is_cancelled):
            if isinstance(to, int) and not self._sessions[to].has_ended:
                self._sessions[to].coming.add(key)
            if not call.is_moving:
                call.is_moving = True
                self._tell_holder(call, Move(key, NO_SESSION))

    def cancel(self, call: CallState) -> None:
        """Stop a call."""
        if call.holder is None:
            self.end([call], CallStatus.CANCELLED)
        elif not call.is_cancelled:
            call.is_cancelled = True
            if not call.is_moving:
                self._tell_holder(call, Cancel(call.request.key))

    def cut(self, call: CallState, tokens: int) -> None:
        """Let a call write at most so many tokens."""
        earlier = call.request.cut_tokens
        call.request = replace(call.request, cut_tokens=tokens if earlier is None else min(earlier, tokens))
        if call.holder is not None and not call.is_moving:
            self._tell_holder(call, Cut(call.request.key, tokens))

    def take(self, state: SessionState, room: int, shared_room: float) -> tuple[Request, ...]:
        """Give a session's process the calls that come next, its own first and then its expert's.

        It has at most ``room`` then, and gets none of its expert's where it has ``shared_room``.
        """
        taken: list[Request] = []
        now = self._now()
        while len(state.hands) < room:
            key = state.queue.pop(now)
            if key is None and len(state.hands) < shared_room:
                key = self._queues[state.session.expert].pop(now)
            if key is None:
                break
            call = self._calls[key]
            call.queue, call.holder = None, state.session.id
            state.hands.add(key)
            taken.append(replace(call.request, attempt=state.attempt + call.num_moves))
        return tuple(taken)

    def take_back(self, state: SessionState, output: Output) -> None:
        """Send a call on that a session's process gave back, with what it wrote; the KV cache of it is lost."""
        call = self._calls.get(output.key)
        if call is None or call.holder != state.session.id or not call.is_moving:
            return
        state.hands.discard(output.key)
        request, generated = call.request, output.token_ids
        num_read = request.prompt_tokens if output.prompt_tokens is None else output.prompt_tokens
        wasted_tokens = request.wasted_tokens + (num_read + len(generated) - 1 if generated else 0)
        call.request = replace(request, generated=generated, wasted_tokens=wasted_tokens, queued_ts=self._now())
        call.num_moves += 1
        self._release(call)

    def empty_hands(self, state: SessionState) -> list[CallState]:
        """Take all calls from a process that is gone; gives those that wait again, in their order.

        They wait for its session; what was sent to an expert's queue may be served by the expert's other servers.
        """
        held = sorted((self._calls[key] for key in state.hands), key=lambda call: call.rank)
        state.hands.clear()
        kept = []
        for call in held:
            if call.is_cancelled or call.is_moving:
                self._release(call)
                continue
            kept.append(call)
            if state.spec.is_remote and isinstance(call.to, str):
                self._release(call)
            else:
                call.holder, call.queue = None, state.queue
                state.queue.add(call.request.key, call.rank, call.call.ready_s)
        return kept

    def waiting_in(self, queue: CallQueue) -> list[CallState]:
        """List the calls of a queue."""
        return [self._calls[key] for key in queue.in_order()]

    def lose(self, state: SessionState) -> None:
        """Let go of the calls of a session that is lost: its own are nowhere, others are their expert's again."""
        for call in self.waiting_in(state.queue):
            self._leave(call)
            self._place(call)

    def lose_all(self) -> None:
        """Let go of all calls that wait for a session that nobody opens."""
        self._calls = {key: call for key, call in self._calls.items() if call.holder is not None}
        self._queues.clear()

    def note(self, record: CallRecord) -> bool:
        """Take note of a call that ended; False: that was known."""
        call = self._calls.pop(record.key, None)
        if call is None:
            return False
        self._leave(call)
        for state in (self._sessions.get(number) for number in (record.session, call.holder) if number is not None):
            if state is not None:
                state.hands.discard(record.key)
                state.suspects.discard(record.key)
        return True

    def end(self, calls: Sequence[CallState], status: CallStatus, error: str | None = None) -> None:
        """End calls that no process has."""
        for record in [self._record(call, status, error) for call in calls]:
            self._on_end(record)

    def _record(self, call: CallState, status: CallStatus, error: str | None) -> CallRecord:
        request, now = call.request, self._now()
        state = self._sessions.get(call.to) if isinstance(call.to, int) else None
        return CallRecord(
            key=request.key,
            expert=call.call.expert,
            session=NO_SESSION if state is None else state.session.id,
            workers=() if state is None else state.session.workers,
            prompt_tokens=request.prompt_tokens,
            output_tokens=len(request.generated),
            queued_ts=min(max(call.call.ready_s, request.queued_ts), now),
            admitted_ts=None,
            first_token_ts=None,
            finished_ts=now,
            attempt=call.num_moves + (0 if state is None else state.attempt),
            wasted_tokens=request.wasted_tokens + len(request.generated),
            status=status,
            response=Response(error=error, fingerprint=request.fingerprint),
        )

    def _release(self, call: CallState) -> None:
        """Put a call that no process has any more where it was sent."""
        self._leave(call)
        call.holder, call.is_moving = None, False
        if call.is_cancelled:
            self.end([call], CallStatus.CANCELLED)
        else:
            self._place(call)

    def _place(self, call: CallState) -> None:
        key, state = call.request.key, None if isinstance(call.to, str) else self._sessions[call.to]
        if state is not None and state.broken is not None:
            self.end([call], CallStatus.FAILED, state.broken)
        elif state is not None and state.has_ended:
            del self._calls[key]  # nowhere, until it is submitted again
        else:
            call.queue = self._queues[call.call.expert] if state is None else state.queue
            call.queue.add(key, call.rank, call.call.ready_s)

    def _leave(self, call: CallState) -> None:
        if call.queue is not None:
            call.queue.discard(call.request.key)
            call.queue = None
        if isinstance(call.to, int):
            self._sessions[call.to].coming.discard(call.request.key)

    def _tell_holder(self, call: CallState, message: Cancel | Cut | Move) -> None:
        assert call.holder is not None, "a process has it"
        process = self._sessions[call.holder].process
        if process is not None:
            process.send(message)

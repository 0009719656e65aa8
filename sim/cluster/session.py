"""Simulates calls and sessions in progress, and the queues of calls that wait for a session."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import simpy
from msgspec.structs import replace

from mosaic.core.errors import BackendError
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord, CallStatus, SessionRecord
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, Prefix
from sim.cluster.expert_on_gpu import ExpertOnGpu
from sim.engine.engine import Engine
from sim.engine.request import Request

PREFILL = -1
"""Engines use this number for requests of prefills; no call's number is negative."""


def cut_off(call: Call, expert: Expert, outcome: Outcome) -> Outcome:
    """Return an expert's outcome with its KV cache, cut off at its limit: at the limit it has no answer.

    Raises
    ------
    BackendError
        If the prompt leaves no room for an answer.
    """
    limit = expert.output_limit(call.prompt_tokens)
    if limit < 1:
        raise BackendError(
            f"call {call.key}: prompt_tokens must be below {expert.name}'s context of {expert.context_limit}, "
            f"got {call.prompt_tokens}"
        )
    return (
        outcome.with_kv_budget(expert.kv_budget_tokens) if outcome.output_tokens < limit else unanswered(outcome, limit)
    )


def unanswered(outcome: Outcome, output_tokens: int) -> Outcome:
    """Describe a response that ends before its answer; if thinking is not visible, no token of it is."""
    return Outcome(output_tokens, None, None if outcome.visible_tokens is None else 0, outcome.confidence)


class PendingCall(msgspec.Struct, eq=False):
    """A submitted call that has not ended, with its true outcome."""

    call: Call
    outcome: Outcome
    queued_ts: float
    prefix: Prefix | None
    """What its prompt begins with, that of it included which was prefilled ahead."""
    place: "SimSession | None" = None
    """None: it waits in its expert's queue."""
    number: int = -1
    """Number in its session."""
    request: Request | None = None
    """None: no engine has it."""
    status: CallStatus = CallStatus.FINISHED
    """The status that it ends with."""
    # What a move leaves behind:
    generated: int = 0
    num_preemptions: int = 0
    wasted_tokens: int = 0
    attempt: int = 0
    admitted_ts: float | None = None
    first_token_ts: float | None = None

    @property
    def engine(self) -> Engine | None:
        """The engine of its session; None: it has none."""
        return None if self.place is None else self.place.engine

    def leave_engine(self, now: float) -> bool:
        """Remove the call from its engine, to continue elsewhere; False if it has just finished."""
        request, engine = self.request, self.engine
        if request is None or engine is None:
            return True
        if not engine.abort(request, now):
            return False
        self.request = None
        self.generated = request.num_generated
        self.num_preemptions += request.num_preemptions
        self.wasted_tokens += request.wasted_tokens
        self.admitted_ts = request.admitted_ts if self.admitted_ts is None else self.admitted_ts
        self.first_token_ts = request.first_token_ts if self.first_token_ts is None else self.first_token_ts
        return True

    def with_attempts(self, record: CallRecord) -> CallRecord:
        """Add the costs of earlier attempts to a record of the last one."""
        return replace(
            record,
            queued_ts=self.queued_ts,
            admitted_ts=record.admitted_ts if self.admitted_ts is None else self.admitted_ts,
            first_token_ts=record.first_token_ts if self.first_token_ts is None else self.first_token_ts,
            num_preemptions=self.num_preemptions + record.num_preemptions,
            attempt=self.attempt,
            wasted_tokens=self.wasted_tokens + record.wasted_tokens,
        )

    def cut(self, tokens: int, now: float) -> bool:
        """Limit the tokens of the call, to one more than it has at the least; False if it has just finished."""
        left, engine = max(tokens, self.generated + 1), self.engine
        if engine is not None and self.request is not None:
            if not engine.cut(self.request, left, now):
                return False
            left = self.request.output_tokens
        if left < self.outcome.output_tokens:
            self.outcome = unanswered(self.outcome, left)
            self.status = CallStatus.CUT
        return True

    def cancelled(self, now: float) -> CallRecord | None:
        """Record the call as cancelled; None if it has just finished."""
        started = self.request is not None
        if not self.leave_engine(now):
            return None
        session = self.place
        return CallRecord(
            key=self.call.key,
            expert=self.call.expert,
            session=-1 if session is None else session.session.id,
            workers=() if session is None else session.session.workers,
            prompt_tokens=self.call.prompt_tokens,
            output_tokens=self.generated,
            queued_ts=min(self.queued_ts, now),
            admitted_ts=self.admitted_ts if started or self.attempt else None,
            first_token_ts=self.first_token_ts,
            finished_ts=now,
            num_preemptions=self.num_preemptions,
            attempt=self.attempt,
            wasted_tokens=self.wasted_tokens,
            status=CallStatus.CANCELLED,
        )


class SimSession:
    """A session in progress: it waits for its workers, loads, serves calls until it is closed, and ends."""

    def __init__(self, session: Session, model: ExpertOnGpu, over: simpy.Event, drained: simpy.Event) -> None:
        self.session = session
        self._named = (session.id, session.expert, session.workers)
        self.model = model
        self.requests: list[simpy.resources.resource.Request] = []
        """For memory on its workers."""
        self.turns: list[simpy.resources.resource.Request] = []
        """For its turn to serve, if another session may have memory beside it; empty otherwise, or if all serve
        together."""
        self.over = over
        """Triggered when it has left its workers."""
        self.is_closing = False
        self.engine: Engine | None = None
        """None: not up yet, or ended."""
        self.drained = drained
        """Triggered when it is closed and has no calls left."""
        self.pace = 1
        """Number of engines that take turns on its GPU."""
        self.change = -1
        """Number of its engine's next change of batch, among all computed changes."""
        self.calls: dict[int, PendingCall] = {}
        """Its calls, by their number in the session."""
        self.on_prefilled: Callable[[Request], None] | None = None
        """Receives finished requests of prefills."""
        self._num_calls = 0
        self._num_finished = self._output_tokens = 0

    @property
    def takes_calls(self) -> bool:
        """Whether it serves and has not been closed."""
        return self.engine is not None and not self.is_closing

    def calls_per_rank(self) -> float:
        """Mean number of calls of each of its engines."""
        return len(self.calls) / self.model.expert.num_ranks

    def add(self, pending: PendingCall, now: float) -> None:
        """Take a call.

        Raises
        ------
        BackendError
            If it can never fit into the engine.
        """
        pending.place = self
        pending.number = self._num_calls
        self._num_calls += 1
        self.calls[pending.number] = pending
        if self.engine is not None:
            self._submit(pending, self.engine, now)

    def start(self, engine: Engine, now: float) -> None:
        """Start the engine and give it the waiting calls."""
        self.engine = engine
        for pending in self.calls.values():
            self._submit(pending, engine, now)

    @property
    def is_busy(self) -> bool:
        """Whether its engine has work."""
        return self.engine is not None and bool(self.calls)

    def set_pace(self, pace: int, now: float) -> None:
        """Let its engine take turns with others; ``pace`` is their number, itself included."""
        assert self.engine is not None
        self.pace = pace
        self.engine.set_pace(pace, now)

    def _submit(self, pending: PendingCall, engine: Engine, now: float) -> None:
        call, output_tokens = pending.call, pending.outcome.output_tokens
        ready_ts = now if call.ready_s < now else call.ready_s
        try:
            request = engine.submit(
                pending.number, call.prompt_tokens, output_tokens, ready_ts, pending.generated,
                prefix=pending.prefix,
            )  # fmt: skip
        except ValueError as error:
            raise BackendError(
                f"session {self.session.id} of {self.session.expert!r}, call {call.key}: {error}"
            ) from error
        pending.request = request
        if not pending.attempt:
            pending.queued_ts = ready_ts

    def remove(self, pending: PendingCall) -> None:
        """Remove a call that was cancelled or moved."""
        del self.calls[pending.number]

    def num_generated(self) -> dict[CallKey, int]:
        """Count the tokens of its calls so far."""
        assert self.engine is not None
        running = [(pending.call.key, pending.request) for pending in self.calls.values()]
        return {key: self.engine.num_generated(request) for key, request in running if request is not None}

    def finish(self, requests: Sequence[Request]) -> list[CallRecord]:
        """Record finished requests."""
        number, expert, workers = self._named
        records = []
        for request in requests:
            if request.id == PREFILL and self.on_prefilled is not None:
                self.on_prefilled(request)
                continue
            pending = self.calls.pop(request.id)
            call, outcome = pending.call, pending.outcome
            output_tokens = request.output_tokens
            self._output_tokens += output_tokens
            record = CallRecord(
                call.key, expert, number, workers, call.prompt_tokens, output_tokens,
                request.queued_ts, request.admitted_ts, request.first_token_ts, request.finished_ts,
                request.num_preemptions, 0, request.cached_tokens, request.wasted_tokens, pending.status,
                outcome.answer, outcome.visible_tokens, None, outcome.confidence,
            )  # fmt: skip
            records.append(pending.with_attempts(record) if pending.attempt else record)
        if not self.calls:
            self.calls.clear()  # a dictionary keeps the memory of removed items
        self._num_finished += len(records)
        return records

    def record(self, load_start_ts: float, load_s: float, start_ts: float, end_ts: float) -> SessionRecord:
        """Record the session, with the calls that it finished."""
        return SessionRecord(
            session=self.session.id,
            expert=self.session.expert,
            node=self.session.node,
            workers=self.session.workers,
            load_start_ts=load_start_ts,
            load_s=load_s,
            start_ts=start_ts,
            end_ts=end_ts,
            num_calls=self._num_finished,
            output_tokens=self._output_tokens,
        )


class Queues:
    """One queue per expert, first in, first out."""

    def __init__(self) -> None:
        self.waiting: dict[ExpertName, dict[CallKey, PendingCall]] = {}
        """By expert with waiting calls; the backend keeps a reference to this dictionary."""

    def __len__(self) -> int:
        """Count the experts with waiting calls."""
        return len(self.waiting)

    def push(self, pending: PendingCall) -> None:
        """Add a call to its expert's queue."""
        self.waiting.setdefault(pending.call.expert, {})[pending.call.key] = pending

    def hand_out(
        self, expert: ExpertName, sessions: Iterable[SimSession], max_num_seqs: int
    ) -> Iterator[tuple[PendingCall, SimSession]]:
        """Give calls to sessions with room, while the caller adds them: the one with the fewest per rank is first."""
        sessions = list(sessions)
        while expert in self.waiting and sessions:
            live = min(sessions, key=SimSession.calls_per_rank)
            if live.calls_per_rank() >= max_num_seqs:
                return
            pending = next(iter(self.waiting[expert].values()))
            self.remove(pending)
            yield pending, live

    def remove(self, pending: PendingCall) -> None:
        """Remove a call from any queue."""
        expert = pending.call.expert
        del self.waiting[expert][pending.call.key]
        if not self.waiting[expert]:
            del self.waiting[expert]

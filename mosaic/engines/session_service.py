"""Serves one session on a loaded engine: calls in, what became of them out."""

import select
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from mosaic.core.results import CallRecord, CallStatus, PrefillRecord, Response
from mosaic.core.workload import CallKey
from mosaic.engines.engine import Aborted, Engine, Generation, Request
from mosaic.engines.messages import (
    Abort,
    Ahead,
    Alive,
    CallSpec,
    Finish,
    FromWorker,
    Limit,
    Returned,
    Run,
    Serve,
    ToWorker,
)
from mosaic.runtime.journal_records import ClosedSession, EndedCall, EndedPrefill, OpenedSession

HEARTBEAT_S = 0.5
"""A worker whose engine moves says so this often."""
CUT = "cut"
"""The finish reason of a call that was told to stop with what it has."""


class SessionService:
    """Serves the calls that it is sent, until it is told that the last of them is there."""

    def __init__(
        self,
        serve: Serve,
        engine: Engine,
        tell: Callable[[FromWorker], None],
        link: Connection,
        zero_ts: float,
    ) -> None:
        self._serve = serve
        self._engine = engine
        self._tell = tell
        self._link = link
        self._zero_ts = zero_ts
        self._running: dict[int, CallSpec] = {}
        self._limits: dict[int, int] = {}
        self._ahead: dict[int, tuple[CallSpec, float]] = {}
        """Prefills under way, with when they came."""
        self._inbox = select.poll()  # the link's own poll costs a tenth of a millisecond, at every step
        self._inbox.register(link, select.POLLIN)
        self._start_ts = 0.0
        self._next_number = 0
        self._has_all = False
        self._shown_ts = 0.0

    def run(self) -> None:
        """Serve all calls, then close the session."""
        serve, load_start_ts = self._serve, self._serve.load_start_ts
        spent_cpu_s = time.process_time() if serve.is_resident else 0.0
        self._start_ts = load_start_ts if serve.is_resident else max(self._now(), load_start_ts)
        self._tell(
            OpenedSession(
                session=serve.session,
                expert=serve.expert,
                node=serve.node,
                workers=serve.workers,
                load_start_ts=load_start_ts,
                load_s=self._start_ts - load_start_ts,
                start_ts=self._start_ts,
            )
        )
        while self._running or not self._has_all:
            self._listen()
            if self._running or self._ahead:
                for generation in self._engine.step():
                    self._finish(generation)
            if self._limits:
                self._cut()
            self._show_life()
        self._drop_ahead(list(self._ahead))
        cpu_s = None if serve.is_remote else time.process_time() - spent_cpu_s
        self._tell(ClosedSession(session=serve.session, end_ts=self._now(), cpu_s=cpu_s))

    def _now(self) -> float:
        return time.monotonic() - self._zero_ts

    def _on_run(self, ts: float | None) -> float | None:
        """Turn an instant of the machine's clock into one of the run's."""
        return None if ts is None else ts - self._zero_ts

    def _listen(self) -> None:
        """Take messages; where nothing runs, wait for them."""
        idle_s = 0.0 if self._running or self._ahead else HEARTBEAT_S
        while not self._has_all and self._inbox.poll(1000 * idle_s):
            self._handle(self._link.recv())
            idle_s = 0.0
        while self._has_all and self._running and self._inbox.poll(0):
            self._handle(self._link.recv())

    def _handle(self, message: ToWorker) -> None:
        if isinstance(message, Run):
            for call in message.calls:
                self._submit(call)
        elif isinstance(message, Ahead):
            self._prefill(message.call)
        elif isinstance(message, Finish):
            self._has_all = True
        elif isinstance(message, Abort | Limit):
            number = next((number for number, call in self._running.items() if call.key == message.key), None)
            if number is None:
                return  # it has ended
            if isinstance(message, Limit):
                self._limits[number] = message.tokens
            else:
                self._abort(number, message.is_moved)
        else:
            raise AssertionError(f"no message for a session under way: {message!r}")

    def _prefill(self, call: CallSpec) -> None:
        """Have the beginning of a prompt computed, where the engine can."""
        self._drop_ahead([number for number, (other, _) in self._ahead.items() if other.key == call.key])
        number = self._next_number
        self._next_number += 1
        try:
            self._engine.submit(
                Request(
                    number=number,
                    prompt=call.prompt,
                    seed=call.seed,
                    temperature=call.temperature,
                    max_output_tokens=1,
                    is_beginning=True,
                )
            )
        except ValueError:
            return  # the call itself says why, when it comes
        self._ahead[number] = call, self._now()

    def _drop_ahead(self, numbers: Sequence[int]) -> None:
        """Stop prefills; of those that had been started nobody knows how far they were, so they count as whole."""
        for number in numbers:
            gone = self._engine.abort(number)
            num_read = 0 if gone.scheduled_ts is None else gone.prompt_tokens or 0
            self._end_prefill(number, self._now(), gone.prompt_tokens, 0, num_read)

    def _end_prefill(
        self, number: int, ts: float, prompt_tokens: int | None, cached_tokens: int, computed_tokens: int
    ) -> None:
        call, queued_ts = self._ahead.pop(number)
        record = PrefillRecord(
            key=call.key,
            expert=self._serve.expert,
            session=self._serve.session,
            prompt_tokens=call.prompt_tokens if prompt_tokens is None else prompt_tokens,
            cached_tokens=cached_tokens,
            computed_tokens=computed_tokens,
            queued_ts=queued_ts,
            finished_ts=ts,
        )
        self._tell(EndedPrefill(record))

    def _submit(self, call: CallSpec) -> None:
        self._drop_ahead([number for number, (other, _) in self._ahead.items() if other.key == call.key])
        number, limit = self._next_number, call.cut_tokens
        self._next_number += 1
        most = (
            call.max_output_tokens
            if limit is None
            else max(min(call.max_output_tokens, limit), len(call.generated) + 1)
        )
        exactly = call.output_tokens
        request = Request(
            number=number,
            prompt=call.prompt,
            seed=call.seed,
            temperature=call.temperature,
            max_output_tokens=most,
            output_tokens=None if exactly is None else min(exactly, most),
            generated=call.generated,
            sampling=call.sampling,
            with_confidence=call.with_confidence,
        )
        try:
            self._engine.submit(request)
        except ValueError as error:
            response = Response(error=str(error), fingerprint=call.fingerprint)
            self._end(call, CallStatus.FAILED, self._now(), response)
            return
        self._running[number] = call
        if limit is not None:
            self._limits[number] = limit

    def _finish(self, generation: Generation) -> None:
        if generation.number in self._ahead:
            read, cached = generation.prompt_tokens or 0, generation.cached_tokens
            self._end_prefill(generation.number, generation.last_token_ts - self._zero_ts, read, cached, read - cached)
            return
        call, limit = self._running.pop(generation.number), self._limits.pop(generation.number, None)
        output_tokens = len(generation.token_ids) if generation.output_tokens is None else generation.output_tokens
        is_whole = call.output_tokens is not None and output_tokens >= call.output_tokens
        is_cut = limit is not None and limit <= output_tokens < call.max_output_tokens
        is_cut = is_cut and generation.finish_reason == "length" and not is_whole
        status = CallStatus.CUT if is_cut else CallStatus.FINISHED
        self._end(
            call,
            status if generation.error is None else CallStatus.FAILED,
            generation.last_token_ts - self._zero_ts,
            Response(
                text=generation.text,
                token_ids=generation.token_ids,
                finish_reason=CUT if is_cut else generation.finish_reason,
                thinking_opened=generation.thinking_opened,
                error=generation.error,
                fingerprint=call.fingerprint,
            ),
            prompt_tokens=call.prompt_tokens if generation.prompt_tokens is None else generation.prompt_tokens,
            output_tokens=output_tokens,
            admitted_ts=self._on_run(generation.scheduled_ts),
            first_token_ts=self._on_run(generation.first_token_ts),
            attempt=call.attempt + generation.num_retries,
            num_preemptions=generation.num_preemptions,
            cached_tokens=generation.cached_tokens,
            visible_tokens=generation.visible_tokens,
            confidence=generation.confidence,
        )

    def _cut(self) -> None:
        """Stop calls that have written as much as they may; those of an engine that cannot tell go on."""
        written = self._engine.progress()
        for number, limit in list(self._limits.items()):
            if written.get(number, 0) >= limit:
                call = self._running[number]
                gone = self._drop(number)
                self._end_early(call, CallStatus.CUT, gone, call.wasted_tokens)

    def _abort(self, number: int, is_moved: bool) -> None:
        call = self._running[number]
        gone = self._drop(number)
        if is_moved:
            read = call.prompt_tokens if gone.prompt_tokens is None else gone.prompt_tokens
            num_computed = read + len(gone.token_ids) - 1 if gone.token_ids else 0
            self._tell(Returned(self._serve.session, call.key, gone.token_ids, num_computed))
        else:
            self._end_early(call, CallStatus.CANCELLED, gone, call.wasted_tokens + len(gone.token_ids))

    def _drop(self, number: int) -> Aborted:
        self._limits.pop(number, None)
        del self._running[number]
        return self._engine.abort(number)

    def _end_early(self, call: CallSpec, status: CallStatus, gone: Aborted, wasted_tokens: int) -> None:
        """End a call that was aborted; only one that was cut keeps what it said."""
        response, visible_tokens = Response(fingerprint=call.fingerprint), None
        if status is CallStatus.CUT:
            visible_tokens = gone.visible_tokens
            response = Response(gone.text, gone.token_ids, CUT, gone.thinking_opened, None, call.fingerprint)
        self._end(
            call,
            status,
            self._now(),
            response,
            prompt_tokens=call.prompt_tokens if gone.prompt_tokens is None else gone.prompt_tokens,
            output_tokens=len(gone.token_ids),
            admitted_ts=self._on_run(gone.scheduled_ts),
            first_token_ts=self._on_run(gone.first_token_ts),
            wasted_tokens=wasted_tokens,
            visible_tokens=visible_tokens,
        )

    def _end(self, call: CallSpec, status: CallStatus, finished_ts: float, response: Response, **known: Any) -> None:
        unknown = {"output_tokens": 0, "admitted_ts": None, "first_token_ts": None, "attempt": call.attempt}
        values = unknown | {"prompt_tokens": call.prompt_tokens, "wasted_tokens": call.wasted_tokens} | known
        record = CallRecord(
            key=call.key,
            expert=self._serve.expert,
            session=self._serve.session,
            workers=self._serve.workers,
            queued_ts=min(max(call.queued_ts, self._start_ts), finished_ts),
            finished_ts=finished_ts,
            status=status,
            response=response,
            **values,
        )
        self._tell(EndedCall(record))

    def _show_life(self) -> None:
        now = time.monotonic()
        if now - self._shown_ts >= HEARTBEAT_S:
            self._shown_ts = now
            keys: dict[int, CallKey] = {number: call.key for number, call in self._running.items()}
            tokens = {keys[number]: count for number, count in self._engine.progress().items() if number in keys}
            self._tell(Alive(self._serve.session, tokens))

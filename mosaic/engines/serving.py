"""Serves one session on a loaded engine: receives requests and commands, sends events."""

import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from mosaic.core.commands import Cancel, Close, Cut, Move
from mosaic.core.events import Finished, Prefilled, Progress, Ready
from mosaic.core.results import CallRecord, CallStatus, PrefillRecord, Response
from mosaic.core.workload import CallKey
from mosaic.engines.engine import Engine, Output, Request
from mosaic.engines.messages import FromWorker, Load, Serve, ToWorker
from mosaic.runtime.journal import ClosedSession

HEARTBEAT_S = 0.5
"""Interval at which a worker with a running engine reports it."""
CUT = "cut"
"""The finish reason of a call that was cut."""


@dataclass(eq=False)
class SessionService:
    """Serves the requests that it receives, until its session is closed and the last of them has ended."""

    serve: Serve
    load: Load
    engine: Engine
    send: Callable[[FromWorker], None]
    link: Connection

    def __post_init__(self) -> None:
        self._session = self.serve.session
        self._running: dict[CallKey, Request] = {}
        self._beginnings: dict[CallKey, Request] = {}
        """Running prefills."""
        self._inbox = select.poll()  # the link's own poll takes a tenth of a millisecond, at every step
        self._inbox.register(self.link, select.POLLIN)
        self._start_ts = 0.0
        self._is_closing = False
        self._shown_ts = 0.0

    def run(self) -> None:
        """Serve all requests, then close the session."""
        serve, load_start_ts = self.serve, self.serve.load_start_ts
        spent_cpu_s = time.process_time() if serve.is_resident else 0.0
        self._start_ts = load_start_ts if serve.is_resident else max(self._now(), load_start_ts)
        self.send(Ready(self._start_ts, self._session.id))
        while self._running or not self._is_closing:
            self._listen()
            if self._running or self._beginnings:
                for output in self.engine.step():
                    self._finish(output)
            self._cut()
            self._show_life()
        self._drop_beginnings(list(self._beginnings))
        cpu_s = None if self.load.spec.is_remote else time.process_time() - spent_cpu_s
        self.send(ClosedSession(session=self._session.id, end_ts=self._now(), cpu_s=cpu_s))

    def _now(self) -> float:
        return time.monotonic() - self.load.zero_ts

    def _on_run(self, ts: float | None) -> float | None:
        """Convert an instant of the machine's clock to the run's clock."""
        return None if ts is None else ts - self.load.zero_ts

    def _listen(self) -> None:
        """Receive messages; if no request runs, wait for them."""
        idle_s = 0.0 if self._running or self._beginnings else HEARTBEAT_S
        while not self._is_closing and self._inbox.poll(1000 * idle_s):
            self._handle(self.link.recv())
            idle_s = 0.0
        while self._is_closing and self._running and self._inbox.poll(0):
            self._handle(self.link.recv())

    def _handle(self, message: ToWorker) -> None:
        match message:
            case list():
                for request in message:
                    self._submit(request)
            case Close():
                self._is_closing = True
            case Cancel(key=key) | Cut(key=key) | Move(key=key):
                if key in self._running:  # otherwise it has ended
                    self._change(message)
            case _:
                raise AssertionError(f"no message for a running session: {message!r}")

    def _change(self, command: Cancel | Cut | Move) -> None:
        request = self._running[command.key]
        if isinstance(command, Cut):
            self._running[command.key] = request._replace(cut_tokens=command.tokens)
        elif isinstance(command, Move):
            self.send(self._drop(command.key))
        else:
            self._end(request, CallStatus.CANCELLED, self._drop(command.key), Response())

    def _submit(self, request: Request) -> None:
        key = request.key
        if key in self._beginnings:
            self._drop_beginnings([key])
        try:
            self.engine.submit(_limited(request))
        except ValueError as error:
            if not request.is_beginning:  # the call itself reports the reason, when it arrives
                self._end(request, CallStatus.FAILED, Output(key), Response(error=str(error)))
            return
        if request.is_beginning:
            self._beginnings[key] = request._replace(queued_ts=self._now())
        else:
            self._running[key] = request

    def _finish(self, output: Output) -> None:
        key = output.key
        if key in self._beginnings:
            self._end_beginning(output, (output.prompt_tokens or 0) - output.cached_tokens)
            return
        request = self._running.pop(key)
        limit = request.cut_tokens
        is_whole = request.output_tokens is not None and output.num_written >= request.output_tokens
        is_cut = limit is not None and limit <= output.num_written < request.max_output_tokens
        is_cut = is_cut and output.finish_reason == "length" and not is_whole
        status = CallStatus.CUT if is_cut else CallStatus.FINISHED
        response = Response(
            content=output.text,
            token_ids=output.token_ids,
            finish_reason=CUT if is_cut else output.finish_reason,
            thinking_opened=output.thinking_opened,
            error=output.error,
        )
        self._end(request, status if output.error is None else CallStatus.FAILED, output, response)

    def _cut(self) -> None:
        """Stop calls that have reached their token limit; those of an engine that does not count continue."""
        limits = {key: request.cut_tokens for key, request in self._running.items() if request.cut_tokens is not None}
        written = self.engine.progress() if limits else {}
        for key, limit in limits.items():
            if written.get(key, 0) >= limit:
                request, output = self._running[key], self._drop(key)
                response = Response(output.text, output.token_ids, CUT, output.thinking_opened)
                self._end(request, CallStatus.CUT, output, response)

    def _drop(self, key: CallKey) -> Output:
        del self._running[key]
        return self.engine.abort(key)

    def _drop_beginnings(self, keys: Sequence[CallKey]) -> None:
        """Stop prefills; the progress of started ones is not known, so they count as complete."""
        for key in keys:
            output = self.engine.abort(key)
            self._end_beginning(output, 0 if output.scheduled_ts is None else output.prompt_tokens or 0)

    def _end_beginning(self, output: Output, computed_tokens: int) -> None:
        request = self._beginnings.pop(output.key)
        finished_ts = self._now() if output.last_token_ts is None else output.last_token_ts - self.load.zero_ts
        record = PrefillRecord(
            key=output.key,
            expert=self._session.expert,
            session=self._session.id,
            prompt_tokens=request.prompt_tokens if output.prompt_tokens is None else output.prompt_tokens,
            cached_tokens=output.cached_tokens,
            computed_tokens=computed_tokens,
            queued_ts=request.queued_ts,
            finished_ts=finished_ts,
        )
        self.send(Prefilled(finished_ts, record))

    def _end(self, request: Request, status: CallStatus, output: Output, response: Response) -> None:
        finished_ts = self._now() if output.last_token_ts is None else output.last_token_ts - self.load.zero_ts
        is_cancelled = status is CallStatus.CANCELLED
        record = CallRecord(
            key=request.key,
            expert=self._session.expert,
            session=self._session.id,
            workers=self._session.workers,
            prompt_tokens=request.prompt_tokens if output.prompt_tokens is None else output.prompt_tokens,
            output_tokens=output.num_written,
            queued_ts=min(max(request.queued_ts, self._start_ts), finished_ts),
            admitted_ts=self._on_run(output.scheduled_ts),
            first_token_ts=self._on_run(output.first_token_ts),
            finished_ts=finished_ts,
            num_preemptions=output.num_preemptions,
            attempt=request.attempt + output.num_retries,
            cached_tokens=output.cached_tokens,
            wasted_tokens=request.wasted_tokens + (len(output.token_ids) if is_cancelled else 0),
            status=status,
            visible_tokens=None if is_cancelled else output.visible_tokens,
            response=response._replace(fingerprint=request.fingerprint),
            confidence=output.confidence,
        )
        self.send(Finished(finished_ts, record))

    def _show_life(self) -> None:
        now = time.monotonic()
        if now - self._shown_ts >= HEARTBEAT_S:
            self._shown_ts = now
            tokens = {key: count for key, count in self.engine.progress().items() if key in self._running}
            self.send(Progress(self._now(), self._session.id, tokens))


def _limited(request: Request) -> Request:
    """Limit a request to its cut; at least one token after those generated before."""
    if request.cut_tokens is None:
        return request
    most = max(min(request.max_output_tokens, request.cut_tokens), len(request.generated) + 1)
    exactly = None if request.output_tokens is None else min(request.output_tokens, most)
    return request._replace(max_output_tokens=most, output_tokens=exactly)

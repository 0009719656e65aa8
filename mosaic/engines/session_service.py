"""Serves one session on a loaded engine: jobs in, entries for the journal out."""

import select
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from mosaic.core.results import CallStatus
from mosaic.core.workload import CallKey
from mosaic.engines.engine import Engine, Request, Response
from mosaic.engines.orders import CancelOrder, FromWorker, Job, Progress, Served, ServeOrder
from mosaic.engines.session_entries import ended_call, opened_session
from mosaic.runtime.journal_records import ClosedSession, EndedCall

HEARTBEAT_S = 0.5
"""A worker whose engine moves says so this often."""


class SessionService:
    """Serves the jobs of one session.

    Jobs are given to the engine in their order when they are ready, and no more than keep its batch full: a long
    shard then starts at once, and not when its last prompt is read.
    """

    def __init__(
        self,
        order: ServeOrder,
        engine: Engine,
        tell: Callable[[FromWorker], None],
        link: Connection,
        zero_ts: float,
        batch_size: int,
    ) -> None:
        self._order = order
        self._engine = engine
        self._tell = tell
        self._link = link
        self._zero_ts = zero_ts
        self._waiting = deque(sorted(order.jobs, key=lambda job: job.ready_s))
        self._running: dict[int, Job] = {}
        self._inbox = select.poll()  # the link's own poll costs a tenth of a millisecond, at every step
        self._inbox.register(link, select.POLLIN)
        self._backlog = 1 if order.one_at_a_time else 2 * batch_size
        self._start_ts = 0.0
        self._next_number = 0
        self._num_ended = 0
        self._output_tokens = 0
        self._shown_ts = 0.0

    def run(self) -> None:
        """Serve all jobs, then close the session."""
        order, load_start_ts = self._order, self._order.load_start_ts
        spent_cpu_s = time.process_time() if order.is_resident else 0.0
        self._start_ts = load_start_ts if order.is_resident else max(self._now(), load_start_ts)
        self._tell(opened_session(order, self._start_ts))
        while self._waiting or self._running:
            self._obey()
            self._submit_ready()
            if self._running:
                for response in self._engine.step():
                    self._finish(response)
            self._show_life()
        end_ts = self._now()
        cpu_s = time.process_time() - spent_cpu_s
        self._tell(
            ClosedSession(plan=order.plan, session=order.session, attempt=order.attempt, end_ts=end_ts, cpu_s=cpu_s)
        )
        self._tell(Served(order.session, end_ts))

    def _now(self) -> float:
        return time.monotonic() - self._zero_ts

    def _obey(self) -> None:
        """Take orders; where nothing runs, wait for them or for the next job to be ready."""
        idle_s = 0.0 if self._running or not self._waiting else max(0.0, self._waiting[0].ready_s - self._now())
        if self._inbox.poll(1000 * min(idle_s, HEARTBEAT_S)):
            message = self._link.recv()
            assert isinstance(message, CancelOrder), f"no order for a session under way: {message!r}"
            for key in message.keys:
                self._cancel(key)

    def _submit_ready(self) -> None:
        now = self._now()
        while self._waiting and self._waiting[0].ready_s <= now and len(self._running) < self._backlog:
            job = self._waiting.popleft()
            number = self._next_number
            self._next_number += 1
            try:
                self._engine.submit(_request(number, job))
            except ValueError as error:
                self._end(self._entry(job, CallStatus.FAILED, job.prompt_tokens, now, error=str(error)))
            else:
                self._running[number] = job

    def _finish(self, response: Response) -> None:
        job = self._running.pop(response.number)
        self._end(
            self._entry(
                job,
                CallStatus.FINISHED,
                response.prompt_tokens,
                response.last_token_ts - self._zero_ts,
                output_tokens=len(response.token_ids),
                admitted_ts=response.scheduled_ts - self._zero_ts,
                first_token_ts=response.first_token_ts - self._zero_ts,
                num_preemptions=response.num_preemptions,
                cached_tokens=response.cached_tokens,
                visible_tokens=response.visible_tokens,
                thinking_opened=response.thinking_opened,
                finish_reason=response.finish_reason,
                token_ids=response.token_ids,
                text=response.text,
            )
        )

    def _cancel(self, key: CallKey) -> None:
        """Drop a call; one that has ended, or is of another session, stays as it is."""
        now = self._now()
        waiting = next((job for job in self._waiting if job.key == key), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self._end(self._entry(waiting, CallStatus.CANCELLED, waiting.prompt_tokens, now))
        number = next((number for number, job in self._running.items() if job.key == key), None)
        if number is None:
            return
        gone = self._engine.abort(number)
        self._end(
            self._entry(
                self._running.pop(number),
                CallStatus.CANCELLED,
                gone.prompt_tokens,
                now,
                output_tokens=gone.output_tokens,
                admitted_ts=None if gone.scheduled_ts is None else gone.scheduled_ts - self._zero_ts,
                first_token_ts=None if gone.first_token_ts is None else gone.first_token_ts - self._zero_ts,
                wasted_tokens=gone.output_tokens,
            )
        )

    def _entry(self, job: Job, status: CallStatus, prompt_tokens: int, finished_ts: float, **values: Any) -> EndedCall:
        return ended_call(self._order, job, self._start_ts, status, finished_ts, prompt_tokens=prompt_tokens, **values)

    def _end(self, entry: EndedCall) -> None:
        self._num_ended += 1
        self._output_tokens += entry.output_tokens
        self._tell(entry)

    def _show_life(self) -> None:
        now = time.monotonic()
        if now - self._shown_ts >= HEARTBEAT_S:
            self._shown_ts = now
            self._tell(Progress(self._order.session, self._num_ended, len(self._running), self._output_tokens))


def _request(number: int, job: Job) -> Request:
    return Request(
        number=number,
        prompt=job.prompt,
        seed=job.seed,
        temperature=job.temperature,
        max_output_tokens=job.max_output_tokens,
        output_tokens=job.output_tokens,
    )

"""One session while it runs: its jobs, its engine and the records it leaves."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mosaic.core.errors import BackendError
from mosaic.core.plan import Session
from mosaic.core.results import CallRecord, CallStatus, SessionRecord
from mosaic.core.workload import Call
from sim.engine.engine import Engine
from sim.engine.request import Request


class Job(NamedTuple):
    """A call with what will really happen to it."""

    call: Call
    output_tokens: int
    answer: str | None
    visible_tokens: int | None = None


class SessionWork(NamedTuple):
    """All it takes to run a session."""

    session: Session
    jobs: tuple[Job, ...]
    load_s: float
    make_engine: Callable[[float], Engine]
    """Builds the engine that starts at the given instant."""


class LiveSession:
    """A session on its way: it waits for its workers, loads, serves its jobs and ends.

    A job can be cancelled at any time: before the engine is up it is never submitted, afterwards the
    engine drops it.
    """

    def __init__(self, work: SessionWork) -> None:
        self.work = work
        self.session = work.session
        self.calls: list[CallRecord] = []
        """In the order in which they ended."""
        self.record: SessionRecord | None = None
        """None until the session has ended."""
        self._engine: Engine | None = None
        self._requests: dict[int, Request] = {}

    @property
    def has_jobs(self) -> bool:
        """Whether anything is left to serve."""
        return len(self.calls) < len(self.work.jobs)

    @property
    def is_serving(self) -> bool:
        """Whether the engine is up."""
        return self._engine is not None and self.record is None

    def open_engine(self, now: float) -> Engine:
        """Bring the engine up and give it what has not been cancelled.

        Raises
        ------
        BackendError
            If a call can never fit into the engine.
        """
        gone = {record.key for record in self.calls}
        number = -1
        try:
            self._engine = engine = self.work.make_engine(now)
            for number, (call, output_tokens, _, _) in enumerate(self.work.jobs):
                if gone and call.key in gone:
                    continue
                ready_ts = now if call.ready_s < now else call.ready_s
                self._requests[number] = engine.submit(number, call.prompt_tokens, output_tokens, ready_ts)
        except ValueError as error:
            where = f", call {self.work.jobs[number].call.key}" if number >= 0 else ""
            raise BackendError(f"session {self.session.id} of {self.session.expert!r}{where}: {error}") from error
        return engine

    def finish(self, requests: Sequence[Request]) -> list[CallRecord]:
        """Record finished requests."""
        session_id, expert, workers = self.session.id, self.session.expert, self.session.workers
        jobs, finished = self.work.jobs, CallStatus.FINISHED
        records = []
        for request in requests:
            call, output_tokens, answer, visible_tokens = jobs[request.id]
            records.append(
                CallRecord(
                    call.key, expert, session_id, workers, call.prompt_tokens, output_tokens,
                    request.queued_ts, request.admitted_ts, request.first_token_ts, request.finished_ts,
                    request.num_preemptions, 0, 0, request.wasted_tokens, finished, answer, visible_tokens,
                )
            )  # fmt: skip
        self.calls += records
        return records

    def cancel(self, number: int, now: float) -> bool:
        """Stop a job; False if it had ended before."""
        call = self.work.jobs[number].call
        if self._engine is None:
            if any(record.key == call.key for record in self.calls):
                return False
            request = Request(number, call.prompt_tokens, 0, min(call.ready_s, now))
        else:
            if number not in self._requests or not self._engine.abort(self._requests[number], now):
                return False
            request = self._requests[number]
        self.calls.append(self._cancelled(call, request, now))
        return True

    def _cancelled(self, call: Call, request: Request, now: float) -> CallRecord:
        first_token_ts = request.first_token_ts
        if first_token_ts is not None and first_token_ts > now:
            first_token_ts = None  # It came out of the iteration under way, after nobody wanted it any more.
        return CallRecord(
            key=call.key,
            expert=self.session.expert,
            session=self.session.id,
            workers=self.session.workers,
            prompt_tokens=call.prompt_tokens,
            output_tokens=0 if first_token_ts is None else request.num_generated,
            queued_ts=min(request.queued_ts, now),
            admitted_ts=request.admitted_ts,
            first_token_ts=first_token_ts,
            finished_ts=now,
            num_preemptions=request.num_preemptions,
            wasted_tokens=request.wasted_tokens,
            status=CallStatus.CANCELLED,
        )

    def close(self, load_start_ts: float, load_s: float, start_ts: float, end_ts: float) -> None:
        """Record the session; it counts the calls that it finished."""
        finished = [record.output_tokens for record in self.calls if record.status is CallStatus.FINISHED]
        self.record = SessionRecord(
            session=self.session.id,
            expert=self.session.expert,
            node=self.session.node,
            workers=self.session.workers,
            load_start_ts=load_start_ts,
            load_s=load_s,
            start_ts=start_ts,
            end_ts=end_ts,
            num_calls=len(finished),
            output_tokens=sum(finished),
        )

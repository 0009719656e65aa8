"""What each worker of a real run does, in words: a line per worker, and a line when a session starts or ends."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mosaic.core.plan import Plan
from mosaic.core.results import CallRecord, Cancel
from mosaic.runtime.worker_state import WorkerState


def describe_worker(state: WorkerState, elapsed_s: float, predicted_s: float | None, *, num_before: int = 0) -> str:
    """Say what a worker does and how long it still takes.

    Parameters
    ----------
    state
        As the backend tells it.
    elapsed_s
        Seconds since the worker entered this phase of this session.
    predicted_s
        Seconds that the plan expects this phase to take, for all calls of the session; None: it does not say, so the
        time left follows from the pace so far.
    num_before
        Calls of the session that ended before this attempt at it: in a run that was interrupted, or a try that failed.

    Examples
    --------
    >>> state = WorkerState((0,), "Gemma", "serving", 2, num_calls=60, num_ended=45, output_tokens=9000)
    >>> describe_worker(state, 10.0, 16.0)
    'worker 0: Gemma serving, 45 of 60 calls, 900 tokens/s, 4 s left'
    """
    label = f"{_name(state.workers)}: "
    if state.cause is not None:
        return f"{label}{state.cause}"
    if not _is_at_work(state):
        return f"{label}idle"
    if state.phase == "loading":
        planned = "" if predicted_s is None else f" of {_duration(predicted_s)} planned"
        return f"{label}{state.expert} loading, {_duration(elapsed_s)}{planned}"
    parts = [f"{state.expert} serving", f"{num_before + state.num_ended:,} of {state.num_calls:,} calls"]
    if state.output_tokens and elapsed_s > 0:
        parts.append(_pace(state.output_tokens, elapsed_s))
    left_s = _left_s(state, elapsed_s, predicted_s, num_before)
    return label + ", ".join(parts if left_s is None else [*parts, f"{_duration(left_s)} left"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What is known of a worker that was told of."""

    state: WorkerState
    since_s: float
    """When this phase of this session began."""
    load_s: float = 0.0
    """Seconds that loading took before the session was served."""
    num_before: int = 0
    """Calls of the session that had finished when this attempt at it began."""
    tokens_before: int = 0
    """Likewise."""
    is_news: bool = True
    """False: it follows a session of the same expert, as hundreds do where costs are measured."""


class WorkerBoard:
    """Keeps what a backend tells of a plan's run: finishes as a listener, states of workers as they come.

    Whoever draws may read it from another thread: what is read there is replaced whole.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_calls = sum(len(session.shard) for session in plan.sessions)
        self.num_finished = 0
        self._clock = clock
        self._start_s = clock()
        self._predicted = dict(zip((session.id for session in plan.sessions), plan.predicted, strict=True))
        self._session_of = {key: session.id for session in plan.sessions for key in session.shard}
        self._finished = {session.id: 0 for session in plan.sessions}
        self._tokens = dict.fromkeys(self._finished, 0)
        self._seats: list[Seat | None] = [None] * plan.num_workers

    def on_finish(self, record: CallRecord) -> Sequence[Cancel]:
        """Count a finished call; never react."""
        session = self._session_of[record.key]
        self._finished[session] += 1
        self._tokens[session] += record.output_tokens
        self.num_finished += 1
        return ()

    def tell(self, state: WorkerState) -> tuple[str, ...]:
        """Take in what a worker does; gives a line for each session that this starts or ends, if it is news."""
        first, now = state.workers[0], self._clock()
        old = self._seats[first]
        if old is not None and old.state.workers != state.workers:
            old = None  # it had ended, and this one spans other workers
        seat = self._next_seat(old, state, now)
        for worker in state.workers:
            self._seats[worker] = seat
        told = []
        cause = "" if state.cause is None else f": {state.cause}"
        is_news = cause or (old is not None and old.is_news)
        if old is not None and is_news and _is_at_work(old.state) and not _is_same_work(old.state, state):
            told.append(self._describe_end(old, now) + cause)
        if seat.is_news and _is_at_work(state) and (old is None or not _is_same_work(old.state, state)):
            told.append(self._describe_start(state))
        return tuple(told)

    def describe_workers(self) -> tuple[str, ...]:
        """Describe each worker in a line, in order."""
        return tuple(self._describe_place(worker, seat) for worker, seat in enumerate(list(self._seats)))

    def describe_progress(self) -> str:
        """Describe the whole run in a line."""
        frac = self.num_finished / self.num_calls if self.num_calls else 1.0
        seats = {id(seat): seat for seat in self._seats if seat is not None}
        phases = [seat.state.phase for seat in seats.values()]
        busy = [f"{phases.count(phase)} {phase}" for phase in ("serving", "loading") if phase in phases]
        calls = f"{self.num_finished:,} of {self.num_calls:,} calls ({frac:.0%})"
        return ", ".join([f"{calls} after {_duration(self._clock() - self._start_s)}", *busy])

    def _next_seat(self, old: Seat | None, state: WorkerState, now: float) -> Seat:
        if old is not None and (old.state.session, old.state.phase) == (state.session, state.phase):
            return replace(old, state=state)
        if old is not None and _is_same_work(old.state, state):
            return replace(old, state=state, since_s=now, load_s=now - old.since_s)
        before = (0, 0) if state.session is None else (self._finished[state.session], self._tokens[state.session])
        follows = old is not None and (old.state.phase, old.state.expert) == ("idle", state.expert)
        return Seat(state=state, since_s=now, num_before=before[0], tokens_before=before[1], is_news=not follows)

    def _describe_place(self, worker: int, seat: Seat | None) -> str:
        if seat is None:
            return f"worker {worker}: waiting"
        if worker != seat.state.workers[0]:
            return f"worker {worker}: with worker {seat.state.workers[0]}"
        predicted_s = self._predicted_s(seat.state)
        return describe_worker(seat.state, self._clock() - seat.since_s, predicted_s, num_before=seat.num_before)

    def _predicted_s(self, state: WorkerState) -> float | None:
        if state.session is None:
            return None
        times = self._predicted[state.session]
        seconds = times.load_s if state.phase == "loading" else times.end_s - times.start_s - times.load_s
        return seconds if seconds > 0 else None  # sessions without a price are predicted to take no time

    def _describe_start(self, state: WorkerState) -> str:
        assert state.session is not None, "at work means in a session"
        left = state.num_calls - self._finished[state.session]
        calls = f"{left:,} calls" if left == state.num_calls else f"{left:,} of {state.num_calls:,} calls that are left"
        what = "loading" if state.phase == "loading" else "serving"
        return f"{_name(state.workers)}: {what} {state.expert} (session {state.session}, {calls})"

    def _describe_end(self, seat: Seat, now: float) -> str:
        state = seat.state
        assert state.session is not None, "at work means in a session"
        label = f"{_name(state.workers)}: {state.expert} (session {state.session})"
        finished, elapsed_s = self._finished[state.session], now - seat.since_s
        if state.phase == "loading":
            return f"{label} ended after {_duration(elapsed_s)} of loading"
        calls = f"{finished:,} of {state.num_calls:,} calls finished"
        loaded = f" after {_duration(seat.load_s)} of loading" if seat.load_s >= 0.5 else ""
        text = f"{label}: {calls} in {_duration(elapsed_s)}{loaded}"
        tokens = self._tokens[state.session] - seat.tokens_before
        return f"{text}, {_pace(tokens, elapsed_s)}" if tokens and elapsed_s > 0 else text


def _is_at_work(state: WorkerState) -> bool:
    return state.session is not None and state.phase in ("loading", "serving")


def _is_same_work(old: WorkerState, new: WorkerState) -> bool:
    """Say whether nothing started or ended."""
    return _is_at_work(old) and _is_at_work(new) and old.session == new.session


def _left_s(state: WorkerState, elapsed_s: float, predicted_s: float | None, num_before: int) -> float | None:
    """Estimate the seconds that are left of a session; None: nothing to go by."""
    num_left = max(0, state.num_calls - num_before - state.num_ended)
    if predicted_s is not None and state.num_calls:
        return predicted_s * num_left / state.num_calls
    return elapsed_s * num_left / state.num_ended if state.num_ended else None


def _name(workers: Sequence[int]) -> str:
    return f"worker {workers[0]}" if len(workers) == 1 else f"workers {', '.join(map(str, workers))}"


def _pace(tokens: int, elapsed_s: float) -> str:
    return f"{tokens / elapsed_s:,.0f} tokens/s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

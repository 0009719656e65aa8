"""How a run stands, in words: a line per worker, a line for all calls, a line when a session starts or ends."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mosaic.core.events import Closed, Event, Finished, Joined, Lost, Progress, Ready, Started
from mosaic.core.plan import PredictedTimes, Session
from mosaic.core.results import CallRecord, CallStatus, SessionRecord
from mosaic.core.workload import Call, CallKey, ExpertName


class RunView(Protocol):
    """What is read of the view of a run."""

    @property
    def num_workers(self) -> int: ...
    @property
    def calls(self) -> Mapping[CallKey, Call]: ...
    @property
    def records(self) -> Mapping[CallKey, CallRecord]: ...
    @property
    def place(self) -> dict[CallKey, int | str]: ...
    @property
    def opened(self) -> Mapping[int, Session]: ...
    @property
    def ended(self) -> Mapping[int, SessionRecord | None]: ...
    @property
    def lost(self) -> Mapping[int, str]: ...


class SessionStatus(NamedTuple):
    """How far a session is."""

    workers: tuple[int, ...]
    expert: ExpertName
    is_loaded: bool
    elapsed_s: float
    """Since its load began; once it serves, since then."""
    predicted_s: float | None = None
    """Seconds that the plan expects of the load, or of all of its calls; None: it does not say."""
    num_calls: int = 0
    """Given to it; 0 where it takes its calls from its expert's queue."""
    num_ended: int = 0
    num_before: int = 0
    """Of those that ended, in a run that goes on after an interruption: they say nothing about the pace."""
    output_tokens: int = 0
    """Written while it served."""

    @property
    def left_s(self) -> float | None:
        """Seconds until its calls have ended, by the plan or else by its pace; None: nothing to go by."""
        if not self.num_calls:
            return None
        num_left, num_served = max(0, self.num_calls - self.num_ended), self.num_ended - self.num_before
        if self.predicted_s is not None:
            return self.predicted_s * num_left / self.num_calls
        return self.elapsed_s * num_left / num_served if num_served else None


def describe_session(status: SessionStatus) -> str:
    """Say what a session does and how long it still takes.

    Examples
    --------
    >>> describe_session(SessionStatus((0,), "Gemma", True, 10.0, 16.0, num_calls=60, num_ended=45, output_tokens=9000))
    'worker 0: Gemma serving, 45 of 60 calls, 900 tokens/s, 4 s left'
    """
    label = f"{_name(status.workers)}: {status.expert}"
    if not status.is_loaded:
        planned = "" if status.predicted_s is None else f" of {_duration(status.predicted_s)} planned"
        return f"{label} loading, {_duration(status.elapsed_s)}{planned}"
    parts = [f"{label} serving", f"{_of(status.num_ended, status.num_calls)} calls"]
    if status.output_tokens and status.elapsed_s > 0:
        parts.append(_pace(status.output_tokens, status.elapsed_s))
    if status.left_s is not None:
        parts.append(f"{_duration(status.left_s)} left")
    return ", ".join(parts)


@dataclass(slots=True)
class _Progress:
    """What is counted of a session from its load on."""

    load_ts: float
    is_news: bool
    """False: it follows a session of the same expert there, as hundreds do where costs are measured."""
    start_ts: float | None = None
    """When it began to serve."""
    num_before: int = 0
    tokens_before: int = 0


class RunStatus:
    """Follows the events of a run.

    Whoever draws may read it from another thread: what is iterated there is replaced whole, or copied first.

    Parameters
    ----------
    title
        What the run is for.
    predicted
        What the plan expects of sessions, by their number in the run.
    is_simulated
        Whether the run's clock is not the wall clock: between two events no time passes then.
    clock
        Seconds.
    """

    def __init__(
        self,
        title: str,
        *,
        predicted: Mapping[int, PredictedTimes] | None = None,
        is_simulated: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self._predicted = {} if predicted is None else predicted
        self._is_simulated = is_simulated
        self._clock = clock
        self._view: RunView | None = None
        self._heard = (0.0, clock())
        self._num_opened = 0
        self._num_failed = 0
        self._ended: Counter[int] = Counter()
        self._tokens: Counter[int] = Counter()
        self._running: dict[int, Mapping[CallKey, int]] = {}
        self._current: dict[int, int] = {}
        self._progress: dict[int, _Progress] = {}

    @property
    def num_calls(self) -> int:
        """All that are known so far."""
        return 0 if self._view is None else len(self._view.calls)

    @property
    def num_ended(self) -> int:
        """Calls that have ended."""
        return 0 if self._view is None else len(self._view.records)

    def hear(self, event: Event, view: RunView) -> list[str]:
        """Take an event in; gives lines for a log."""
        self._view, self._heard = view, (event.ts, self._clock())
        lines = []
        if isinstance(event, Started):
            lines.append(f"{self.title}: {self.num_calls:,} calls on {view.num_workers} workers")
        if len(view.opened) != self._num_opened and not isinstance(event, Closed | Lost):
            lines += self._start_sessions(event.ts, view)
        match event:
            case Finished(record=record):
                self._ended[record.session] += 1
                self._tokens[record.session] += record.output_tokens
                self._num_failed += record.status is CallStatus.FAILED
            case Progress(session=number, tokens=tokens):
                self._running[number] = tokens
            case Ready(ts=ts, session=number) if number in self._progress:
                progress = self._progress[number]
                progress.start_ts = ts
                progress.num_before, progress.tokens_before = self._ended[number], self._tokens[number]
            case Closed(ts=ts, record=closed):
                lines += [*self._describe_end(closed, view), *self._start_sessions(ts, view)]
            case Joined(worker=worker):
                lines.append(f"worker {worker}: joined")
            case Lost(ts=ts, worker=worker, cause=cause):
                lines += [f"worker {worker}: lost: {cause}", *self._describe_lost(worker, view)]
                lines += self._start_sessions(ts, view)
        return lines

    def describe_calls(self) -> str:
        """Describe all calls in a line."""
        frac = self.num_ended / self.num_calls if self.num_calls else 1.0
        calls = f"{self.title}: {self.num_ended:,} of {self.num_calls:,} calls ({frac:.0%})"
        serving = [progress.start_ts is not None for progress in self._progress.copy().values()]
        counts = {
            "failed": self._num_failed,
            "serving": serving.count(True),
            "loading": serving.count(False),
            "lost": 0 if self._view is None else len(self._view.lost),
        }
        states = [f"{number:,} {what}" for what, number in counts.items() if number]
        return ", ".join([f"{calls} after {_duration(self._now_ts())}", *states])

    def describe_workers(self) -> list[str]:
        """Describe each worker in a line, in order."""
        view = self._view
        if view is None:
            return []
        num_calls = Counter(view.place.copy().values())
        return [self._describe_worker(worker, view, num_calls) for worker in range(view.num_workers)]

    def _now_ts(self) -> float:
        event_ts, heard_s = self._heard
        return event_ts if self._is_simulated else event_ts + self._clock() - heard_s

    def _start_sessions(self, ts: float, view: RunView) -> list[str]:
        """Find the sessions that load now: those before them on their workers are over, and those they come after."""
        first: dict[int, int] = {}
        for number, session in view.opened.items():
            if number not in view.ended:
                for worker in session.workers:
                    first.setdefault(worker, number)
        lines = []
        for number in dict.fromkeys(first.values()):
            session = view.opened[number]
            free = all(first[worker] == number for worker in session.workers)
            if number not in self._progress and free and all(needed in view.ended for needed in session.after):
                before = view.ended.get(self._current.get(session.workers[0], -1))
                here = (session.expert, session.workers)
                follows = before is not None and (before.expert, before.workers) == here
                self._progress[number] = _Progress(load_ts=ts, is_news=not follows)
                lines += [] if follows else [self._describe_start(session, view)]
        self._current = {**self._current, **first}
        self._num_opened = len(view.opened)
        return lines

    def _describe_start(self, session: Session, view: RunView) -> str:
        num_calls = sum(place == session.id for place in view.place.values())
        left = num_calls - self._ended[session.id]
        calls = f", {left:,} calls" if left == num_calls else f", {left:,} of {num_calls:,} calls that are left"
        return f"{_name(session.workers)}: loading {session.expert} (session {session.id}{calls if num_calls else ''})"

    def _describe_end(self, record: SessionRecord, view: RunView) -> list[str]:
        number, serve_s = record.session, record.end_ts - record.start_ts
        progress = self._progress.pop(number, None)
        if progress is None or not progress.is_news:
            return []
        num_calls = sum(place == number for place in view.place.values())
        text = f"{_name(record.workers)}: {record.expert} (session {number}): "
        text += f"{_of(self._ended[number], num_calls)} calls ended in {_duration(serve_s)}"
        text += f" after {_duration(record.load_s)} of loading" if record.load_s >= 0.5 else ""
        tokens = self._tokens[number] - progress.tokens_before
        paced_s = record.end_ts - (record.start_ts if progress.start_ts is None else progress.start_ts)
        return [f"{text}, {_pace(tokens, paced_s)}" if tokens and paced_s > 0 else text]

    def _describe_lost(self, worker: int, view: RunView) -> list[str]:
        """Say what was lost with a worker, without the sessions that had not begun."""
        return [
            f"{_name(session.workers)}: {session.expert} (session {number}) lost after {self._ended[number]:,} calls"
            for number, session in view.opened.items()
            if worker in session.workers and self._progress.pop(number, None) is not None
        ]

    def _describe_worker(self, worker: int, view: RunView, num_calls: Mapping[int | str, int]) -> str:
        if worker in view.lost:
            return f"worker {worker}: lost: {view.lost[worker]}"
        number = self._current.get(worker)
        if number is None or number in view.ended:
            return f"worker {worker}: idle"
        session, progress = view.opened[number], self._progress.get(number)
        if progress is None:
            return f"worker {worker}: waiting to load {session.expert}"
        if worker != session.workers[0]:
            return f"worker {worker}: with worker {session.workers[0]}"
        return describe_session(self._status(session, progress, num_calls[number], view))

    def _status(self, session: Session, progress: _Progress, num_calls: int, view: RunView) -> SessionStatus:
        number, start_ts = session.id, progress.start_ts
        running = sum(tokens for key, tokens in self._running.get(number, {}).items() if key not in view.records)
        times = self._predicted.get(number)
        predicted_s = 0.0
        if times is not None:
            predicted_s = times.load_s if start_ts is None else times.end_s - times.start_s - times.load_s
        return SessionStatus(
            workers=session.workers,
            expert=session.expert,
            is_loaded=start_ts is not None,
            elapsed_s=self._now_ts() - (progress.load_ts if start_ts is None else start_ts),
            predicted_s=predicted_s or None,  # sessions without a price are predicted to take no time
            num_calls=num_calls,
            num_ended=self._ended[number],
            num_before=progress.num_before,
            output_tokens=self._tokens[number] - progress.tokens_before + running,
        )


def _name(workers: Sequence[int]) -> str:
    return f"worker {workers[0]}" if len(workers) == 1 else f"workers {', '.join(map(str, workers))}"


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" if whole else f"{part:,}"


def _pace(tokens: int, elapsed_s: float) -> str:
    return f"{tokens / elapsed_s:,.0f} tokens/s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""Describes the state of a run: a row per worker, a line for all calls, a line when a session starts or ends."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from mosaic.core.commands import Command
from mosaic.core.events import Closed, Event, Finished, Joined, Lost, Progress, Ready, Redone, Started, Stopped
from mosaic.core.plan import Expected, Session
from mosaic.core.results import CallRecord, CallStatus, SessionRecord
from mosaic.core.view import View
from mosaic.core.workload import CallKey, ExpertName

FORECAST_EVERY_S = 5.0
"""Interval of predicting the time left: a prediction takes as long as some events."""
RESUMED = (Ready, Progress, Finished, Closed)
"""Events that an interrupted run sends only for new work, if they are later than its resumption."""
MIN_ENDED = 5
"""Calls that must have ended before their pace is used for a prediction."""


class Row(NamedTuple):
    """Displayed data of a worker, or of a whole batch."""

    name: str
    text: str = ""
    num_ended: int = 0
    num_all: int | None = None
    """None: not known, or not counted."""


@dataclass(slots=True)
class _SessionProgress:
    """Counts of a session from its load on."""

    load_ts: float
    is_first_load: bool
    """Whether its start and its end are logged."""
    start_ts: float | None = None
    """When it started to serve."""
    num_served: int = 0
    """Calls that ended in this process: those of an earlier start do not count for the pace."""
    output_tokens: int = 0


@dataclass(eq=False)
class RunStatus:
    """Follows the events of a run, or of a stage before it: a controller that sends no commands and comes last.

    A resumed run receives its earlier events again. They are counted, and not displayed as new ones. Another thread may
    read the status, so collections that it iterates are replaced as a whole, or copied first.
    """

    title: str
    """Purpose of the run: "pilot", "calls"."""
    expected: Expected = field(default_factory=Expected)
    """What is known in advance, and what plans add."""
    is_simulated: bool = field(default=False, kw_only=True)
    """Whether the run's clock is not the wall clock: then no time passes between two events."""
    clock: Callable[[], float] = field(default=time.monotonic, kw_only=True)
    """Seconds."""
    log: Callable[[str], object] = field(default=lambda line: None, kw_only=True)
    """Receives the lines of a log."""
    warn: Callable[[str], object] = field(default=lambda line: None, kw_only=True)
    """Receives lines that a user should also read on a terminal."""
    counts: defaultdict[str, Counter[ExpertName]] = field(default_factory=lambda: defaultdict(Counter), init=False)
    """Calls and tokens since this process began, by kind and expert."""
    _view: View = field(default_factory=lambda: View(0), init=False)
    _heard: tuple[float, float] = field(default=(0.0, 0.0), init=False)
    """The instant of the last event, and when it arrived."""
    _resumes_ts: float = field(default=0.0, init=False)
    _is_resuming: bool = field(default=False, init=False)
    _num_opened: int = field(default=0, init=False)
    _ended: Counter[int] = field(default_factory=Counter, init=False)
    """Calls by session."""
    _running: dict[int, Mapping[CallKey, int]] = field(default_factory=dict, init=False)
    _current: dict[int, int] = field(default_factory=dict, init=False)
    """By worker: the first of its sessions that has not ended."""
    _progress: dict[int, _SessionProgress] = field(default_factory=dict, init=False)
    _forecast: tuple[float, float] | None = field(default=None, init=False)
    """Seconds left, and when they were predicted."""
    reacts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._heard = (0.0, self.clock())

    @property
    def unit(self) -> str:
        """What a session runs on: a worker, or a server."""
        return self.expected.unit

    @property
    def num_calls(self) -> int:
        """Calls known so far."""
        return max(self.expected.num_calls, len(self._view.calls))

    @property
    def num_ended(self) -> int:
        """Calls that have ended."""
        return len(self._view.records)

    @property
    def num_lost(self) -> int:
        """Lost workers."""
        return len(self._view.lost)

    @property
    def left_s(self) -> float | None:
        """Seconds until all known calls have ended; None: no basis for a prediction yet."""
        if self._forecast is None:
            return None
        left_s, said_s = self._forecast
        return max(0.0, left_s - (self.clock() - said_s))

    def on(self, event: Event, view: View) -> tuple[Command, ...]:
        """Record an event, and log it."""
        for line in self.receive(event, view):
            self.log(line)
        if isinstance(event, Redone):
            for line in describe_redone(event):
                self.warn(f"{self.title}: {line}")
        if isinstance(event, Stopped):
            self.warn(f"{self.title}: stopped: {event.cause}")
        return ()

    def receive(self, event: Event, view: View) -> list[str]:
        """Record an event; returns lines for a log."""
        self._view, self._heard = view, (max(event.ts, self._resumes_ts), self.clock())
        lines = []
        if isinstance(event, Started):
            self._resumes_ts, self._is_resuming = event.resumes_ts, event.resumes_ts > 0.0
            lines.append(f"{self.title}: {self.num_calls:,} calls on {view.num_workers} {self.unit}s")
        elif self._is_resuming and isinstance(event, RESUMED) and event.ts > self._resumes_ts:
            lines += self._go_on()
        if len(view.opened) != self._num_opened and not isinstance(event, Closed | Lost):
            lines += self._start_sessions(event.ts)
        match event:
            case Finished(record=record):
                self._count(record)
            case Progress(session=number, tokens=tokens):
                self._running[number] = tokens
            case Ready(ts=ts, session=number) if number in self._progress:
                self._progress[number].start_ts = ts
            case Closed(ts=ts, record=closed):
                lines += [*self._describe_end(closed), *self._start_sessions(ts)]
            case Joined(worker=worker):
                lines.append(f"{self.unit} {worker}: joined")
            case Lost(ts=ts, worker=worker, cause=cause):
                lines += [f"{self.unit} {worker}: lost: {cause}", *self._describe_lost(worker)]
                lines += self._start_sessions(ts)
        self._predict()
        return lines

    def _count(self, record: CallRecord) -> None:
        number = record.session
        self._ended[number] += 1
        if self._is_resuming:
            return
        if number in self._progress:
            self._progress[number].num_served += 1
            self._progress[number].output_tokens += record.output_tokens
        outcome = {CallStatus.FINISHED: "ended", CallStatus.FAILED: "failed"}.get(record.status, "stopped")
        self.counts[outcome][record.expert] += 1
        self.counts["prompt_tokens"][record.expert] += record.prompt_tokens
        self.counts["output_tokens"][record.expert] += record.output_tokens
        self.counts["preemptions"][record.expert] += record.num_preemptions

    def _predict(self) -> None:
        now = self.clock()
        said_s = -FORECAST_EVERY_S if self._forecast is None else self._forecast[1]
        if self.is_simulated or self._is_resuming or now - said_s < FORECAST_EVERY_S:
            return
        left_s = self.expected.left_s(self._view)
        left_s = self._left_by_pace() if left_s is None else left_s
        if left_s is not None:
            self._forecast = left_s, now

    def _left_by_pace(self) -> float | None:
        num_served = sum(sum(self.counts[outcome].values()) for outcome in ("ended", "failed", "stopped"))
        elapsed_s = self._now_ts() - self._resumes_ts
        return elapsed_s * (self.num_calls - self.num_ended) / num_served if num_served >= MIN_ENDED else None

    def describe(self) -> str:
        """Describe all calls in a line."""
        frac = self.num_ended / self.num_calls if self.num_calls else 1.0
        return f"{self.title}: {self.num_ended:,} of {self.num_calls:,} calls ({100 * frac:.0f}%) after {self._state()}"

    def row(self) -> Row:
        """Describe all calls in a row."""
        return Row(self.title, self._state(), self.num_ended, self.num_calls or None)

    def _state(self) -> str:
        live = [one for number, one in self._progress.copy().items() if number not in self._view.ended]
        num_serving = sum(one.start_ts is not None for one in live)
        counts = {
            "failed": sum(self.counts["failed"].values()),
            "serving": num_serving,
            "loading": len(live) - num_serving,
            "lost": self.num_lost,
        }
        parts = [_duration(self._now_ts()), *(f"{count:,} {name}" for name, count in counts.items() if count)]
        if self.left_s is not None and self.num_ended < self.num_calls:
            parts.append(f"about {_duration(self.left_s)} left")
        return ", ".join(parts)

    def worker_rows(self) -> list[Row]:
        """Describe each worker in a row, in order."""
        return [self._row(worker) for worker in range(self._view.num_workers)]

    def calls_in_flight(self) -> Counter[ExpertName]:
        """Count the calls that engines have, by expert; if an engine does not count, all calls of its session."""
        view, counts = self._view, Counter[ExpertName]()
        for number, progress in self._progress.copy().items():
            if progress.start_ts is not None and number not in view.ended:
                expert = view.opened[number].expert
                held = len(view.held.get(number, ())) or len(view.held.get(expert, ()))
                counts[expert] += len(self._running.get(number, ())) or held
        return counts

    def open_calls(self) -> Counter[ExpertName]:
        """Count the submitted calls that have not ended, by expert."""
        return Counter(call.expert for call in self._view.running.copy().values())

    def _now_ts(self) -> float:
        event_ts, heard_s = self._heard
        return event_ts if self.is_simulated else event_ts + self.clock() - heard_s

    def _start_sessions(self, ts: float) -> list[str]:
        """Find the sessions that load now: earlier sessions on their workers and their predecessors have ended."""
        view = self._view
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
                # NOTE: when costs are measured, hundreds of sessions of an expert follow each other.
                follows = before is not None and (before.expert, before.workers) == here
                is_first_load = not follows and not self._is_resuming
                self._progress[number] = _SessionProgress(
                    load_ts=max(ts, self._resumes_ts), is_first_load=is_first_load
                )
                lines += [self._describe_start(session)] if is_first_load else []
        self._current = {**self._current, **first}
        self._num_opened = len(view.opened)
        return lines

    def _go_on(self) -> list[str]:
        """Describe where an interrupted run is resumed: ended calls, and sessions that load now."""
        self._is_resuming = False
        lines = [f"{self.title}: {self.num_ended:,} calls had ended"] if self.num_ended else []
        for number, progress in self._progress.items():
            if number not in self._view.ended and self._is_needed(number):
                progress.is_first_load = True
                lines.append(self._describe_start(self._view.opened[number]))
        return lines

    def _is_needed(self, number: int) -> bool:
        """Return whether a session has calls to serve, or may get some."""
        return bool(self._view.held.get(number)) or not self._ended[number]

    def _describe_start(self, session: Session) -> str:
        left = len(self._view.held.get(session.id, ()))
        num_calls = self._ended[session.id] + left
        calls = f", {left:,} calls" if left == num_calls else f", {left:,} of {num_calls:,} calls left"
        loading = "loading " if self.unit == "worker" else ""
        text = f"{loading}{session.expert} (session {session.id}{calls if num_calls else ''})"
        return f"{self._name(session.workers)}: {text}"

    def _describe_end(self, record: SessionRecord) -> list[str]:
        number, serve_s = record.session, record.end_ts - record.start_ts
        progress = self._progress.pop(number, None)
        if progress is None or not progress.is_first_load:
            return []
        text = f"{self._name(record.workers)}: {record.expert} (session {number}): "
        text += f"{self._ended[number]:,} calls ended in {_duration(serve_s)}"
        text += f" after {_duration(record.load_s)} of loading" if record.load_s >= 0.5 else ""
        tokens = progress.output_tokens
        paced_s = record.end_ts - (record.start_ts if progress.start_ts is None else progress.start_ts)
        return [f"{text}, {_pace(tokens, paced_s)}" if tokens and paced_s > 0 else text]

    def _describe_lost(self, worker: int) -> list[str]:
        """Describe the losses with a worker, without the sessions that had not started."""
        return [
            f"{self._name(session.workers)}: {session.expert} (session {number}) lost after "
            f"{self._ended[number]:,} calls"
            for number, session in self._view.opened.items()
            if worker in session.workers and self._progress.pop(number, None) is not None
        ]

    def _row(self, worker: int) -> Row:
        name, view = f"{self.unit} {worker}", self._view
        if worker in view.lost:
            return Row(name, f"lost: {view.lost[worker]}")
        number = self._current.get(worker)
        if number is None or number in view.ended:
            return Row(name, "idle")
        session, progress = view.opened[number], self._progress.get(number)
        if progress is None:
            return Row(name, f"waiting to load {session.expert}")
        if worker != session.workers[0]:
            return Row(name, f"with {self.unit} {session.workers[0]}")
        if progress.start_ts is None and not self._is_needed(number):
            return Row(name, "idle")
        return self._session_row(session, progress)

    def _session_row(self, session: Session, progress: _SessionProgress) -> Row:
        """Describe a session's state and its remaining time, by the plan or else by its pace."""
        view, number, num_left = self._view, session.id, len(self._view.held.get(session.id, ()))
        num_ended = self._ended[number]
        row = Row(self._name(session.workers), "", num_ended, num_ended + num_left or None)
        times = self.expected.times.get(number)
        if progress.start_ts is None:
            planned = f" of {_duration(times.load_s)} planned" if times is not None and times.load_s else ""
            return row._replace(
                text=f"{session.expert} loading, {_duration(self._now_ts() - progress.load_ts)}{planned}"
            )
        elapsed_s = self._now_ts() - progress.start_ts
        running = sum(tokens for key, tokens in self._running.get(number, {}).items() if key not in view.records)
        tokens, parts = progress.output_tokens + running, [f"{session.expert} serving"]
        if tokens and elapsed_s > 0:
            parts.append(_pace(tokens, elapsed_s))
        queued = len(view.held.get(session.expert, ()))
        if queued:
            return row._replace(text=", ".join([*parts, f"{queued:,} calls queued"]), num_all=None)
        serve_s = 0.0 if times is None else times.end_s - times.start_s - times.load_s
        if serve_s and row.num_all:  # sessions without a price are predicted to take no time
            parts.append(f"{_duration(serve_s * num_left / row.num_all)} left")
        elif progress.num_served:
            parts.append(f"{_duration(elapsed_s * num_left / progress.num_served)} left")
        return row._replace(text=", ".join(parts))

    def _name(self, workers: Sequence[int]) -> str:
        return f"{self.unit}{'s' if len(workers) > 1 else ''} {', '.join(map(str, workers))}"


def _pace(tokens: int, elapsed_s: float) -> str:
    return f"{tokens / elapsed_s:,.0f} tokens/s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def describe_redone(event: Redone) -> list[str]:
    """Describe which work of an interrupted run is repeated, one line for each cause.

    Examples
    --------
    >>> for line in describe_redone(Redone(0.0, 1, {"Gemma": 40}, {"Qwen": 2})):
    ...     print(line)
    damaged or unfinished lines of the journal: 1. What they held is run again
    Gemma: its checkpoint or its engine's options have changed. Calls that had ended and are run again: 40
    Qwen: its prompts have changed. Calls that had ended and are run again: 2
    """
    num = event.num_damaged
    causes = (
        ("its checkpoint or its engine's options have changed", event.num_changed),
        ("its prompts have changed", event.num_outdated),
    )
    return [
        *([f"damaged or unfinished lines of the journal: {num:,}. What they held is run again"] if num else []),
        *(
            f"{expert}: {cause}. Calls that had ended and are run again: {num_calls:,}"
            for cause, num_by_expert in causes
            for expert, num_calls in num_by_expert.items()
        ),
    ]

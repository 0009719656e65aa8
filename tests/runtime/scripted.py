"""A backend whose sessions take what formulas say, for what needs no engine; and a log of commands in memory."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from mosaic.core.commands import Action, Close, Command, Open, Submit
from mosaic.core.events import Closed, Event, Finished, Idle, Lost, Ready, Started
from mosaic.core.plan import Session
from mosaic.core.results import CallStatus
from mosaic.core.workload import Call, CallKey
from mosaic.runtime.journal import Start
from tests.run_records import make_record, make_session


@dataclass
class Scripted:
    """Serves the sessions that are closed, as their workers are free; all calls of a session end with it.

    What it was told stays in ``commands``. Experts' queues, and commands about single calls, mean nothing to it.
    """

    load_s: Callable[[Session, int], float] = lambda session, num_before: 0.0
    """By the number of sessions that the expert has had."""
    serve_s: Callable[[Session, int], float] = lambda session, num_calls: float(num_calls)
    tokens: Callable[[Call, int], int] = lambda call, number: 10
    num_failed: int = 0
    """The first calls fail."""
    disturbed: frozenset[int] = frozenset()
    """Sessions that took a second attempt."""
    losses: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    """By worker: how many sessions it serves before it is lost, and the cause."""
    name: str = "scripted"
    commands: list[Command] = field(default_factory=list)

    _opened: dict[int, Session] = field(default_factory=dict)
    _shards: dict[int | str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    _closed: list[int] = field(default_factory=list)

    @property
    def sessions(self) -> list[Session]:
        """In the order in which they were opened, with their calls."""
        return [
            replace(session, shard=tuple(call.key for call in self._shards[number]))
            for number, session in self._opened.items()
        ]

    @property
    def calls(self) -> list[Call]:
        return [command.call for command in self.commands if isinstance(command, Submit)]

    def apply(self, command: Command) -> None:
        self.commands.append(command)
        if isinstance(command, Open):
            self._opened[command.session.id] = command.session
        elif isinstance(command, Submit):
            self._shards[command.to].append(command.call)
        elif isinstance(command, Close):
            self._closed.append(command.session)

    def events(self, *, reacts: bool, tick_s: float | None = None) -> Iterator[Event]:
        yield Started(0.0)
        ends: dict[int, float] = {}
        free_s: dict[int, float] = defaultdict(float)
        num_served: Counter[int] = Counter()
        num_opened: Counter[str] = Counter()
        lost: set[int] = set()
        num_calls = 0
        for number in self._closed:  # More come while they are gone through.
            session, shard = self._opened[number], self._shards[number]
            for worker in session.workers:
                if worker in self.losses and num_served[worker] >= self.losses[worker][0] and worker not in lost:
                    lost.add(worker)
                    yield Lost(max(free_s.values(), default=0.0), worker, self.losses[worker][1])
            if lost & set(session.workers):
                continue
            ready = [
                *(free_s[worker] for worker in session.workers),
                *(ends.get(needed, 0.0) for needed in session.after),
            ]
            load_ts = max(ready)
            start_ts = load_ts + self.load_s(session, num_opened[session.expert])
            end_ts = ends[session.id] = start_ts + self.serve_s(session, len(shard))
            num_opened[session.expert] += 1
            num_served.update(session.workers)
            free_s.update(dict.fromkeys(session.workers, end_ts))
            yield Ready(start_ts, session.id)
            output_tokens = 0
            for call in shard:
                output_tokens += (tokens := self.tokens(call, num_calls))
                num_calls += 1
                record = make_record(
                    key=call.key, expert=session.expert, session=session.id, workers=session.workers,
                    output_tokens=tokens, queued_ts=start_ts, admitted_ts=start_ts,
                    first_token_ts=start_ts, finished_ts=end_ts, attempt=int(session.id in self.disturbed),
                    status=CallStatus.FAILED if num_calls <= self.num_failed else CallStatus.FINISHED,
                )  # fmt: skip
                yield Finished(end_ts, record)
            made = make_session(
                session.id, expert=session.expert, workers=session.workers, load=(load_ts, start_ts), end_ts=end_ts,
                node=session.node, output_tokens=output_tokens,
            )  # fmt: skip
            num_interruptions = int(session.id in self.disturbed)
            yield Closed(end_ts, replace(made, num_calls=len(shard), num_interruptions=num_interruptions))
            for worker in session.workers:
                yield Idle(end_ts, worker)


@dataclass
class MemoryLog:
    """What an interrupted run left, and what was written since."""

    earlier: Sequence[Action] = ()
    ended: frozenset[CallKey] = frozenset()
    written: list[Action] = field(default_factory=list)
    starts: Sequence[Start] = ()

    @property
    def state(self) -> SimpleNamespace:
        return SimpleNamespace(actions=self.earlier, done_keys=self.ended, starts=self.starts)

    def write(self, actions: Sequence[Action]) -> None:
        self.written += actions

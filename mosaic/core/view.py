"""The state of a run so far: the loop writes it; controllers and displays read it."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import dropwhile

from mosaic.core.commands import Close, Command, Move, Open, Submit
from mosaic.core.events import Closed, Event, Finished, Joined, Lost, Ready, Unused
from mosaic.core.plan import Session
from mosaic.core.results import CallRecord, SessionRecord
from mosaic.core.workload import Call, CallKey


@dataclass(slots=True)
class View:
    """The state of a run so far. Controllers read it; only the run loop writes it."""

    num_workers: int
    ts: float = 0.0
    calls: dict[CallKey, Call] = field(default_factory=dict)
    """All submitted calls."""
    running: dict[CallKey, Call] = field(default_factory=dict)
    """The submitted calls that have not ended."""
    place: dict[CallKey, int | str] = field(default_factory=dict)
    """The session, or the expert's queue, of each call's last submission or move."""
    held: defaultdict[int | str, dict[CallKey, Call]] = field(default_factory=lambda: defaultdict(dict))
    """The running calls, by this session or queue."""
    records: dict[CallKey, CallRecord] = field(default_factory=dict)
    """Records of the calls that have ended."""
    opened: dict[int, Session] = field(default_factory=dict)
    """All sessions, in the order of opening."""
    closing: set[int] = field(default_factory=set)
    """Sessions that take no more calls."""
    ended: dict[int, SessionRecord | None] = field(default_factory=dict)
    """Sessions that have ended; None: lost with a worker, or never loaded."""
    lost: dict[int, str] = field(default_factory=dict)
    """Lost workers, with the cause."""
    up: set[int] = field(default_factory=set)
    """Sessions that serve, or have served, on workers that have not restarted since."""
    first_session: int = 0
    """Sessions with lower numbers ran earlier, on workers that are not part of the run now."""

    def observe(self, event: Event) -> None:
        """Record an event."""
        if event.ts > self.ts:
            self.ts = event.ts
        if isinstance(event, Finished):
            record, key = event.record, event.record.key
            self.running.pop(key, None)
            if not self.running:
                self.running.clear()  # a dictionary keeps the memory of removed items
            place = self.place.get(key)
            if place is not None:
                held = self.held[place]
                held.pop(key, None)
                if not held:
                    del self.held[place]
            self.records[key] = record
        elif isinstance(event, Ready):
            self.up.add(event.session)
        elif isinstance(event, Closed):
            self.ended[event.record.session] = event.record
        elif isinstance(event, Unused):
            self.ended[event.session] = None
        elif isinstance(event, Lost):
            self.lost[event.worker] = event.cause
            for number, session in self.opened.items():
                if event.worker in session.workers:
                    self.ended.setdefault(number, None)
        elif isinstance(event, Joined):
            self.lost.pop(event.worker, None)
            self.up -= {number for number, session in self.opened.items() if event.worker in session.workers}

    def expect(self, command: Command) -> None:
        """Record a command."""
        if isinstance(command, Submit):
            call, key, to = command.call, command.call.key, command.to
            if key in self.running:
                self.held[self.place[key]].pop(key, None)
            self.calls[key] = self.running[key] = self.held[to][key] = call
            self.place[key] = to
        elif isinstance(command, Open):
            self.opened[command.session.id] = command.session
        elif isinstance(command, Close):
            self.closing.add(command.session)
        elif isinstance(command, Move) and command.key in self.running:
            self.held[command.session][command.key] = self.held[self.place[command.key]].pop(command.key)
            self.place[command.key] = command.session

    def is_open(self, number: int) -> bool:
        """Return whether a session takes calls."""
        return number in self.opened and number not in self.closing and number not in self.ended

    def behind(self, number: int) -> list[int]:
        """List the unended sessions that wait for workers of this one."""
        mine = set(self.opened[number].workers)
        later = (other for other in self.opened if other not in self.ended)
        found = list(dropwhile(lambda other: other != number, later))[1:]
        return [other for other in found if not mine.isdisjoint(self.opened[other].workers)]

    def free_workers(self) -> list[int]:
        """List the workers without a session that has calls, and without a session that waits for them."""
        busy = {
            worker
            for number, session in self.opened.items()
            if number not in self.ended and (self.held[number] or number in self.closing)
            for worker in session.workers
        }
        return [worker for worker in range(self.num_workers) if worker not in busy and worker not in self.lost]

    def next_session(self) -> int:
        """Return an unused session number."""
        return 1 + max(self.opened, default=self.first_session - 1)

    def calls_by_session(self) -> list[CallRecord]:
        """List the calls that have ended, by session and then in the order of their ends."""
        turn = {number: index for index, number in enumerate(self.opened)}
        return sorted(self.records.values(), key=lambda record: turn.get(record.session, -1))

    def closed_sessions(self) -> tuple[SessionRecord, ...]:
        """List the records of ended sessions, in the order of opening."""
        ended = (self.ended.get(number) for number in self.opened)
        return tuple(record for record in ended if record is not None)

    def left_by(self, workers: Collection[int]) -> tuple[Call, ...]:
        """List the unended calls of the sessions on some workers."""
        sessions = {number for number, session in self.opened.items() if not set(workers).isdisjoint(session.workers)}
        return tuple(call for key, call in self.running.items() if self.place[key] in sessions)

"""What a run may be steered by, and what it may know."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from mosaic.core.commands import Close, Command, Move, Open, Submit
from mosaic.core.events import Closed, Event, Finished, Lost
from mosaic.core.plan import Session
from mosaic.core.results import CallRecord, SessionRecord
from mosaic.core.workload import Call, CallKey


@dataclass(slots=True)
class View:
    """What is known of a run so far. Controllers read it; the run loop alone writes it."""

    num_workers: int
    ts: float = 0.0
    calls: dict[CallKey, Call] = field(default_factory=dict)
    """All that were submitted."""
    running: dict[CallKey, Call] = field(default_factory=dict)
    """Those of them that have not ended."""
    place: dict[CallKey, int | str] = field(default_factory=dict)
    """The session, or the expert's queue, that each was last submitted or moved to."""
    records: dict[CallKey, CallRecord] = field(default_factory=dict)
    """Those that have."""
    opened: dict[int, Session] = field(default_factory=dict)
    """All sessions, in the order in which they were opened."""
    closing: set[int] = field(default_factory=set)
    """Those that get no more calls."""
    ended: dict[int, SessionRecord | None] = field(default_factory=dict)
    """Those that are over; None: lost with a worker."""
    lost: dict[int, str] = field(default_factory=dict)
    """Workers that are gone, with the cause."""

    def observe(self, event: Event) -> None:
        """Take note of an event."""
        if event.ts > self.ts:
            self.ts = event.ts
        if isinstance(event, Finished):
            record = event.record
            self.running.pop(record.key, None)
            self.records[record.key] = record
        elif isinstance(event, Closed):
            self.ended[event.record.session] = event.record
        elif isinstance(event, Lost):
            self.lost[event.worker] = event.cause
            for number, session in self.opened.items():
                if event.worker in session.workers:
                    self.ended.setdefault(number, None)

    def expect(self, command: Command) -> None:
        """Take note of a command."""
        if isinstance(command, Submit):
            call, key = command.call, command.call.key
            self.calls[key] = self.running[key] = call
            self.place[key] = command.to
        elif isinstance(command, Open):
            self.opened[command.session.id] = command.session
        elif isinstance(command, Close):
            self.closing.add(command.session)
        elif isinstance(command, Move) and command.key in self.running:
            self.place[command.key] = command.session

    def next_session(self) -> int:
        """Give a number that no session has."""
        return 1 + max(self.opened, default=-1)

    def left_by(self, worker: int) -> tuple[Call, ...]:
        """List the calls of a worker's sessions that have not ended."""
        sessions = {number for number, session in self.opened.items() if worker in session.workers}
        return tuple(call for key, call in self.running.items() if self.place[key] in sessions)


class Controller(Protocol):
    """Answers events with commands. Controllers compose: each hears every event, in the order in which they stand."""

    @property
    def reacts(self) -> bool:
        """Whether it answers single events; a plan that is fixed from the start does not."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Answer an event."""

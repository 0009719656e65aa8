"""Runs whose events are sent by hand."""

from msgspec.structs import replace

from mosaic.core.commands import Close, Open, Submit
from mosaic.core.events import Closed, Finished, Ready, Started
from mosaic.core.plan import Session
from mosaic.core.results import SessionRecord
from mosaic.core.view import View
from tests.factories import make_call
from tests.run_records import make_record


class Clock:
    """Seconds as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A run as the run loop would tell it: events are in the view when they are heard, commands soon after."""

    def __init__(self, receive, clock: Clock, num_workers: int = 2) -> None:
        self.view, self.receive, self.clock = View(num_workers), receive, clock

    @property
    def ts(self) -> float:
        return self.clock.now - 1000.0

    def send(self, event) -> list[str]:
        self.view.observe(event)
        return self.receive(event, self.view)

    def give(self, *commands) -> None:
        for command in commands:
            self.view.expect(command)

    def open(self, number: int, expert: str, num_calls: int, *, workers=(0,), after=()) -> list:
        """Open a session with calls of its own."""
        calls = [make_call(f"{expert}{number}-{i}", expert=expert) for i in range(num_calls)]
        self.give(Open(Session(id=number, expert=expert, workers=workers, after=after)))
        self.give(*(Submit(call, number) for call in calls), Close(number))
        return calls

    def start(self, *sessions: int) -> None:
        """Begin, with sessions that are ready at once."""
        self.send(Started(0.0))
        for number in sessions:
            self.send(Ready(0.0, number))

    def finish(self, number: int, calls, *, output_tokens: int = 100, **changes: object) -> list[str]:
        record = make_record(session=number, output_tokens=output_tokens, **changes)
        lines = [self.send(Finished(self.ts, replace(record, key=call.key, expert=call.expert))) for call in calls]
        return [line for part in lines for line in part]

    def close(self, number: int, *, load_s: float = 0.0, serve_s: float = 0.0) -> list[str]:
        return self.close_at(self.ts, number, load_s=load_s, serve_s=serve_s)

    def close_at(self, ts: float, number: int, *, load_s: float = 0.0, serve_s: float = 0.0) -> list[str]:
        session = self.view.opened[number]
        record = SessionRecord(
            session=number, expert=session.expert, node=session.node, workers=session.workers,
            load_start_ts=ts - serve_s - load_s, load_s=load_s, start_ts=ts - serve_s, end_ts=ts,
            num_calls=0, output_tokens=0,
        )  # fmt: skip
        return self.send(Closed(ts, record))

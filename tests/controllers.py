"""Controllers that tests steer runs with."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mosaic.core.commands import Cancel, Command
from mosaic.core.events import Event, Finished, cause_of
from mosaic.core.results import CallRecord
from mosaic.core.view import View
from mosaic.core.workload import CallKey


class Answers:
    """Gives the commands of a table, each batch once, by the name of the event that they answer."""

    reacts = True

    def __init__(self, table: Mapping[str, Iterable[Command]]) -> None:
        self.table = {cause: list(commands) for cause, commands in table.items()}

    def on(self, event: Event, view: View) -> list[Command]:
        return self.table.pop(cause_of(event), [])


class Watcher:
    """Hears every event and does nothing."""

    def __init__(self, *, reacts: bool = True) -> None:
        self.reacts = reacts
        self.events: list[Event] = []

    def on(self, event: Event, view: View) -> list[Command]:
        self.events.append(event)
        return []

    def all(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def records(self) -> list[CallRecord]:
        return [event.record for event in self.events if isinstance(event, Finished)]


class Reactor(Watcher):
    """Answers each finish with what a function of the record gives, or does something then."""

    def __init__(self, react: Callable[[CallRecord], Iterable[Command] | None]) -> None:
        super().__init__()
        self.react = react

    def on(self, event: Event, view: View) -> list[Command]:
        super().on(event, view)
        return list(self.react(event.record) or ()) if isinstance(event, Finished) else []


def cancel_on(trigger: CallKey, *keys: CallKey) -> Answers:
    """Cancel calls when another ends."""
    return Answers({f"finished {trigger}": [Cancel(key) for key in keys]})

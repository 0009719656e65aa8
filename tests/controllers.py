"""Controllers that tests steer runs with."""

from collections.abc import Iterable, Mapping

from mosaic.core.commands import Cancel, Command
from mosaic.core.events import Event, Finished, cause_of
from mosaic.core.results import CallRecord
from mosaic.core.workload import CallKey
from mosaic.runtime.controller import View


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

    @property
    def records(self) -> list[CallRecord]:
        return [event.record for event in self.events if isinstance(event, Finished)]


def cancel_on(trigger: CallKey, *keys: CallKey) -> Answers:
    """Cancel calls when another ends."""
    return Answers({f"finished {trigger}": [Cancel(key) for key in keys]})

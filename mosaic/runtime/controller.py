"""The protocol of controllers, which steer a run, and of displays and logs."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

from mosaic.core.commands import Command
from mosaic.core.events import Event
from mosaic.core.plan import Expected
from mosaic.core.view import View


class Controller(Protocol):
    """Replies to events with commands. Controllers compose: each receives every event, in their order."""

    @property
    def reacts(self) -> bool:
        """Whether it reacts to single events; a plan that is fixed from the start does not."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Reply to an event."""


class Timed:
    """A controller that measures its own time."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.reacts = controller.reacts
        self.total_s = 0.0

    def on(self, event: Event, view: View) -> Sequence[Command]:
        """Reply as the controller does."""
        start = time.perf_counter()
        commands = list(self._controller.on(event, view))
        self.total_s += time.perf_counter() - start
        return commands


Show: TypeAlias = Callable[[str, Expected], AbstractContextManager[Sequence[Controller]]]
"""Returns the controllers that display a run or a stage, given its name and its expected times."""


Log: TypeAlias = Callable[[str], object]
"""Receives a line for the user."""


def show_nothing(name: str, expected: Expected) -> AbstractContextManager[Sequence[Controller]]:
    """Display nothing."""
    return nullcontext(())

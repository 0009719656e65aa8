"""What a run may be steered by, and what it may know."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

from mosaic.core.commands import Command
from mosaic.core.events import Event
from mosaic.core.plan import Expected
from mosaic.core.view import View


class Controller(Protocol):
    """Answers events with commands. Controllers compose: each receives every event, in their order."""

    @property
    def reacts(self) -> bool:
        """Whether it answers single events; a plan that is fixed from the start does not."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Answer an event."""


class Timed:
    """A controller whose seconds are counted."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.reacts = controller.reacts
        self.total_s = 0.0

    def on(self, event: Event, view: View) -> Sequence[Command]:
        """Answer as the controller does."""
        start = time.perf_counter()
        commands = list(self._controller.on(event, view))
        self.total_s += time.perf_counter() - start
        return commands


Show: TypeAlias = Callable[[str, Expected], AbstractContextManager[Sequence[Controller]]]
"""Gives the controllers that show a run or a stage before it, by its name and what is expected of it."""


Log: TypeAlias = Callable[[str], object]
"""Takes a line that somebody in front of the run should read."""


def show_nothing(name: str, expected: Expected) -> AbstractContextManager[Sequence[Controller]]:
    """Show nothing."""
    return nullcontext(())

"""How long controllers take, beside what they steer."""

import time
from collections.abc import Sequence

from mosaic.core.commands import Command
from mosaic.core.events import Event
from mosaic.runtime.controller import Controller, View


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

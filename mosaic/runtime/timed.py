"""Controllers around controllers: how long one takes, and how often it hears that time has passed."""

import time
from collections.abc import Iterable, Sequence

from mosaic.core.commands import Command
from mosaic.core.events import Event, Tick
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


class Every:
    """A controller that hears a tick only so many seconds after the one before."""

    def __init__(self, tick_s: float | None, controller: Controller) -> None:
        self._tick_s = tick_s or 0.0
        self._controller = controller
        self._next_ts = 0.0
        self.reacts = controller.reacts

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Answer as the controller does."""
        if isinstance(event, Tick):
            if event.ts < self._next_ts:
                return ()
            self._next_ts = event.ts + self._tick_s
        return self._controller.on(event, view)

"""Keeps experts loaded: a session without calls is closed only when its workers are wanted for something else."""

from collections.abc import Iterable

from mosaic.core.commands import Close, Command
from mosaic.core.events import Event, Finished, Ready, Started
from mosaic.runtime.controller import View


class Keeping:
    """Closes sessions that nobody else closes.

    One that is up and has no calls goes when another waits behind it; one that is not up yet and has lost its calls to
    cancellations or moves goes at once, as it would load for nothing. One that was opened without calls is left to who
    opened it until it is up. It stands behind all who open sessions and move calls.
    """

    reacts = True

    def __init__(self) -> None:
        self._up: set[int] = set()
        self._used: set[int] = set()
        """Those that have had calls."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Look at every open session that has no calls."""
        if isinstance(event, Ready):
            self._up.add(event.session)
        elif isinstance(event, Finished):
            number = view.place.get(event.record.key)
            if number is None or view.held[number]:
                return ()
        elif not isinstance(event, Started) and not view.opened:
            return ()
        return [Close(number) for number in view.opened if self._is_over(number, view)]

    def _is_over(self, number: int, view: View) -> bool:
        if number in view.ended or number in view.closing:
            return False
        if view.held[number]:
            self._used.add(number)
            return False
        return bool(view.behind(number)) if number in self._up else number in self._used

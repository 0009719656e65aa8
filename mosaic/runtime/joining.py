"""Workers that join a run take over calls of the others, from then on."""

from collections.abc import Iterable

from mosaic.core.commands import Close, Command, Open
from mosaic.core.events import Event, Joined
from mosaic.runtime.controller import View
from mosaic.runtime.moves import Moves


class Joining:
    """Moves calls once a worker has joined, and none before: a run that nobody joins follows its plan.

    What is opened for them is closed when something else waits for its workers.

    Parameters
    ----------
    moves
        Says which calls go.
    """

    reacts = True

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._has_joined = False
        self._opened: set[int] = set()

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Look at everything anew as `Moves` does."""
        self._has_joined = self._has_joined or isinstance(event, Joined)
        if not self._has_joined:
            return ()
        commands = list(self._moves.on(event, view))
        self._opened |= {command.session.id for command in commands if isinstance(command, Open)}
        done = [number for number in sorted(self._opened) if view.is_open(number) and not view.held[number]]
        return [*commands, *(Close(number) for number in done if view.behind(number))]

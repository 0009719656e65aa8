"""What every backend promises."""

from collections.abc import Generator
from typing import Protocol

from mosaic.core.commands import Command
from mosaic.core.events import Event


class Backend(Protocol):
    """Runs sessions: on the simulator or on real engines. A new one for each run.

    Its clock starts with the first event and is zero then. What a command causes is reported by later events; a
    command that comes too late (its call has ended, its session is over) has no effect.
    """

    @property
    def name(self) -> str:
        """Its name in summaries."""

    def apply(self, command: Command) -> None:
        """Carry a command out; it returns at once.

        Raises
        ------
        BackendError
            If the command names an expert, a worker, a session or a call that the backend does not know, or asks
            for what can never be served.
        """

    def events(self, *, reacts: bool, tick_s: float | None = None) -> Generator[Event, None, None]:
        """Tell what happens, the first event being ``Started``; commands are applied between two events.

        It ends when every session is closed and over, or when nothing can happen any more (its workers are
        lost): calls that have not ended then are left over. Every call submitted ends once, unless its worker is lost.
        What a controller raises is thrown into it, so that it can end what it started.

        Parameters
        ----------
        reacts
            Whether a controller reacts to single events: if not, the calls of a session may be reported when it ends.
        tick_s
            Seconds between two ticks; None: none are wanted.
        """

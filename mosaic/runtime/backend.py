"""The protocol of all backends."""

from collections.abc import Generator
from typing import Protocol

from mosaic.core.commands import Command
from mosaic.core.events import Event


class Backend(Protocol):
    """Runs sessions: on the simulator or on real engines. A new one for each run.

    Its clock starts with the first event and is zero then. Later events report the effects of a command. A command that
    is too late (its call or its session has ended) has no effect.
    """

    @property
    def name(self) -> str:
        """Its name in summaries."""

    def apply(self, command: Command) -> None:
        """Execute a command; it returns at once.

        Raises
        ------
        BackendError
            If the command names an unknown expert, worker, session or call, or requests something that can never be
            served.
        """

    def events(self, *, reacts: bool, tick_s: float | None = None) -> Generator[Event, None, None]:
        """Yield the events of the run, first ``Started``; commands are applied between two events.

        The events end when every session is closed and has ended, or when nothing can happen any more (its workers are
        lost). Then calls that have not ended are left over. Every submitted call ends once, unless its worker is lost.
        An exception of a controller is thrown into the generator, so that it can stop what it started.

        Parameters
        ----------
        reacts
            Whether a controller reacts to single events. If not, the calls of a session may be reported at its end.
        tick_s
            Seconds between two ticks; None: no ticks.
        """

"""How worker processes come about, here or on other machines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from mosaic.engines.messages import Exited, FromWorker, Gone, There, ToWorker


class Channel(Protocol):
    """The link to one worker process, from its start until ``Exited`` is received."""

    def send(self, message: ToWorker) -> None:
        """Send it a message; one that is dying is noticed when it exits."""

    def kill(self) -> None:
        """End it and all it started, at once."""


class Launcher(Protocol):
    """Starts worker processes, which make their engines by one `EngineModule`, and receives what they send."""

    @property
    def num_fork_server_deaths(self) -> int:
        """How often what starts processes died, and took them with it; it is started again by itself."""

    def begin(self, folder: Path, num_workers: int, *, is_new: bool) -> None:
        """Take up a run.

        Parameters
        ----------
        folder
            Where processes print: ``worker-N.log``, and ``fork_server.log``.
        num_workers
            Among which this machine is dealt out.
        is_new
            Nothing of the run is done yet: what will be needed is got ready now, which is no time of the run's.

        Raises
        ------
        BackendError
            If what is needed now cannot be had.
        """

    def open(self, workers: tuple[int, ...]) -> Channel | None:
        """Start a process; None: not now, ask again.

        Raises
        ------
        BackendError
            If no process can be started at all.
        """

    def listen(self, timeout_s: float) -> Iterator[tuple[Channel, FromWorker | Exited]]:
        """Wait for messages, not longer than that, and give them."""

    def changes(self) -> Sequence[Gone | There]:
        """List the workers that went down and came up since the last call; at first, those that are not there."""

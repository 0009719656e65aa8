"""Ends a measurement that can price nothing any more."""

from mosaic.core.commands import Command
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.events import Event, Finished, Lost
from mosaic.core.results import SERVED
from mosaic.runtime.controller import View


class WholeSweep:
    """A controller that stops a sweep at the first call that does not finish, and says why it did not.

    A price is never fitted to part of a sweep, so what comes after it would be sent for nothing. What has finished is
    in the journal of a real run.

    Parameters
    ----------
    name
        Of the sweep.
    num_calls
        That it has.
    """

    reacts = False

    def __init__(self, name: str, num_calls: int) -> None:
        self._name = name
        self._num_calls = num_calls
        self._num_finished = 0

    def on(self, event: Event, view: View) -> tuple[Command, ...]:
        """Look at the end of each call, and at each worker that is lost.

        Raises
        ------
        BackendError
            If a call did not finish.
        DisturbedSweepError
            If a call never will since its worker is lost: on the others it may.
        """
        if isinstance(event, Finished):
            record = event.record
            if record.status not in SERVED:
                why = record.response.error if record.response is not None else None
                raise BackendError(
                    self._stopped(f"call {record.key.question} {record.status}: {why or 'no reason is known'}")
                )
            self._num_finished += 1
        elif isinstance(event, Lost) and view.left_by({event.worker}):
            raise DisturbedSweepError(self._stopped(f"worker {event.worker} is lost: {event.cause}"))
        return ()

    def _stopped(self, why: str) -> str:
        did = f"{self._num_finished} of {self._num_calls} did"
        return (
            f"{self._name}: every call must finish, {did} before it stopped: {why}. "
            "Correct this, or give a profile (profile.path, profile.aggregator_path)"
        )

"""Early quorum as a controller: it cancels calls whose answers no longer matter."""

from collections.abc import Iterable, Iterator

from mosaic.core.commands import Cancel, Command
from mosaic.core.events import Event, Finished, Lost
from mosaic.core.results import CallRecord
from mosaic.core.workload import CallKey
from mosaic.runtime.controller import View
from mosaic.runtime.layers import Questions


class Quorum:
    """Cancels a question's calls, wherever they wait or run, as soon as its rule has decided without them.

    It stands behind who places the calls of lost workers anew: those are cancelled again.
    """

    reacts = True

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._cancelled: dict[CallKey, None] = {}

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Look again at the question of a call that has ended."""
        if isinstance(event, Finished):
            self._questions.note(event.record)
            return list(self._cancel(event.record, view))
        if isinstance(event, Lost):
            return [Cancel(key) for key in self._cancelled if key in view.running]
        return ()

    def _cancel(self, ended: CallRecord, view: View) -> Iterator[Command]:
        if ended.key in self._cancelled or not self._questions.is_news(ended):
            return
        for key in self._questions.cancellable(ended.key.question):
            if key in view.running and key not in self._cancelled:
                self._cancelled[key] = None
                yield Cancel(key)

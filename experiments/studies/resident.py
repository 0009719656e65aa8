"""Calls of a pipeline on experts that are up from the start and stay: how a server runs, without plans or loads."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from mosaic.core.commands import Command, Open, Submit
from mosaic.core.events import Event, Finished, Started
from mosaic.core.plan import Session
from mosaic.core.workload import Call
from mosaic.runtime.controller import View
from mosaic.runtime.layers import Questions


class Resident:
    """Opens sessions, submits the first layer of questions, and every other call when what it reads has ended.

    Parameters
    ----------
    questions
        The batch on its way.
    sessions
        At least one an expert; calls go to the one that has had the fewest.
    home
        The session that a call goes to instead; None: there is none.
    at_once
        Questions that are under way at a time; None: all of them.
    """

    reacts = True

    def __init__(
        self,
        questions: Questions,
        sessions: Sequence[Session],
        home: Callable[[Call, View], int | None] = lambda call, view: None,
        at_once: int | None = None,
    ) -> None:
        self._questions = questions
        self._sessions = sessions
        self._home = home
        self._num_sent: Counter[int] = Counter()
        self._left = deque(question.id for question in questions)
        self._at_once = len(self._left) if at_once is None else at_once

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Go on with the question of a call that has ended, or with the next where that is over."""
        if isinstance(event, Started):
            opened = [Open(session) for session in self._sessions]
            begun = [command for _ in range(self._at_once) for command in self._begin(view)]
            return [*opened, *begun]
        if isinstance(event, Finished):
            self._questions.note(event.record)
            question = event.record.key.question
            needed = self._questions.needed(question)
            is_over = not needed and all(key in view.records for key in view.calls if key.question == question)
            return list(self._begin(view) if is_over else self._submit(needed, view))
        return ()

    def _begin(self, view: View) -> Iterator[Command]:
        if self._left:
            _, first, _ = self._questions.of(self._left.popleft())
            yield from self._submit(first, view)

    def _submit(self, calls: Sequence[Call], view: View) -> Iterator[Command]:
        for call in calls:
            if call.key in view.calls:
                continue
            number = self._home(call, view)
            if number is None:
                mine = [session.id for session in self._sessions if session.expert == call.expert]
                number = min(mine, key=lambda one: (self._num_sent[one], one))
            self._num_sent[number] += 1
            yield Submit(call, number)

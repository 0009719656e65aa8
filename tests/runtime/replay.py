"""A log of commands as a controller: what was done in a run is done again in another."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from mosaic.core.commands import Action, Close, Command, Submit
from mosaic.core.events import Event, Idle, Joined, Progress, Tick, cause_of
from mosaic.core.view import View


class Replay:
    """Gives logged commands again, each batch when the event that caused it occurs again.

    It takes the plan's place, since the log has the plan's commands too. Events that come again and again (ticks,
    progress, idle workers) cause theirs when the time has come at which the log has them. Where calls end in another
    order, one that reads others is submitted when these have ended, and its session is closed no earlier.
    """

    reacts = True

    def __init__(self, actions: Sequence[Action]) -> None:
        self._early: list[Command] = []
        self._batches: dict[str, deque[tuple[float, list[Command]]]] = {}
        for (cause, ts), batch in groupby(actions, lambda action: (action.cause, action.ts)):
            commands = [action.command for action in batch]
            self._batches.setdefault(cause, deque()).append((ts, commands))

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Give what the event caused, and what can be submitted since it came."""
        given = [*self._early, *self._caused(event)]
        submits = [one for one in given if isinstance(one, Submit)]
        early = [one for one in submits if not view.running.keys().isdisjoint(one.call.after)]
        awaited = {one.to for one in early}
        self._early = [one for one in given if one in early or (isinstance(one, Close) and one.session in awaited)]
        return [command for command in given if command not in self._early]

    def _caused(self, event: Event) -> Iterator[Command]:
        batches = self._batches.get(cause_of(event))
        if batches and not (isinstance(event, Tick | Progress | Idle | Joined) and event.ts < batches[0][0]):
            yield from batches.popleft()[1]

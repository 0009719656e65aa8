"""Controllers that stop calls: at the end of their budget, past a hedge, or when their answers no longer matter."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from mosaic.core.commands import Cancel, Command, Cut
from mosaic.core.events import Event, Finished, Lost
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey
from mosaic.pipelines.budgets import Budgets
from mosaic.runtime.controller import Controller, View
from mosaic.runtime.layers import Questions


class Cuts:
    """Gives every call its budget when it is submitted, and again where a lost worker had it.

    It stands behind who submits calls, and behind who places those of lost workers anew.
    """

    reacts = False

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._num_seen = 0

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Look at the calls that are new."""
        if isinstance(event, Lost):
            return self._cut(view.running.values())
        if len(view.calls) == self._num_seen:
            return ()
        new = islice(view.calls.values(), self._num_seen, None)
        self._num_seen = len(view.calls)
        return self._cut(new)

    def _cut(self, calls: Iterable[Call]) -> list[Command]:
        limits = ((call.key, self._budgets.limit_of(call)) for call in calls)
        return [Cut(key, limit) for key, limit in limits if limit is not None]


class Hedge:
    """Waits no longer than its hedge for the last call of a question whose other votes leave open what the gate says.

    The call is cut there, and the aggregator reads the others.
    """

    reacts = True

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._hedged: dict[CallKey, int] = {}

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Look again at the question of a call that has ended."""
        if isinstance(event, Finished):
            self._questions.note(event.record)
            key = self._questions.late_call(event.record.key.question)
            if key is not None and key in view.running and key not in self._hedged:
                self._hedged[key] = self._questions.graph.budgets.hedge_tokens[view.running[key].expert]
                return [Cut(key, self._hedged[key])]
        elif isinstance(event, Lost):
            return [Cut(key, tokens) for key, tokens in self._hedged.items() if key in view.running]
        return ()


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


def stopping_controllers(questions: Questions, *, is_cancelling: bool) -> Sequence[Controller]:
    """Make what keeps a graph's budgets and, where calls are cancelled, a quorum."""
    budgets = questions.graph.budgets
    cuts = [Cuts(budgets)] if budgets.cut_tokens else []
    hedge = [Hedge(questions)] if budgets.hedge_tokens else []
    return [*cuts, *hedge, *([Quorum(questions)] if is_cancelling else [])]

"""Stops calls: at the end of their budget, beyond a hedge, or when their answers no longer matter."""

from collections.abc import Iterable, Sequence
from itertools import islice

from mosaic.core.commands import Cancel, Command, Cut
from mosaic.core.events import Event, Finished, Lost
from mosaic.core.results import CallRecord
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey
from mosaic.pipelines.budgets import Budgets
from mosaic.pipelines.questions import Questions
from mosaic.runtime.controller import Controller


class Cuts:
    """Gives every call its budget when it is submitted, and again after the loss of its worker.

    This controller must come after those that submit calls or place calls of lost workers again.
    """

    reacts = False

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._num_seen = 0

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Check the new calls."""
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


class Stopping:
    """Checks a question whenever a call of it has ended; calls of a lost worker are stopped again.

    This controller must come after those that place the calls of lost workers again.
    """

    reacts = True

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._given: dict[CallKey, Cut | Cancel] = {}

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Check the question of an ended call."""
        if isinstance(event, Lost):
            return [command for key, command in self._given.items() if key in view.running]
        if not isinstance(event, Finished):
            return ()
        self._questions.record(event.record)
        found = self._find(event.record, view)
        new = {one.key: one for one in found if one.key in view.running and one.key not in self._given}
        self._given |= new
        return new.values()

    def _find(self, ended: CallRecord, view: View) -> Iterable[Cut | Cancel]:
        """Find the commands that stop calls of the question, sent before or not."""
        raise NotImplementedError


class Hedge(Stopping):
    """Limits the wait for the last call of a question, if the other votes do not settle it, to the call's hedge.

    The call is cut there, and the aggregator reads the others.
    """

    def _find(self, ended: CallRecord, view: View) -> Iterable[Cut]:
        key = self._questions.late_call(ended.key.question)
        if key is None or key not in view.running:
            return ()
        return [Cut(key, self._questions.graph.budgets.hedge_tokens[view.running[key].expert])]


class Quorum(Stopping):
    """Cancels a question's calls, waiting or running, as soon as its rule has decided without them."""

    def _find(self, ended: CallRecord, view: View) -> Iterable[Cancel]:
        if ended.key in self._given or not self._questions.may_change(ended):
            return ()
        return map(Cancel, self._questions.cancellable(ended.key.question))


def stopping_controllers(questions: Questions, *, is_cancelling: bool) -> Sequence[Controller]:
    """Make the controllers for a graph's budgets and, if calls are cancelled, a quorum."""
    budgets = questions.graph.budgets
    cuts = [Cuts(budgets)] if budgets.cut_tokens else []
    hedge = [Hedge(questions)] if budgets.hedge_tokens else []
    return [*cuts, *hedge, *([Quorum(questions)] if is_cancelling else [])]

"""A batch on its way through a call graph, and the pipeline with a barrier between the layers of calls."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from mosaic.core.commands import Command
from mosaic.core.errors import PlanError
from mosaic.core.events import Event, Finished, Started
from mosaic.core.plan import Plan, home_of
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey, NodeName, Question, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import End
from mosaic.pipelines.walk import Opening, QuestionState, walk
from mosaic.planning.wrapped_costs import LoadedModels
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.static_plan import plan_commands

OnPlan: TypeAlias = Callable[[Planned, int], None]
"""Receives each plan, and the number that its session 0 has in the run, before it runs."""


def ignore_plan(planned: Planned, first_session: int) -> None:
    """Receive a plan, and do nothing."""


class Questions:
    """The questions of a batch on their way through a call graph."""

    def __init__(self, workload: Workload, graph: CallGraph) -> None:
        self.graph = graph
        self.first_calls = graph.first_calls(workload)
        self.depth = {node.name: depth for depth, layer in enumerate(graph.layers) for node in layer}
        """The layer of each node."""
        self._has_one_root = len(graph.first_nodes) == 1
        self._questions = {question.id: question for question in workload.questions}
        self._first: dict[str, list[Call]] = defaultdict(list)
        for call in self.first_calls:
            self._first[call.key.question].append(call)
        self._done: dict[str, dict[CallKey, CallRecord]] = defaultdict(dict)
        self._unread_nodes = set(graph.last_nodes) - set(graph.first_nodes)
        self._num_ended_when_decided: dict[str, int] = {}
        """How many calls had ended of each question when `cancellable` first found that it needs no other."""
        self._state: QuestionState | None = None
        """Of the question that was looked at last, unless a call of it has ended since: controllers look in turn."""

    def __iter__(self) -> Iterator[Question]:
        """Go over the questions that have calls, in the order of the workload."""
        return (question for question in self._questions.values() if question.id in self._first)

    def note(self, record: CallRecord) -> None:
        """Take note of a call that has ended."""
        question = record.key.question
        if self._done[question].get(record.key) is record:
            return  # another controller has noted it
        self._done[question][record.key] = record
        if self._state is not None and self._state.question.id == question:
            self._state = None

    def is_news(self, record: CallRecord) -> bool:
        """Tell whether a call that has ended may change what its question needs.

        It does not where no node reads it, or where the question was decided before.
        """
        if record.key.node in self._unread_nodes:
            return False
        num_ended = self._num_ended_when_decided.get(record.key.question)
        return num_ended is None or num_ended == len(self._done[record.key.question])

    def of(self, question: str) -> tuple[Question, Sequence[Call], Mapping[CallKey, CallRecord]]:
        """Give a question, its calls of the first layer and what has ended of its calls."""
        return self._questions[question], self._first[question], self._done[question]

    def calls_of(self, node: NodeName, *, skipping: bool = True) -> tuple[Call, ...]:
        """List the calls of a node that questions need now, or would need if the gate skipped nothing."""
        whole = self.graph.without_rule()
        needed = (
            self.needed(question.id) if skipping else walk(whole, *self.of(question.id)).submit for question in self
        )
        return tuple(call for calls in needed for call in calls if call.key.node == node)

    def needed(self, question: str) -> tuple[Call, ...]:
        """List the calls behind the first layer that a question needs now and that have not ended."""
        waits = len(self._done[question]) < len(self._first[question])
        if waits and self._has_one_root and not self.graph.rule.is_exit:
            return ()  # every call behind them comes after all of them
        return self._state_of(question).submit

    def ends(self) -> list[End]:
        """Give how every question has ended."""
        return [self._state_of(question.id).end() for question in self]

    def openings(self, question: str) -> Iterator[Opening]:
        """Give the beginnings of a question's prompts, as far as the calls tell it that have ended."""
        return self._state_of(question).openings()

    def late_call(self, question: str) -> CallKey | None:
        """Find the call of a question that is not waited for past its hedge."""
        if not self.graph.budgets.hedge_tokens or len(self._done[question]) < len(self._first[question]) - 1:
            return None  # most often, and this runs whenever a call has ended
        return self._state_of(question).late

    def cancellable(self, question: str) -> tuple[CallKey, ...]:
        """List the calls of a question that have not ended and no longer matter."""
        state = self._state_of(question)
        if state.is_decided:
            self._num_ended_when_decided.setdefault(question, len(self._done[question]))
        return state.cancel

    def _state_of(self, question: str) -> QuestionState:
        if self._state is None or self._state.question.id != question:
            self._state = walk(self.graph, *self.of(question))
        return self._state


class Layers:
    """Plans and runs a layer of calls when the one before it has ended: the paper's barrier.

    Parameters
    ----------
    questions
        The batch on its way.
    planner
        Plans each layer.
    plans
        Saved plans, by layer. The first must be of this batch; those behind it are used where they are of just the
        calls that have come up, and made anew elsewhere.
    on_plan
        Receives each plan before it runs.
    closes
        Whether sessions are closed at once; else somebody closes them later.
    first
        The first layer, planned already: the saved plans are then of those behind it. It is planned anew where other
        calls are left.
    """

    reacts = False

    def __init__(
        self,
        questions: Questions,
        planner: Planner,
        plans: Sequence[Plan] = (),
        on_plan: OnPlan = ignore_plan,
        first: Planned | None = None,
        *,
        closes: bool = True,
    ) -> None:
        self._closes = closes
        self._questions = questions
        self._planner = planner
        self._saved = list(plans)
        self._on_plan = on_plan
        self._first = first
        self._num_layers = 0

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Begin with the first layer, and with the next whenever no call is left."""
        if isinstance(event, Finished):
            self._questions.note(event.record)
            if view.running or self._num_layers == len(self._questions.graph.layers):
                return ()
        elif not isinstance(event, Started):
            return ()
        if self._num_layers == 0:
            calls = list(self._questions.first_calls)
        else:
            calls = [call for question in self._questions for call in self._questions.needed(question.id)]
        calls = [call for call in calls if _is_left(call.key, view)]
        return self._begin(calls, view) if calls else ()

    def _begin(self, calls: Sequence[Call], view: View) -> Iterable[Command]:
        planned = self._plan(calls, view)
        self._num_layers += 1
        self._on_plan(planned, view.next_session())
        named = {call.key: call for call in calls}
        return plan_commands(planned.plan, named, view.next_session(), closes=self._closes)

    def _plan(self, calls: Sequence[Call], view: View) -> Planned:
        first, self._first = self._first, None
        if first is None and self._saved and not view.lost:
            try:
                return self._planner.plan(calls, saved=self._saved.pop(0), held=loaded_models(view))
            except PlanError:
                if not view.opened:
                    raise
        is_of_these = first is not None and first.problem.calls == tuple(calls)
        return plan_anew(self._planner, calls, view, first if is_of_these else None)


def _is_left(key: CallKey, view: View) -> bool:
    """Tell whether a call was not submitted, or failed in the run's pilot and is to be tried again."""
    record = view.records.get(key)
    return key not in view.calls or (record is not None and record.status is CallStatus.FAILED)


def plan_anew(planner: Planner, calls: Sequence[Call], view: View, made: Planned | None = None) -> Planned:
    """Plan calls on the workers that are there, by what is loaded; a plan that was made holds while none is lost."""
    return planner.plan(calls, view.lost, held=loaded_models(view)) if made is None or view.lost else made


def loaded_models(view: View) -> LoadedModels:
    """List the models of all sessions that were opened and not lost, and what each worker was to load last."""
    held = LoadedModels()
    for number, session in view.opened.items():
        if number not in view.ended or view.ended[number] is not None:
            held = held.after(*home_of(session))
    return held

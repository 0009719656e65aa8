"""Runs the pipeline with a barrier between the layers of calls."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from mosaic.core.commands import Command
from mosaic.core.errors import PlanError
from mosaic.core.events import Event, Finished, Started
from mosaic.core.plan import Plan, placement_of
from mosaic.core.results import CallStatus
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey
from mosaic.pipelines.questions import Questions
from mosaic.planning.wrapped_costs import LoadedModels
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.static_plan import plan_commands

OnPlan: TypeAlias = Callable[[Planned, int], None]
"""Receives each plan, and the number of its session 0 in the run, before it runs."""


def ignore_plan(planned: Planned, first_session: int) -> None:
    """Receive a plan, and ignore it."""


@dataclass(eq=False)
class Layers:
    """Plans and runs a layer of calls when the layer before has ended: the paper's barrier."""

    questions: Questions
    """The questions of the batch and their state."""
    planner: Planner
    """Plans each layer."""
    plans: Sequence[Plan] = ()
    """Saved plans, by layer. The first must be of this batch.

    A later plan is used if it covers exactly the calls of its layer; otherwise the layer is planned anew.
    """
    on_plan: OnPlan = ignore_plan
    """Receives each plan before it runs."""
    first: Planned | None = None
    """The plan of the first layer, if it was made before: the saved plans are then of the later layers.

    The layer is planned anew if other calls are left.
    """
    closes: bool = field(default=True, kw_only=True)
    """Whether sessions are closed at once; otherwise another controller closes them later."""
    reacts: ClassVar[bool] = False
    _num_layers: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._saved = list(self.plans)

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Start the first layer, and the next one whenever no call is left."""
        if isinstance(event, Finished):
            self.questions.record(event.record)
            if view.running or self._num_layers == len(self.questions.graph.layers):
                return ()
        elif not isinstance(event, Started):
            return ()
        if self._num_layers == 0:
            calls = list(self.questions.first_calls)
        else:
            calls = [call for question in self.questions for call in self.questions.needed(question.id)]
        calls = [call for call in calls if _is_left(call.key, view)]
        return self._begin(calls, view) if calls else ()

    def _begin(self, calls: Sequence[Call], view: View) -> Iterable[Command]:
        planned = self._plan(calls, view)
        self._num_layers += 1
        self.on_plan(planned, view.next_session())
        return plan_commands(planned.plan, calls, view.next_session(), closes=self.closes)

    def _plan(self, calls: Sequence[Call], view: View) -> Planned:
        first, self.first = self.first, None
        if first is None and self._saved and not view.lost:
            try:
                return self.planner.plan(calls, saved=self._saved.pop(0), held=loaded_models(view))
            except PlanError:
                if not view.opened:
                    raise
        is_of_these = first is not None and first.problem.calls == tuple(calls)
        return plan_anew(self.planner, calls, view, first if is_of_these else None)


def _is_left(key: CallKey, view: View) -> bool:
    """Return whether a call was not submitted, or failed in the run's pilot and must be repeated."""
    record = view.records.get(key)
    return key not in view.calls or (record is not None and record.status is CallStatus.FAILED)


def plan_anew(planner: Planner, calls: Sequence[Call], view: View, made: Planned | None = None) -> Planned:
    """Plan calls on the available workers, given the loaded models; a plan made before holds while none is lost."""
    return planner.plan(calls, view.lost, held=loaded_models(view)) if made is None or view.lost else made


def loaded_models(view: View) -> LoadedModels:
    """List the models of all sessions that were opened and not lost, and the last model of each worker."""
    held = LoadedModels()
    for number, session in view.opened.items():
        if number not in view.ended or view.ended[number] is not None:
            held = held.after(*placement_of(session))
    return held

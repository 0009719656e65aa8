"""Runs pipelines without a barrier: calls are submitted when they are ready, and sessions stay open for later ones."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

from mosaic.core.commands import Close, Command, Open, Submit
from mosaic.core.events import Event, Finished, Idle, Ready, Started
from mosaic.core.plan import Session
from mosaic.core.results import CallRecord
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.pipelines.questions import Questions
from mosaic.planning.staying import stay
from mosaic.runtime.forecaster import Forecaster
from mosaic.runtime.layers import OnPlan, ignore_plan, plan_anew
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.static_plan import opened, plan_commands

Home: TypeAlias = Callable[[Call, View], int | None]
"""Returns the preferred session of a call, even if others have more room; None: there is none."""


@dataclass(kw_only=True)
class SubmitWhenReady:
    """Submits every call as soon as the calls that it reads have ended; subclasses choose start and sessions."""

    questions: Questions
    """The questions of the batch and their state."""
    home: Home = lambda call, view: None
    waiting: dict[CallKey, Call] = field(default_factory=dict, init=False)
    """Ready calls without a session."""
    reacts: ClassVar[bool] = True

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Start with the first layer, and continue with every question independently."""
        if isinstance(event, Started):
            return self._begin(view)
        if not isinstance(event, Finished):
            return ()
        self.questions.record(event.record)
        is_new = self.questions.may_change(event.record)
        needed = self.questions.needed(event.record.key.question) if is_new else ()
        ready = [call for call in needed if call.key not in view.calls and call.key not in self.waiting]
        return [*self._go_on(event.record, ready, view)]

    def _begin(self, view: View) -> Iterable[Command]:
        """Open sessions for the first layer, and submit it."""
        raise NotImplementedError

    def _go_on(self, record: CallRecord, ready: Sequence[Call], view: View) -> Iterator[Command]:
        """Submit the calls that became ready when a call ended."""
        yield from self._submit(ready, view)

    def _submit(self, ready: Sequence[Call], view: View) -> Iterator[Command]:
        for call in ready:
            home = self.home(call, view)
            to = self._place(call, view) if home is None else home
            if to is None:
                self.waiting[call.key] = call
            else:
                yield Submit(call, to)

    def _place(self, call: Call, view: View) -> int | ExpertName | None:
        """Choose a session for a call, or its expert's queue; None: the call waits."""
        return call.expert


@dataclass(kw_only=True)
class PlannedAhead(SubmitWhenReady):
    """Plans sessions for all layers at the start, for the expected calls.

    Sessions of later layers open after the earlier sessions on their workers. They take calls from their expert's
    queue, and are closed when no more can come. A session for an unexpected call is planned when it arrives.
    """

    planner: Planner
    expected: Sequence[Sequence[Call]]
    """By layer after the first, the calls that the batch is expected to need."""
    on_plan: OnPlan = ignore_plan
    first: Planned | None = None
    """The plan of the first layer, if it was made before; None: it is planned at the start."""
    stays: bool = False
    """Whether experts that a later layer needs again stay loaded (``mosaic.planning.staying``)."""
    resident: dict[int, ExpertName] = field(default_factory=dict, init=False)
    """By worker: the expert of the last session that was opened on it."""
    sessions: dict[int, tuple[int, Session]] = field(default_factory=dict, init=False)
    """Sessions that take calls from queues, with their layers."""

    def __post_init__(self) -> None:
        self._num_left = Counter((0, call.expert) for call in self.questions.first_calls)
        """Known calls that have not ended, by layer and expert."""

    def _begin(self, view: View) -> Iterator[Command]:
        first = self.questions.first_calls
        planned = self._plan(0, first, view, self.first)
        self.on_plan(planned, 0)
        yield from plan_commands(planned.plan, first)
        number = 1 + max(session.id for session in planned.plan.sessions)
        for depth, calls in enumerate(self.expected, start=1):
            if calls:
                number = yield from self._open(depth, calls, number, view)

    def _go_on(self, record: CallRecord, ready: Sequence[Call], view: View) -> Iterator[Command]:
        self._num_left[self.questions.depth[record.key.node], record.expert] -= 1
        self._num_left.update((self.questions.depth[call.key.node], call.expert) for call in ready)
        taking = [number for number in self.sessions if number not in view.closing and number not in view.ended]
        served = {(depth, session.expert) for depth, session in map(self.sessions.__getitem__, taking)}
        unserved = [call for call in ready if (self.questions.depth[call.key.node], call.expert) not in served]
        number = view.next_session()
        for depth in sorted({self.questions.depth[call.key.node] for call in unserved}):
            calls = [call for call in unserved if self.questions.depth[call.key.node] == depth]
            number = yield from self._open(depth, calls, number, view)
        yield from self._submit(ready, view)
        yield from (Close(number) for number in taking if self._is_over(number))

    def _open(self, depth: int, calls: Sequence[Call], number: int, view: View) -> Generator[Command, None, int]:
        """Open the sessions of a plan for some calls of a layer, numbered from ``number``; return the next number."""
        planned = self._plan(depth, calls, view)
        self.on_plan(planned, number)
        for session in planned.plan.sessions:
            mine = opened(session, number)
            self.sessions[mine.id] = depth, mine
            yield Open(mine)
        return 1 + max(self.sessions)

    def _plan(self, depth: int, calls: Sequence[Call], view: View, made: Planned | None = None) -> Planned:
        """Plan calls of a layer, unless a plan is given; if ``stays``, experts stay loaded."""
        made = plan_anew(self.planner, calls, view, made)
        if not self.stays:
            return made
        above = self.expected[depth] if depth < len(self.expected) else ()
        later = Counter(call.expert for call in above)
        plan = stay(made.plan, made.problem, resident=self.resident, num_later=later, lost=view.lost)
        self.resident |= {worker: session.expert for session in plan.sessions for worker in session.workers}
        return replace(made, plan=plan)

    def _is_over(self, number: int) -> bool:
        """Return whether a session has no calls, and either no more can come or an earlier layer waits after it."""
        depth, session = self.sessions[number]
        if self._num_left[depth, session.expert]:
            return False
        if not any(left for (other, _), left in self._num_left.items() if other < depth):
            return True
        return any(
            later > number and other < depth and set(behind.workers) & set(session.workers)
            for later, (other, behind) in self.sessions.items()
        )


@dataclass(kw_only=True)
class Overlap(SubmitWhenReady):
    """Lets a call after the first layer join a session of its expert.

    If its expert has no session, the call waits until one of two conditions holds. A worker is free, and the others are
    predicted to need longer than a load. Or no call with a session runs any more: then the waiting calls are planned
    like a layer. Sessions are left open; ``Keeping`` closes them.
    """

    planner: Planner
    forecaster: Forecaster
    """Predicts the run; it must come before this controller."""
    on_plan: OnPlan = ignore_plan
    first: Planned | None = None
    """The plan of the first layer, if it was made before; None: it is planned at the start."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Reconsider the waiting calls also when a worker is idle, or a session is up."""
        if self.waiting and isinstance(event, Idle | Ready):
            return [*self._start_early(view)]
        return super().on(event, view)

    def _begin(self, view: View) -> Iterator[Command]:
        return self._serve(self.questions.first_calls, view, self.first)

    def _serve(self, calls: Sequence[Call], view: View, made: Planned | None = None) -> Iterator[Command]:
        """Open the sessions of a plan for some calls, and submit them."""
        made = plan_anew(self.planner, calls, view, made)
        self.on_plan(made, view.next_session())
        yield from plan_commands(made.plan, calls, view.next_session(), closes=False)

    def _go_on(self, record: CallRecord, ready: Sequence[Call], view: View) -> Iterator[Command]:
        if self.waiting and self.questions.graph.rule.is_exit:
            for key in self.questions.cancellable(record.key.question):
                self.waiting.pop(key, None)
        yield from self._submit(ready, view)
        if not self.waiting:
            return
        if view.running:
            yield from self._start_early(view)
            return
        lowest = min(self.questions.depth[key.node] for key in self.waiting)
        calls = [call for key, call in self.waiting.items() if self.questions.depth[key.node] == lowest]
        for call in calls:
            del self.waiting[call.key]
        yield from self._serve(calls, view)

    def _place(self, call: Call, view: View) -> int | None:
        """Find the session of a call's expert that is up, or will be, and has the fewest calls."""
        numbers = [n for n, session in view.opened.items() if session.expert == call.expert and view.is_open(n)]
        return min(numbers, key=lambda n: (n not in view.up, len(view.held[n])), default=None)

    def _start_early(self, view: View) -> Iterator[Command]:
        """Give waiting calls a session on a free worker, if the others need longer than the load takes."""
        free = view.free_workers()
        if not free:
            return
        end_s = self.forecaster.forecast(view).end_s
        number = view.next_session()
        for expert in dict.fromkeys(call.expert for call in self.waiting.values()):
            place = self.forecaster.soonest(expert, free)
            if place is None or place[0] >= end_s:
                continue
            _, worker = place
            free.remove(worker)
            calls = [call for call in self.waiting.values() if call.expert == expert]
            yield Open(Session(id=number, expert=expert, node=calls[0].key.node, workers=(worker,)))
            for call in calls:
                del self.waiting[call.key]
                yield Submit(call, number)
            number += 1


class Keeping:
    """Closes sessions that no other controller closes, when their workers are needed for another session.

    A session that is up and has no calls is closed when another waits after it. A session that is not up yet may lose
    its calls to cancellations or moves. It is closed at once, since its load would be useless. A session opened without
    calls belongs to the controller that opened it until it is up. This controller must come after all that open
    sessions and move calls.
    """

    reacts = True

    def __init__(self) -> None:
        self._used: set[int] = set()
        """Sessions that have had calls."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Check every open session that has no calls."""
        if isinstance(event, Finished):
            number = view.place.get(event.record.key)
            if number is None or view.held[number]:
                return ()
        return [Close(number) for number in view.opened if self._is_over(number, view)]

    def _is_over(self, number: int, view: View) -> bool:
        if number in view.ended or number in view.closing:
            return False
        if view.held[number]:
            self._used.add(number)
            return False
        return bool(view.behind(number)) if number in view.up else number in self._used

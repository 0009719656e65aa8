"""Overlapped aggregation: calls of upper layers start while the first one runs, where their expert is or fits in."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from mosaic.core.commands import Command, Open, Submit
from mosaic.core.events import Event, Finished, Idle, Ready, Started
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.runtime.controller import View
from mosaic.runtime.layers import Questions
from mosaic.runtime.left import left_behind
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.prospects import Prospects
from mosaic.runtime.static_plan import plan_commands


class Overlap:
    """Plans the first layer, and lets a call behind it join a session of its expert as soon as it can be made.

    Where its expert has no session the call waits: for a worker that is free while the others are predicted to need
    longer than a load, or until no call runs that has a session; then what waits is planned like a layer. Sessions are
    left open, for ``Keeping`` to close.

    Parameters
    ----------
    questions
        The batch on its way.
    planner
        Plans the first layer, and what nobody has served when it is over.
    prospects
        What is predicted.
    plan
        Of the first layer.
    on_plan
        As in ``Layers``.
    home
        As in ``Flow``.
    """

    reacts = True

    def __init__(
        self,
        questions: Questions,
        planner: Planner,
        prospects: Prospects,
        plan: Plan,
        on_plan: Callable[[Planned, int], None] = lambda planned, first_session: None,
        home: Callable[[Call, View], int | None] = lambda call, view: None,
    ) -> None:
        self._home = home
        self._questions = questions
        self._planner = planner
        self._prospects = prospects
        self._plan = plan
        self._depth = {node.name: depth for depth, layer in enumerate(questions.graph.layers) for node in layer}
        self._on_plan = on_plan
        self._waiting: dict[CallKey, Call] = {}
        """Calls that could run and have no session."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Begin with the first layer, and go on with every question for itself."""
        if isinstance(event, Started):
            return self._begin(self._questions.first_calls, view, self._plan)
        if isinstance(event, Finished):
            self._questions.note(event.record)
            return [*self._go_on(event.record.key.question, view)]
        return [*self._start_early(view)] if self._waiting and isinstance(event, Idle | Ready) else ()

    def _begin(self, calls: Sequence[Call], view: View, plan: Plan | None = None) -> Iterator[Command]:
        planned = self._planner.plan(calls, view.lost, None if view.lost else plan, left_behind(view))
        self._on_plan(planned, view.next_session())
        yield from plan_commands(planned.plan, {call.key: call for call in calls}, view.next_session(), closes=False)

    def _go_on(self, question: str, view: View) -> Iterator[Command]:
        if self._waiting and self._questions.graph.exit is not None:
            for key in self._questions.needless(question):
                self._waiting.pop(key, None)
        for call in self._questions.needed(question):
            if call.key in view.calls or call.key in self._waiting:
                continue
            home = self._home(call, view)
            number = self._session_for(call.expert, view) if home is None else home
            if number is None:
                self._waiting[call.key] = call
            else:
                yield Submit(call, number)
        if not self._waiting:
            return
        if view.running:
            yield from self._start_early(view)
            return
        lowest = min(self._depth[key.node] for key in self._waiting)
        calls = [call for key, call in self._waiting.items() if self._depth[key.node] == lowest]
        for call in calls:
            del self._waiting[call.key]
        yield from self._begin(calls, view)

    def _session_for(self, expert: ExpertName, view: View) -> int | None:
        """Find the session of an expert that is up, or will be, and has the fewest calls."""
        numbers = [n for n, session in view.opened.items() if session.expert == expert and view.is_open(n)]
        return min(numbers, key=lambda n: (n not in self._prospects.up, len(view.held[n])), default=None)

    def _start_early(self, view: View) -> Iterator[Command]:
        """Give what waits a session on a worker that is free, if the others need longer than it takes to load."""
        free = free_workers(view)
        if not free:
            return
        end_s = self._prospects.outlook(view).end_s
        number = view.next_session()
        for expert in dict.fromkeys(call.expert for call in self._waiting.values()):
            places = [(self._prospects.load_s(expert, (worker,)), worker) for worker in free]
            places = [(load_s, worker) for load_s, worker in places if self._can_run(expert, worker)]
            if not places or min(places)[0] >= end_s:
                continue
            worker = min(places)[1]
            free.remove(worker)
            calls = [call for call in self._waiting.values() if call.expert == expert]
            yield Open(Session(id=number, expert=expert, node=calls[0].key.node, workers=(worker,)))
            for call in calls:
                del self._waiting[call.key]
                yield Submit(call, number)
            number += 1

    def _can_run(self, expert: ExpertName, worker: int) -> bool:
        return self._prospects.measured.speed(expert, (worker,)) is not None


def free_workers(view: View) -> list[int]:
    """List the workers that hold no session with calls, and that none waits for."""
    busy = {
        worker
        for number, session in view.opened.items()
        if number not in view.ended and (view.held[number] or number in view.closing)
        for worker in session.workers
    }
    return [worker for worker in range(view.num_workers) if worker not in busy and worker not in view.lost]

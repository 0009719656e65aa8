"""Pipelines as controllers: with a barrier between the layers of calls, or without."""

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from mosaic.core.commands import Close, Command, Open, Submit
from mosaic.core.errors import PlanError
from mosaic.core.events import Event, Finished, Started
from mosaic.core.plan import Plan, Session
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, ExpertName, NodeName, Question, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.read_ahead import Opening
from mosaic.pipelines.steps import End, Forecast, Progress, expected_calls
from mosaic.planning.staying import stay
from mosaic.runtime.controller import View
from mosaic.runtime.left import left_behind
from mosaic.runtime.pilot_stages import InTurn
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.static_plan import opened, plan_commands


class Questions:
    """The questions of a batch on their way through a call graph."""

    def __init__(self, workload: Workload, graph: CallGraph) -> None:
        self.graph = graph
        self.first_calls = graph.first_calls(workload)
        self._has_one_root = len(graph.first_nodes) == 1
        self._questions = {question.id: question for question in workload.questions}
        self._first: dict[str, list[Call]] = defaultdict(list)
        for call in self.first_calls:
            self._first[call.key.question].append(call)
        self._done: dict[str, dict[CallKey, CallRecord]] = defaultdict(dict)
        self._progress: dict[str, Progress] = {}
        self._needless: dict[str, tuple[CallKey, ...]] = {}
        """Both as far as asked for since a call of the question has ended: votes are counted once."""

    def __iter__(self) -> Iterator[Question]:
        """Go over the questions that have calls, in the order of the workload."""
        return (question for question in self._questions.values() if question.id in self._first)

    def note(self, record: CallRecord) -> None:
        """Take note of a call that has ended."""
        question = record.key.question
        if self._done[question].get(record.key) is record:
            return  # another controller has noted it
        self._done[question][record.key] = record
        self._progress.pop(question, None)
        self._needless.pop(question, None)

    def of(self, question: str) -> tuple[Question, Sequence[Call], Mapping[CallKey, CallRecord]]:
        """Give a question, its calls of the first layer and what has ended of its calls."""
        return self._questions[question], self._first[question], self._done[question]

    def calls_of(self, node: NodeName, *, skipping: bool = True) -> tuple[Call, ...]:
        """List the calls of a node that questions need now, or would need if the gate skipped nothing."""
        ungated = self.graph.without_gate()
        needed = (
            self.needed(question.id) if skipping else ungated.progress(*self.of(question.id)).submit
            for question in self
        )
        return tuple(call for calls in needed for call in calls if call.key.node == node)

    def needed(self, question: str) -> tuple[Call, ...]:
        """List the calls behind the first layer that a question needs now and that have not ended."""
        if self._has_one_root and self.graph.exit is None and len(self._done[question]) < len(self._first[question]):
            return ()  # every call behind them comes after all of them
        return self._progress_of(question).submit

    def ends(self) -> list[End]:
        """Give how every question has ended."""
        graph = self.graph
        return [graph.end(*self.of(question.id), self._progress_of(question.id)) for question in self]

    def openings(self, question: str) -> Iterator[Opening]:
        """Give the beginnings of a question's prompts, as far as the calls tell it that have ended."""
        return self.graph.openings(*self.of(question))

    def late_call(self, question: str) -> CallKey | None:
        """Find the call of a question that is not waited for past its hedge."""
        return self.graph.late_first_call(*self.of(question))

    def needless(self, question: str) -> tuple[CallKey, ...]:
        """List the calls of a question that have not ended and no longer matter."""
        if question not in self._needless:
            self._look(question)
        if question not in self._needless:
            self._needless[question] = self.graph.needless(*self.of(question))
        return self._needless[question]

    def _progress_of(self, question: str) -> Progress:
        if question not in self._progress:
            self._look(question)
        if question not in self._progress:
            self._progress[question] = self.graph.progress(*self.of(question))
        return self._progress[question]

    def _look(self, question: str) -> None:
        """Under an early exit, tell how far a question is and what is needless of it: both are found together."""
        if self.graph.exit is not None:
            self._progress[question], self._needless[question] = self.graph.course(*self.of(question))


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
        Told of each plan, and of the number that its session 0 has in the run, before it runs.
    pilot
        Runs before the first layer, which is then what it has left.
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
        on_plan: Callable[[Planned, int], None] = lambda planned, first_session: None,
        pilot: InTurn | None = None,
        first: Planned | None = None,
        *,
        closes: bool = True,
    ) -> None:
        self._closes = closes
        self._questions = questions
        self._planner = planner
        self._saved = list(plans)
        self._on_plan = on_plan
        self._pilot = pilot
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
        if self._pilot is not None and self._pilot.is_left:
            return self._pilot.on(event, view)
        if self._num_layers == 0:
            calls = list(self._questions.first_calls)
        else:
            calls = [call for question in self._questions for call in self._questions.needed(question.id)]
        calls = [call for call in calls if call.key not in view.calls]
        return self._begin(calls, view) if calls else ()

    def _begin(self, calls: Sequence[Call], view: View) -> Iterable[Command]:
        planned = self._plan(calls, view)
        self._num_layers += 1
        self._on_plan(planned, view.next_session())
        named = {call.key: call for call in calls}
        return plan_commands(planned.plan, named, view.next_session(), closes=self._closes)

    def _plan(self, calls: Sequence[Call], view: View) -> Planned:
        held = left_behind(view)
        first, self._first = self._first, None
        if first is not None:
            is_of_these = not view.lost and first.problem.calls == tuple(calls)
            return first if is_of_these else self._planner.plan(calls, view.lost, held=held)
        if self._saved and not view.lost:
            try:
                return self._planner.plan(calls, saved=self._saved.pop(0), held=held)
            except PlanError:
                if not view.opened:
                    raise
        return self._planner.plan(calls, view.lost, held=held)


class Flow:
    """Submits every call as soon as what it reads has ended: no barrier.

    The first layer is planned as with a barrier. Sessions for the layers behind it are planned for the calls that are
    expected, open behind those before them on their workers, take calls from their expert's queue, and are closed when
    no more can come. A call that was not expected has a session planned when it comes.

    Parameters
    ----------
    questions, planner, on_plan
        As in ``Layers``.
    expected
        The calls that the batch is expected to need.
    first
        The first layer, planned already; None: it is planned at the start.
    home
        The session that a call goes to, and not to its expert's queue; None: there is none.
    stays
        Whether experts that are asked again stay where they are loaded (``mosaic.planning.staying``).
    """

    reacts = True

    def __init__(
        self,
        questions: Questions,
        planner: Planner,
        expected: Sequence[Forecast],
        on_plan: Callable[[Planned, int], None] = lambda planned, first_session: None,
        first: Planned | None = None,
        home: Callable[[Call, View], int | None] = lambda call, view: None,
        *,
        stays: bool = False,
    ) -> None:
        self._home = home
        self._stays = stays
        self._resident: dict[int, ExpertName] = {}
        """By worker: the expert of the last session that was opened on it."""
        self._questions = questions
        self._planner = planner
        self._expected = expected
        self._on_plan = on_plan
        self._first = first
        layers = questions.graph.layers
        self._layers = [{node.name for node in layer} for layer in layers]
        self._depth = {node.name: depth for depth, layer in enumerate(layers) for node in layer}
        self._opened: dict[int, tuple[int, Session]] = {}
        """Sessions that take calls from queues, with their layers."""
        self._num_left = Counter((0, call.expert) for call in questions.first_calls)
        """Calls that have come up and have not ended, by layer and expert."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Open all sessions at the start; afterwards submit what questions need, and close what gets no more."""
        if isinstance(event, Started):
            return self._begin(view)
        return self._go_on(event.record, view) if isinstance(event, Finished) else ()

    def _begin(self, view: View) -> Iterator[Command]:
        first = self._questions.first_calls
        planned = self._first
        if planned is None or view.lost:
            planned = self._planner.plan(first, view.lost, held=left_behind(view))
        planned = self._settled(planned, 0, view)
        self._on_plan(planned, 0)
        yield from plan_commands(planned.plan, {call.key: call for call in first})
        number = 1 + max(session.id for session in planned.plan.sessions)
        for depth, nodes in enumerate(self._layers[1:], start=1):
            if calls := expected_calls(self._expected, nodes):
                number = yield from self._open(depth, calls, number, view)

    def _go_on(self, record: CallRecord, view: View) -> Iterator[Command]:
        self._questions.note(record)
        self._num_left[self._depth[record.key.node], record.expert] -= 1
        needed = [call for call in self._questions.needed(record.key.question) if call.key not in view.calls]
        self._num_left.update((self._depth[call.key.node], call.expert) for call in needed)
        taking = [number for number in self._opened if number not in view.closing and number not in view.ended]
        served = {(depth, session.expert) for depth, session in map(self._opened.__getitem__, taking)}
        unserved = [call for call in needed if (self._depth[call.key.node], call.expert) not in served]
        number = view.next_session()
        for depth in sorted({self._depth[call.key.node] for call in unserved}):
            calls = [call for call in unserved if self._depth[call.key.node] == depth]
            number = yield from self._open(depth, calls, number, view)
        for call in needed:
            home = self._home(call, view)
            yield Submit(call, call.expert if home is None else home)
        yield from (Close(number) for number in taking if self._is_over(number))

    def _open(self, depth: int, calls: Sequence[Call], number: int, view: View) -> Generator[Command, None, int]:
        """Open the sessions that a plan for some calls of a layer has, from this number on; return the next one."""
        planned = self._planner.plan(calls, view.lost, held=left_behind(view))
        planned = self._settled(planned, depth, view)
        self._on_plan(planned, number)
        for session in planned.plan.sessions:
            numbered = opened(session, number)
            self._opened[numbered.id] = depth, numbered
            yield Open(numbered)
        return 1 + max(self._opened)

    def _settled(self, planned: Planned, depth: int, view: View) -> Planned:
        """Let experts stay where they are loaded, if that is wanted."""
        if not self._stays:
            return planned
        above = self._layers[depth + 1] if depth + 1 < len(self._layers) else set()
        later = Counter(call.expert for call in expected_calls(self._expected, above))
        plan = stay(planned.plan, planned.problem, resident=self._resident, num_later=later, lost=view.lost)
        self._resident |= {worker: session.expert for session in plan.sessions for worker in session.workers}
        return replace(planned, plan=plan)

    def _is_over(self, number: int) -> bool:
        """Tell whether a session has nothing to do, and either no more can come or an earlier layer waits behind it."""
        depth, session = self._opened[number]
        if self._num_left[depth, session.expert]:
            return False
        if not any(left for (other, _), left in self._num_left.items() if other < depth):
            return True
        return any(
            later > number and other < depth and set(behind.workers) & set(session.workers)
            for later, (other, behind) in self._opened.items()
        )

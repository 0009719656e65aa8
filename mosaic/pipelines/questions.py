"""Tracks the questions of a batch on their way through a call graph: ended calls, and the state of each question."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, NodeName, Question, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import End
from mosaic.pipelines.walk import Opening, QuestionState, walk


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
        self._done: dict[str, list[CallRecord]] = defaultdict(list)
        """Lists, of one record a call: a dictionary for each question would take three times the memory."""
        self._unread_nodes = set(graph.last_nodes) - set(graph.first_nodes)
        self._num_ended_when_decided: dict[str, int] = {}
        """Number of ended calls of each question when `cancellable` first found it decided."""
        self._ends: dict[str, End] = {}
        """Ends of questions that `needed` found complete; no call of them has ended since."""
        self._state: QuestionState | None = None
        """State of the last question in use, unless a call of it has ended since: several controllers read it."""

    def __iter__(self) -> Iterator[Question]:
        """Iterate over the questions that have calls, in the order of the workload."""
        return (question for question in self._questions.values() if question.id in self._first)

    def record(self, record: CallRecord) -> None:
        """Record a call that has ended."""
        question = record.key.question
        done = self._done[question]
        for place, earlier in enumerate(done):
            if earlier is record:
                return  # another controller has recorded it
            if earlier.key == record.key:
                done[place] = record
                break
        else:
            done.append(record)
        self._ends.pop(question, None)
        if self._state is not None and self._state.question.id == question:
            self._state = None

    def may_change(self, record: CallRecord) -> bool:
        """Return whether an ended call may change what its question needs.

        It does not if no node reads it, or if the question was decided before.
        """
        if record.key.node in self._unread_nodes:
            return False
        num_ended = self._num_ended_when_decided.get(record.key.question)
        return num_ended is None or num_ended == len(self._done[record.key.question])

    def of(self, question: str) -> tuple[Question, Sequence[Call], Mapping[CallKey, CallRecord]]:
        """Return a question, its calls of the first layer and the records of its ended calls."""
        done = {record.key: record for record in self._done[question]}
        return self._questions[question], self._first[question], done

    def calls_of(self, node: NodeName, *, skipping: bool = True) -> tuple[Call, ...]:
        """List the calls of a node that questions need now, or would need if the gate skipped nothing."""
        whole = self.graph.without_rule()
        needed = (
            self.needed(question.id) if skipping else walk(whole, *self.of(question.id)).submit for question in self
        )
        return tuple(call for calls in needed for call in calls if call.key.node == node)

    def needed(self, question: str) -> tuple[Call, ...]:
        """List the unended calls after the first layer that a question needs now."""
        waits = len(self._done[question]) < len(self._first[question])
        if waits and self._has_one_root and not self.graph.rule.is_exit:
            return ()  # every later call depends on all of them
        state = self.state_of(question)
        submit = state.submit
        if not (submit or waits or any(node.waits for node in state.nodes.values())):
            self._ends[question] = state.end()
        return submit

    def ends(self) -> list[End]:
        """Return the end of every question."""
        return [self._ends.get(question.id) or self.state_of(question.id).end() for question in self]

    def openings(self, question: str) -> Iterator[Opening]:
        """Return the beginnings of a question's prompts that ended calls determine."""
        return self.state_of(question).openings()

    def late_call(self, question: str) -> CallKey | None:
        """Find the call of a question that is not waited for beyond its hedge."""
        if not self.graph.budgets.hedge_tokens or len(self._done[question]) < len(self._first[question]) - 1:
            return None  # the usual case; this runs for every ended call
        return self.state_of(question).late

    def cancellable(self, question: str) -> tuple[CallKey, ...]:
        """List the unended calls of a question that can no longer change its answer."""
        state = self.state_of(question)
        if state.is_decided:
            self._num_ended_when_decided.setdefault(question, len(self._done[question]))
        return state.cancel

    def forget(self, question: str) -> None:
        """Delete the data of a question that has ended."""
        self._done.pop(question, None)
        self._ends.pop(question, None)
        self._state = None

    def state_of(self, question: str) -> QuestionState:
        """Return the state of a question."""
        if self._state is None or self._state.question.id != question:
            self._state = walk(self.graph, *self.of(question))
        return self._state

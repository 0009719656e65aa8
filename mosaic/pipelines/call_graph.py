"""Which calls a question needs: a graph of nodes, each a few experts that read what came before.

The paper's Mixture-of-Agents is two nodes: the recruited experts, and an aggregator where the gate does not skip. A
tree of agents, or several layers, are other graphs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from mosaic.answers.extraction import is_correct
from mosaic.core.chat import Chat, in_context
from mosaic.core.checks import require, require_unique
from mosaic.core.results import CallRecord, CallStatus, Inputs
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey, Expert, NodeName, Question, Workload
from mosaic.pipelines.aggregation import MIN_OUTPUT_TOKENS
from mosaic.pipelines.budgets import Budgets
from mosaic.pipelines.exits.course import Course, check_alone, course
from mosaic.pipelines.exits.exit import Exit
from mosaic.pipelines.final_answers import Comparisons, FinalAnswer
from mosaic.pipelines.gates.gate import Ballot, Decision, Gate, Never, Vote, make_ballot
from mosaic.pipelines.node import Node, When, node_calls, node_prompt
from mosaic.pipelines.prompts import expert_prompt
from mosaic.pipelines.quorum import needless_calls, partial_ballot, said
from mosaic.pipelines.read_ahead import Opening, ReadAhead, openings
from mosaic.pipelines.steps import End, Forecast, Progress, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class CallGraph:
    """The calls of every question of a workload, as their inputs finish."""

    nodes: tuple[Node, ...]
    """In an order in which each comes behind those that it reads."""
    gate: Gate = field(default_factory=Never)
    compare: Comparisons
    """How answers compare."""
    budgets: Budgets = field(default_factory=Budgets)
    read_ahead: ReadAhead | None = None
    """How prompts are laid out to be prefilled ahead of time; None: they are not."""
    exit: Exit | None = None
    """When agents that have ended are enough; None: never."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        require(len(self.nodes) > 0, "pipeline: nodes", "at least one", 0)
        require_unique((node.name for node in self.nodes), "pipeline: name of a node")
        known: set[NodeName] = set()
        for node in self.nodes:
            for needed in node.after:
                require(needed in known, f"node {node.name}: after", f"of the nodes before it, {sorted(known)}", needed)
            known.add(node.name)
        require(not self.nodes[0].after, f"node {self.nodes[0].name}: after", "empty, as it is the first", "others")
        if self.exit is not None:
            check_alone(self.exit.name, self.nodes, self.gate, self.budgets)

    @property
    def first_nodes(self) -> tuple[NodeName, ...]:
        """Nodes that read no other's response."""
        return tuple(node.name for node in self.nodes if not node.after)

    @property
    def upper_nodes(self) -> tuple[Node, ...]:
        """Nodes that read others."""
        return tuple(node for node in self.nodes if node.after)

    @property
    def layers(self) -> tuple[tuple[Node, ...], ...]:
        """Nodes by the number of nodes that are to end before them."""
        depth: dict[NodeName, int] = {}
        for node in self.nodes:
            depth[node.name] = 1 + max((depth[needed] for needed in node.after), default=-1)
        return tuple(
            tuple(node for node in self.nodes if depth[node.name] == level) for level in range(max(depth.values()) + 1)
        )

    @property
    def experts(self) -> tuple[Expert, ...]:
        """All that nodes name."""
        return tuple({expert.name: expert for node in self.nodes for expert in node.experts}.values())

    def without_gate(self) -> "CallGraph":
        """Return the graph in which every question goes all the way, and every call."""
        return replace(self, gate=Never(), budgets=Budgets(), exit=None)

    @property
    def decider(self) -> Gate | Exit:
        """Who says where no more answers are needed."""
        return self.exit or self.gate

    @property
    def asks_everybody(self) -> bool:
        """Whether nothing leaves a call out, or cuts one."""
        return isinstance(self.gate, Never) and not self.budgets and self.exit is None

    def deciding(self) -> "CallGraph":
        """Return the graph without the calls that decide nothing."""
        return replace(self, nodes=tuple(replace(node, leaves_one_out=False) for node in self.nodes))

    def first_calls(self, workload: Workload) -> tuple[Call, ...]:
        """List the calls of the first layer: those recruited, and those of nodes that name their experts."""
        calls = list(workload.calls) if not self.nodes[0].experts else []
        for node in self.layers[0]:
            calls += [
                Call(CallKey(question.id, node.name, slot), expert.name, question.prompt_tokens)
                for question in (workload.questions if node.experts else ())
                for slot, expert in enumerate(node.experts)
            ]
        return tuple(calls)

    def step(self, question: Question, first: Sequence[Call], done: Inputs) -> Step:
        """Say what a question needs now.

        Parameters
        ----------
        question
            It.
        first
            Its calls of the first layer.
        done
            What became of its calls that have ended.
        """
        progress = self.progress(question, first, done)
        if not progress.is_over:
            return Step(submit=progress.submit, cancel=self.needless(question, first, done))
        return Step(answer=self.end(question, first, done, progress).answer)

    def needless(self, question: Question, first: Sequence[Call], done: Inputs) -> tuple[CallKey, ...]:
        """List the calls of a question that have not ended and whose answers no longer matter: an early quorum."""
        if self.exit is not None:
            return self.course(question, first, done).needless
        return needless_calls(self.nodes, self._is_settled, question, first, done)

    def openings(self, question: Question, first: Sequence[Call], done: Inputs) -> Iterator[Opening]:
        """Give the beginnings of prompts that can be prefilled before the rest is known; nothing reads ahead: none."""
        if self.read_ahead is not None:
            yield from openings(self.nodes, self._is_settled, self.read_ahead, question, first, done)

    def vote(self, question: Question, first: Sequence[Call], done: Inputs) -> tuple[Ballot, Decision]:
        """Give the votes that the last gate saw of a question, or else those of the first layer, and the decision."""
        return self._vote(question, first, done, self.progress(question, first, done))

    def _vote(
        self, question: Question, first: Sequence[Call], done: Inputs, progress: Progress
    ) -> tuple[Ballot, Decision]:
        if progress.ballot is not None and progress.decision is not None:
            return progress.ballot, progress.decision
        expert_of = {call.key: call.expert for call in first}
        ballot = self._ballot(question, list(expert_of), expert_of, done)
        return ballot, Never().decide(ballot)

    def end(self, question: Question, first: Sequence[Call], done: Inputs, progress: Progress | None = None) -> End:
        """Give the final answer of a question whose calls have all ended; who knows its progress gives it too."""
        progress = progress or self.progress(question, first, done)
        ballot, decision = self._vote(question, first, done, progress)
        ended = [done[key] for key in progress.last if done[key].status is CallStatus.FINISHED]
        answer = ended[0].answer if len(ended) == 1 else decision.answer
        if len(ended) > 1 and not progress.is_settled:
            votes = [Vote(record.expert, record.answer) for record in ended]
            answer = Never().decide(make_ballot(question, votes, self.compare[question.answer_kind])).answer
        final = FinalAnswer(
            question=question.id,
            answer=answer,
            source=progress.source(decision, done),
            confidence=decision.confidence,
            votes=tuple(vote.answer for vote in ballot.votes),
            gold=question.answer,
            correct=is_correct(answer, question, self.compare[question.answer_kind]),
        )
        return End(final, ballot, decision, progress.is_too_long)

    def prompt(self, question: Question, call: Call, inputs: Inputs, *, is_whole: bool = True) -> str | Chat:
        """Write what an expert reads, behind what was said before; ``ValueError``: a text is absent or does not fit.

        One that is not whole is a beginning: as far as the calls tell it that are there.
        """
        if not call.after:
            return in_context(question.context, expert_prompt(question))
        node, has_places = self.node(call.key.node), self.read_ahead is not None
        text = node_prompt(node, question, call, inputs, has_places=has_places, is_whole=is_whole)
        return in_context(question.context, text)

    def node(self, name: NodeName) -> Node:
        """Find a node."""
        return next(node for node in self.nodes if node.name == name)

    def forecast(
        self, workload: Workload, needed_frac: Mapping[NodeName, float], prompt_tokens: Mapping[NodeName, int]
    ) -> tuple[Forecast, ...]:
        """List the calls that the batch is expected to need, those of upper nodes with what is known of typical ones.

        Parameters
        ----------
        workload
            The batch.
        needed_frac, prompt_tokens
            By upper node: the share of questions that reach it, and what it reads, as calibration questions show.
        """
        sure = [Forecast(call, 1.0) for call in self.first_calls(workload)]
        likely = [
            Forecast(Call(CallKey(question.id, node.name, slot), expert.name, prompt_tokens[node.name]), frac)
            for node in self.upper_nodes
            if (frac := needed_frac.get(node.name, 1.0)) > 0
            for question in workload.questions
            for slot, expert in enumerate(node.experts)
        ]
        return (*sure, *likely)

    def progress(self, question: Question, first: Sequence[Call], done: Inputs) -> Progress:
        """Tell how far a question is: which calls it needs now, and what gates have said."""
        if self.exit is not None:
            return self.course(question, first, done).progress
        keys: dict[NodeName, list[CallKey] | None] = {}
        expert_of = {call.key: call.expert for call in first}
        merges: list[Call] = []
        ballot, decision = None, None
        last: list[CallKey] = []
        accepted: list[CallKey] = []
        is_too_long = is_waiting = False
        for node in self.nodes:
            if not node.after:
                keys[node.name] = sorted(call.key for call in first if call.key.node == node.name)
                continue
            before = [keys[needed] for needed in node.after]
            inputs = [key for some in before for key in some or ()]
            if None in before or not all(map(done.__contains__, inputs)):
                keys[node.name] = None  # nobody knows yet which calls it has
                is_waiting = True
                continue
            keys[node.name] = []
            if not inputs:
                continue  # what it would read was not needed
            if node.when is When.UNSETTLED:
                ballot = self._ballot(question, inputs, expert_of, done)
                decision = self.gate.decide(ballot)
                if decision.skip:
                    accepted = inputs
                    continue
            late = self._late_call(question, inputs, expert_of, done)
            if late is not None and node.when is When.UNSETTLED:
                ballot = self._ballot(question, inputs, expert_of, {**done, late: None})
                decision = self.gate.decide(ballot)
            order = inputs if self.read_ahead is None else self.read_ahead.ordered(inputs, expert_of)
            read = [done[key] for key in order if key != late]
            calls = list(node_calls(node, question, read, has_places=self.read_ahead is not None))
            is_too_long = is_too_long or not calls
            last = [call.key for call in calls if call.key.slot < len(node.experts)]
            keys[node.name] = [call.key for call in calls]
            expert_of |= {call.key: call.expert for call in calls}
            merges += calls
        submit = tuple(call for call in merges if call.key not in done)
        is_over = not (submit or is_waiting) and all(call.key in done for call in first)
        is_settled = set(accepted) == set(last)
        return Progress(tuple(merges), submit, is_over, tuple(last), ballot, decision, is_settled, is_too_long)

    def course(self, question: Question, first: Sequence[Call], done: Inputs) -> Course:
        """Tell how a question goes on under an early exit, which there must be."""
        assert self.exit is not None, "asked before"
        return course(self.nodes, self.exit, self.compare[question.answer_kind], self.read_ahead, question, first, done)

    def late_first_call(self, question: Question, first: Sequence[Call], done: Inputs) -> CallKey | None:
        """Find the call of a question's first layer that is not waited for past its hedge."""
        if len(done) < len(first) - 1:
            return None  # most often, and this is asked whenever a call has ended
        expert_of = {call.key: call.expert for call in first}
        return self._late_call(question, sorted(expert_of), expert_of, done)

    def _late_call(
        self, question: Question, keys: Sequence[CallKey], expert_of: Mapping[CallKey, str], done: Inputs
    ) -> CallKey | None:
        """Find the call that is not waited for past its hedge, as the others leave open what the gate says."""
        key = self.budgets.late_candidate(keys, expert_of, done)
        if key is None or self.gate.decide(self._ballot(question, keys, expert_of, {**done, key: None})).skip:
            return None
        return key

    def _is_settled(
        self, question: Question, keys: Sequence[CallKey], expert_of: Mapping[CallKey, str], done: Inputs
    ) -> bool:
        """Tell whether the gate accepts some calls, whatever those say that have not ended."""
        partial = partial_ballot(question, keys, expert_of, done, self.compare[question.answer_kind])
        return self.gate.settled(partial) is not None

    def _ballot(
        self,
        question: Question,
        keys: Sequence[CallKey],
        expert_of: Mapping[CallKey, str],
        done: Mapping[CallKey, CallRecord | None],
    ) -> Ballot:
        votes = [Vote(expert_of[key], said(done.get(key))) for key in sorted(keys, key=attrgetter("slot"))]
        return make_ballot(question, votes, self.compare[question.answer_kind])


def mixture_of_agents(
    aggregator: Expert | None,
    *,
    gate: Gate,
    compare: Comparisons,
    min_output_tokens: int = MIN_OUTPUT_TOKENS,
    leaves_one_out: bool = False,
) -> CallGraph:
    """Build the paper's pipeline: recruited experts, and where the gate does not skip an aggregator (None: never)."""
    nodes = [Node(name=PROPOSE)]
    if aggregator is not None:
        nodes.append(
            Node(
                name=AGGREGATE,
                experts=(aggregator,),
                after=(PROPOSE,),
                when=When.UNSETTLED,
                min_output_tokens=min_output_tokens,
                leaves_one_out=leaves_one_out,
            )
        )
    return CallGraph(nodes=tuple(nodes), gate=gate, compare=compare)

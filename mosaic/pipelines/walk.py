"""Walks over a question's call graph: finds from the ended calls what each node reads, needs and decides.

NOTE: the idea. A first pass visits the nodes from the first to the last. Each waits for its inputs, is left out, or has
calls; this determines what it gives to its readers. A second pass visits them from the last to the first. A node is
needed if no node reads it, or if a needed reader still waits for it. These states determine which calls a question
needs now and which it no longer needs. They also determine which prompts can be started, and the final answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, eq
from typing import NamedTuple

import msgspec

from mosaic.answers.extraction import is_correct
from mosaic.core.results import CallRecord, CallStatus, Inputs
from mosaic.core.workload import Call, CallKey, NodeName, Question
from mosaic.pipelines.aggregation import fits_context
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import AnswerSource, End, FinalAnswer
from mosaic.pipelines.node import Agent, Node, ToCome, When, node_calls, node_layout
from mosaic.pipelines.rules.ballot import Ballot, Decision, Vote, make_ballot, vote_for
from mosaic.pipelines.rules.rule import Never, Order, Rule, Scope

PLURALITY = Never()
"""Decides by plurality where no rule applies."""


class Opening(NamedTuple):
    """The part of a prompt that ended calls determine: its beginning."""

    call: Call
    """As in ``Prefill``."""
    num_read: int


class NodeState(msgspec.Struct):
    """The state of a node of a question."""

    gives: tuple[Agent, ...]
    """The inputs that it gives to its readers, by slot."""
    reads: tuple[Agent, ...] = ()
    calls: tuple[Call, ...] = ()
    """Its own calls after the first layer, once they are known, ended or not."""
    waits: bool = False
    """Whether it waits for its inputs."""
    ballot: Ballot | None = None
    decision: Decision | None = None
    """The rule's decision on its inputs, if there is one."""
    late: CallKey | None = None
    """The straggler that it does not wait for beyond its hedge."""
    left: CallKey | None = None
    """The only response that budgets have left: it replaces the node's own."""
    is_too_long: bool = False
    """Its experts cannot read so many tokens."""


class QuestionState(msgspec.Struct):
    """The state of a question, computed from its ended calls."""

    graph: CallGraph
    question: Question
    first: Sequence[Call]
    done: Inputs
    nodes: dict[NodeName, NodeState] = {}
    exit: tuple[Ballot, Decision] | None = None
    """Accepted for the question as a whole."""
    wanted: set[NodeName] = set()
    """Nodes whose calls will be read, or whose answers are final."""

    @property
    def same(self) -> Callable[[str, str], bool] | None:
        """The comparison of its answers; None: they cannot be compared."""
        return self.graph.compare[self.question.answer_kind]

    @property
    def merges(self) -> tuple[Call, ...]:
        """List the calls after the first layer, ended or not."""
        return tuple([call for state in self.nodes.values() for call in state.calls])

    @property
    def submit(self) -> tuple[Call, ...]:
        """List the needed calls after the first layer that have not ended.

        After a gate these are all of them: a controller that does not cancel calls waits for them.
        """
        is_gate = not self.graph.rule.is_exit
        calls = [call for call in self.merges if call.key not in self.done]
        return tuple([call for call in calls if is_gate or call.key.node in self.wanted])

    @property
    def cancel(self) -> tuple[CallKey, ...]:
        """List the unended calls that no node will read: the answer does not depend on them."""
        wanted, done = self.wanted, self.done
        if len(wanted) == len(self.nodes):
            return ()
        unread = [call.key for call in self.first if call.key not in done and call.key.node not in wanted]
        unread += [call.key for call in self.merges if call.key not in done and call.key.node not in wanted]
        return tuple(sorted(unread))

    @property
    def is_decided(self) -> bool:
        """Whether no unended call is needed: later ends do not change the state."""
        if any(self.nodes[name].waits for name in self.wanted) or self.submit:
            return False
        return all(call.key in self.done or call.key.node not in self.wanted for call in self.first)

    @property
    def is_over(self) -> bool:
        """Whether the answer can no longer change."""
        return all(call.key in self.done for call in self.first) and self.is_decided

    @property
    def late(self) -> CallKey | None:
        """Find the call that is not waited for beyond its hedge."""
        return next((state.late for state in self.nodes.values() if state.late is not None), None)

    @property
    def answer(self) -> FinalAnswer | None:
        """Return the final answer; None: needed calls have not ended."""
        return self.end().answer if self.is_over else None

    def vote(self) -> tuple[Ballot, Decision]:
        """Return the last votes with a rule's decision, or else those of the first layer."""
        if self.exit is not None:
            return self.exit
        last = self._last_decided()
        if last is not None and last.ballot is not None and last.decision is not None:
            return last.ballot, last.decision
        ballot = self._whole_ballot(sorted(self.first, key=attrgetter("key.slot")), self.done)
        return ballot, PLURALITY.decide(ballot)

    def end(self) -> End:
        """Return the final answer of a question whose calls have all ended."""
        ballot, decision = self.vote()
        done = self.done
        last = self._last_calls(decision)
        ended = [done[key] for key in last if done[key].status is CallStatus.FINISHED]
        answer = ended[0].answer if len(ended) == 1 else decision.answer
        if answer is None and not ended:
            answer = self._left_answer()
        decided = self._last_decided()
        accepted = {agent.key for agent in decided.reads} if decided is not None and decision.skip else set()
        if len(ended) > 1 and accepted != set(last):
            votes = [Vote(record.expert, record.answer) for record in ended]
            answer = PLURALITY.decide(make_ballot(self.question, votes, self.same)).answer
        is_too_long = any(state.is_too_long for state in self.nodes.values())
        final = FinalAnswer(
            question=self.question.id,
            answer=answer,
            source=_source([done[key].status for key in last], is_left_out=is_too_long and not decision.skip),
            confidence=decision.confidence,
            votes=tuple(vote.answer for vote in ballot.votes),
            gold=self.question.answer,
            correct=is_correct(answer, self.question, self.same),
        )
        return End(final, ballot, decision, is_too_long)

    def _last_calls(self, decision: Decision) -> tuple[CallKey, ...]:
        """List the calls of the last node that had any, or was too long; empty if an exit has accepted."""
        if decision.skip and self.graph.rule.is_exit:
            return ()
        for node in reversed(self.graph.upper_nodes):
            state = self.nodes[node.name]
            if state.calls or state.is_too_long:
                return tuple(call.key for call in state.calls if call.key.slot < len(node.experts))
        return ()

    def _left_answer(self) -> str | None:
        """Return the answer of a single response left by budgets, even if answers cannot be compared."""
        left = next((state.left for state in reversed(self.nodes.values()) if state.left is not None), None)
        return None if left is None else self.done[left].answer

    def _last_decided(self) -> NodeState | None:
        """Find the last node at which a rule was applied."""
        return next((state for state in reversed(self.nodes.values()) if state.decision is not None), None)

    def openings(self) -> Iterator[Opening]:
        """Return the beginnings of needed prompts of which an input has not ended."""
        if self.graph.prefill_order is None:
            return
        for name, state in self.nodes.items():
            if state.waits:
                order = self.graph.prefill_order.ordered(state.reads)
                num_read = next(place for place, key in enumerate(order) if key not in self.done)
                yield from _openings_of(self.graph.node(name), self.question, order, num_read, self.done)

    def upper(self, node: Node) -> NodeState:
        """Compute the state of a node that reads others, from their states."""
        graph, done = self.graph, self.done
        before = [self.nodes[name] for name in node.after]
        reads = tuple([agent for state in before for agent in state.gives])
        if not reads:
            return NodeState(())  # its inputs were not needed
        rule = _rule_at(graph.rule, node)
        ballot = decision = None
        if rule is not None and (graph.rule.is_exit or not any(state.waits for state in before)):
            ballot, decision = self.ask(rule, reads)
            if decision is not None and decision.skip:
                gives = _standing_in(node, reads, ballot, decision) if graph.rule.is_exit else ()
                return NodeState(gives, reads, ballot=ballot, decision=decision)
        has_all = all(agent.key in done for agent in reads) if ballot is None or ballot.pending else True
        late = None
        if rule is not None and graph.budgets.hedge_tokens:
            late = graph.budgets.straggler({agent.key: agent.expert for agent in reads}, done)
        if rule is not None and late is not None:
            # The call is late only if the rule skips nothing without it: then only the other votes count.
            without = self._whole_ballot(reads, {key: record for key, record in done.items() if key != late})
            without_it = rule.decide(without)
            late, ballot, decision = (None, ballot, decision) if without_it.skip else (late, without, without_it)
        if not has_all and (decision is None or not decision.read):
            return NodeState(self._to_come(node), reads, waits=True, late=late)
        if ballot is not None and decision is None:
            decision = PLURALITY.decide(ballot)
        if (left := _one_left(reads, done)) is not None:
            return NodeState((), reads, ballot=ballot, decision=decision, left=left)
        places = sorted(decision.read) if decision is not None and decision.read else range(len(reads))
        calls = self._calls(node, [reads[place] for place in places if reads[place].key != late])
        gives = tuple([call for call in calls if call.key.slot < len(node.experts)])
        return NodeState(gives, reads, calls, False, ballot, decision, late, is_too_long=not calls)

    def ask(self, rule: Rule, agents: Sequence[Agent]) -> tuple[Ballot, Decision | None]:
        """Collect the votes that count among a node's inputs, and apply a rule; None: it waits.

        NOTE: some answers are compared by more than their text. These are grouped from the lowest slot on, under the
        text of that slot. A vote after a pending one may join another group in the end, so it counts as pending too.
        """
        done = self.done
        order = _counted(rule, agents, done)
        pending: Sequence[int] = ()
        if len(order) < len(agents):
            counted = set(order)
            pending = [place for place in range(len(agents)) if place not in counted]
            if self.same is not eq:
                pending = range(pending[0], len(agents))
        votes = [
            vote_for(agent.expert, None if place in pending else vote_of(done.get(agent.key)))
            for place, agent in enumerate(agents)
        ]
        finished: list[CallRecord | None] = []
        if rule.reads_confidence:
            records = [done.get(agent.key) for agent in agents]
            finished = [record if record and record.status is CallStatus.FINISHED else None for record in records]
        ballot = make_ballot(
            self.question, votes, self.same, pending=tuple(pending), order=tuple(order), records=tuple(finished)
        )
        return ballot, rule.decided_early(ballot) if ballot.pending else rule.decide(ballot)

    def _whole_ballot(self, agents: Sequence[Agent], done: Inputs) -> Ballot:
        """Collect the votes of all ended calls; unended ones have no vote."""
        votes = [vote_for(agent.expert, vote_of(done.get(agent.key))) for agent in agents]
        return make_ballot(self.question, votes, self.same)

    def _to_come(self, node: Node) -> tuple[Agent, ...]:
        """Name what a waiting node will give to its readers."""
        experts = () if node.name in self.graph.last_nodes else node.experts
        return tuple(ToCome(one.name, CallKey(self.question.id, node.name, slot)) for slot, one in enumerate(experts))

    def _calls(self, node: Node, agents: Sequence[Agent]) -> tuple[Call, ...]:
        order, done = self.graph.prefill_order, self.done
        keys = dict.fromkeys(agent.key for agent in agents) if order is None else order.ordered(agents)
        return tuple(node_calls(node, self.question, [done[key] for key in keys], has_places=order is not None))


def walk(graph: CallGraph, question: Question, first: Sequence[Call], done: Inputs) -> QuestionState:
    """Compute the state of a question.

    Parameters
    ----------
    graph
        The pipeline.
    question
        The question.
    first
        Its calls of the first layer.
    done
        Records of its ended calls, in the order of their ends.
    """
    state = QuestionState(graph, question, first, done)
    leaves = sorted(first, key=attrgetter("key"))
    if graph.rule.scope is Scope.QUESTION:
        ballot, decision = state.ask(graph.rule, leaves)
        if decision is not None and decision.skip:
            state.exit = ballot, decision
    for node in graph.nodes:
        if node.after:
            state.nodes[node.name] = state.upper(node)
        else:
            state.nodes[node.name] = NodeState(tuple([call for call in leaves if call.key.node == node.name]))
    if state.exit is None:
        state.wanted = _wanted(graph, state.nodes)
    return state


def _rule_at(rule: Rule, node: Node) -> Rule | None:
    """Find the rule that decides on a node's inputs; None: there is none."""
    if rule.scope is Scope.GATE:
        return rule if node.when is When.UNSETTLED else None
    return rule if rule.scope is Scope.NODE else PLURALITY


def _standing_in(node: Node, reads: Sequence[Agent], ballot: Ballot, decision: Decision) -> tuple[Agent, ...]:
    """Replace the responses of a node that is left out by the first response with the accepted answer."""
    first = next(place for place in ballot.order if ballot.votes[place].answer == decision.answer)
    return (reads[first],) * len(node.experts)


def _one_left(reads: Sequence[Agent], done: Inputs) -> CallKey | None:
    """Find the single response left by budgets: it becomes the answer, since there is nothing to merge it with.

    NOTE: statuses suffice, since only a budget or a hedge of the graph cuts a call.
    """
    records = [done[agent.key] for agent in reads if agent.key in done]
    finished = [record.key for record in records if record.status is CallStatus.FINISHED]
    is_cut = any(record.status is CallStatus.CUT for record in records)
    return finished[0] if is_cut and len(finished) == 1 else None


def _wanted(graph: CallGraph, states: Mapping[NodeName, NodeState]) -> set[NodeName]:
    """Name the nodes whose calls are needed."""
    wanted = set(graph.last_nodes)
    for node in reversed(graph.nodes):
        if node.after and node.name in wanted and states[node.name].waits:
            wanted.update(node.after)
    return wanted


def _counted(rule: Rule, agents: Sequence[Agent], done: Inputs) -> Sequence[int]:
    """List the indices of the agents that count, in their order. For an exit, a cancelled agent never counts."""
    if not rule.is_exit:
        return [place for place, agent in enumerate(agents) if agent.key in done]
    if rule.order is Order.SLOT:
        ended: Sequence[int] = range(
            next((place for place, agent in enumerate(agents) if agent.key not in done), len(agents))
        )
    else:
        arrived = {key: number for number, key in enumerate(done)}
        ended = sorted(
            (place for place, agent in enumerate(agents) if agent.key in arrived),
            key=lambda place: arrived[agents[place].key],
        )
    return [place for place in ended if done[agents[place].key].status is not CallStatus.CANCELLED]


def vote_of(record: CallRecord | None) -> str | None:
    """Return the vote of an ended call; a call that did not finish has none."""
    return record.answer if record is not None and record.status is CallStatus.FINISHED else None


def _source(statuses: Sequence[CallStatus], *, is_left_out: bool) -> AnswerSource:
    """Return the source of the final answer, from the statuses of the last calls."""
    if CallStatus.FINISHED in statuses:
        return AnswerSource.AGGREGATOR
    if CallStatus.FAILED in statuses or is_left_out:
        return AnswerSource.NOT_AGGREGATED
    return AnswerSource.MAJORITY


def _openings_of(
    node: Node, question: Question, order: Sequence[CallKey], num_read: int, done: Inputs
) -> Iterator[Opening]:
    """Return one beginning for each expert of a node: its slots read the same."""
    for name, slot in {expert.name: slot for slot, expert in reversed([*enumerate(node.experts)])}.items():
        expert = node.experts[slot]
        if fits_context(question, expert, len(order), min_output_tokens=node.min_output_tokens):
            layout = node_layout(node, question, [done[key] for key in order[:num_read]], expert, len(order))
            key = CallKey(question.id, node.name, slot)
            yield Opening(Call(key, name, layout.begin_tokens, after=tuple(order)), num_read)

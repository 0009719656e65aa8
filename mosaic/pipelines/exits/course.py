"""How a question goes on under an early exit: which calls it needs, which it needs no more, and how it ends.

NOTE: the idea. Nodes are looked at from the first to the last: each has come to what it gives to its readers, or waits.
One whose agents agree is left out, and the response that they agree on stands for it. Then they are looked at from the
last to the first: a node is wanted where nobody reads it, or where somebody who is wanted still waits for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from mosaic.core.checks import require
from mosaic.core.results import Inputs
from mosaic.core.workload import Call, CallKey, NodeName, Question
from mosaic.pipelines.budgets import Budgets
from mosaic.pipelines.exits.exit import Agent, Exit, Meeting, Scope, ended_in
from mosaic.pipelines.gates.gate import Ballot, Decision, Gate, Never
from mosaic.pipelines.node import Node, When, node_calls
from mosaic.pipelines.read_ahead import ReadAhead
from mosaic.pipelines.steps import Progress


def check_alone(name: str, nodes: Sequence[Node], gate: Gate, budgets: Budgets) -> None:
    """Check that nothing else decides who is asked where an early exit does.

    Raises
    ------
    ValueError
        If something does.
    """
    asks = any(node.when is When.UNSETTLED for node in nodes) and not isinstance(gate, Never)
    require(not asks, f"exit={name}: gate", "never: an early exit decides who is asked", gate.name)
    require(not budgets, f"exit={name}: budgets", "null", "budgets")
    teaches = any(node.leaves_one_out for node in nodes)
    require(not teaches, f"exit={name}: pipeline.leave_one_out", "false", True)


class Course(NamedTuple):
    """How far a question is, and what of it is needed no more."""

    progress: Progress
    needless: tuple[CallKey, ...]
    """Calls that have not ended and that nobody will read."""


@dataclass(slots=True)
class _Stand:
    """How a node stands."""

    agents: tuple[Agent, ...]
    """What it gives to its readers, by slot."""
    calls: tuple[Call, ...] = ()
    """Behind the first layer, once they are known."""
    waits: bool = False
    """For what it reads."""
    ballot: Ballot | None = None
    decision: Decision | None = None
    """Of what it reads."""
    is_too_long: bool = False


def course(
    nodes: Sequence[Node],
    rule: Exit,
    same: Callable[[str, str], bool] | None,
    read_ahead: ReadAhead | None,
    question: Question,
    first: Sequence[Call],
    done: Inputs,
) -> Course:
    """Tell how a question goes on.

    Parameters
    ----------
    nodes
        Of the call graph.
    rule
        The early exit.
    same
        How answers to the question compare.
    read_ahead
        Of the call graph.
    question, first, done
        As in ``CallGraph.step``.
    """
    stands: dict[NodeName, _Stand] = {}
    leaves = tuple(_agent(call.key, call.expert, done) for call in sorted(first, key=attrgetter("key")))
    whole = _Reading(question, leaves, same)
    verdict = rule.judge(whole.meeting(rule, done)) if rule.scope is Scope.QUESTION else None
    for node in nodes:
        if not node.after:
            mine = tuple(agent for agent in leaves if agent.key is not None and agent.key.node == node.name)
            stands[node.name] = _Stand(mine)
            continue
        agents = tuple(agent for name in node.after for agent in stands[name].agents)
        stands[node.name] = _stand(node, rule, _Reading(question, agents, same), read_ahead, done)
    is_exit = verdict is not None and verdict.decision is not None
    wanted = set() if is_exit else _wanted(nodes, stands)
    submit = tuple(
        call for node in nodes if node.name in wanted for call in stands[node.name].calls if call.key not in done
    )
    known = [(call.key.node, call.key) for call in first]
    known += [(name, call.key) for name, stand in stands.items() for call in stand.calls]
    needless = tuple(sorted(key for name, key in known if name not in wanted and key not in done))
    is_waiting = any(stands[name].waits for name in wanted)
    last = stands[nodes[-1].name]
    ballot, decision = last.ballot, last.decision
    if verdict is not None and verdict.decision is not None:
        ballot, decision = whole.meeting(rule, done).ballot().ballot, verdict.decision
    is_accepted = decision is not None and decision.skip
    progress = Progress(
        merges=tuple(call for stand in stands.values() for call in stand.calls),
        submit=submit,
        is_over=not submit and not is_waiting and all(call.key in done for call in first),
        last=() if is_accepted else tuple(call.key for call in last.calls),
        ballot=ballot,
        decision=decision,
        is_settled=is_accepted,
        is_too_long=any(stand.is_too_long for stand in stands.values()),
    )
    return Course(progress, needless)


class _Reading(NamedTuple):
    """Agents that somebody reads."""

    question: Question
    agents: tuple[Agent, ...]
    same: Callable[[str, str], bool] | None

    def meeting(self, rule: Exit, done: Inputs) -> Meeting:
        order = ended_in(rule.order, self.agents, done)
        return Meeting(question=self.question, agents=self.agents, order=order, done=done, same=self.same)


def _stand(node: Node, rule: Exit, reading: _Reading, read_ahead: ReadAhead | None, done: Inputs) -> _Stand:
    """Tell what has become of a node that reads others."""
    unknown = tuple(Agent(expert.name, None, False) for expert in node.experts)
    meeting = reading.meeting(rule, done)
    verdict = rule.judge(meeting) if rule.scope is Scope.NODE and reading.agents else None
    if verdict is not None and verdict.decision is not None:
        key = reading.agents[verdict.read[0]].key
        same = tuple(Agent(reading.agents[verdict.read[0]].expert, key, True) for _ in node.experts)
        return _Stand(same, ballot=meeting.ballot().ballot, decision=verdict.decision)
    if verdict is None and not all(agent.has_ended for agent in reading.agents):
        return _Stand(unknown, waits=True)
    places = range(len(reading.agents)) if verdict is None else sorted(verdict.read)
    expert_of = {key: expert for expert, key, _ in map(reading.agents.__getitem__, places) if key is not None}
    keys = list(expert_of) if read_ahead is None else read_ahead.ordered(expert_of, expert_of)
    read = [done[key] for key in keys]
    calls = tuple(node_calls(node, reading.question, read, has_places=read_ahead is not None))
    of_slot = {call.key.slot: call for call in calls}
    given = tuple(
        _agent(of_slot[slot].key, expert.name, done) if slot in of_slot else Agent(expert.name, None, True)
        for slot, expert in enumerate(node.experts)
    )
    ballot = meeting.ballot().ballot
    decision = Never().decide(ballot)
    return _Stand(given, calls, ballot=ballot, decision=decision, is_too_long=not calls)


def _agent(key: CallKey, expert: str, done: Inputs) -> Agent:
    return Agent(expert, key, key in done)


def _wanted(nodes: Sequence[Node], stands: dict[NodeName, _Stand]) -> set[NodeName]:
    """Name the nodes whose calls are needed."""
    read = {name for node in nodes for name in node.after}
    wanted = {node.name for node in nodes if node.name not in read}
    for node in reversed(nodes):
        if node.name in wanted and stands[node.name].waits:
            wanted.update(node.after)
    return wanted

"""Early quorum: which calls of a question no longer matter, because every gate that reads them is settled without them.

References
----------
EMS, arXiv 2604.02863, has the rule for a vote that nothing follows.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, eq
from typing import TypeAlias

from mosaic.core.results import CallRecord, CallStatus, Inputs
from mosaic.core.workload import Call, CallKey, ExpertName, NodeName, Question
from mosaic.pipelines.gates.gate import PartialBallot, Vote, make_ballot
from mosaic.pipelines.node import Node, When, node_calls

IsSettled: TypeAlias = Callable[[Question, Sequence[CallKey], Mapping[CallKey, ExpertName], Inputs], bool]
"""Tells whether a gate accepts some calls, whatever those say that have not ended."""


def needless_calls(
    nodes: Sequence[Node], is_settled: IsSettled, question: Question, first: Sequence[Call], done: Inputs
) -> tuple[CallKey, ...]:
    """List the calls that have not ended and that nobody reads: whatever they say, the final answer is the same.

    A node needs what it reads, unless it is left out where its gate accepts its inputs, and the gate is settled. The
    calls of a question that goes on are all needed: the next node reads them.

    Parameters
    ----------
    nodes, is_settled
        Of the call graph.
    question, first, done
        As in ``CallGraph.step``.
    """
    keys_of: dict[NodeName, list[CallKey] | None] = {}
    expert_of = {call.key: call.expert for call in first}
    read = {name for node in nodes for name in node.after}
    needed: set[CallKey] = set()
    settled: set[CallKey] = set()

    for node in nodes:
        if not node.after:
            keys_of[node.name] = sorted([call.key for call in first if call.key.node == node.name])
            continue
        before = [keys_of[name] for name in node.after]
        inputs = [key for keys in before for key in keys or ()]
        is_known = None not in before  # else a node before it may yet have calls
        has_all = is_known and all(map(done.__contains__, inputs))
        if has_all and node.name not in read:
            continue  # nothing is left to cancel before it, and nothing reads it
        if is_known and not inputs:
            keys_of[node.name] = []  # what it would read was not needed
        elif is_known and node.when is When.UNSETTLED and is_settled(question, inputs, expert_of, done):
            keys_of[node.name] = []
            settled.update(inputs)
        else:
            needed.update(inputs)
            keys_of[node.name] = None
            if has_all:
                calls = list(node_calls(node, question, [done[key] for key in inputs]))
                keys_of[node.name] = [call.key for call in calls]
                expert_of |= {call.key: call.expert for call in calls}
    return tuple(sorted(key for key in settled - needed if key not in done)) if settled else ()


def partial_ballot(
    question: Question,
    keys: Sequence[CallKey],
    expert_of: Mapping[CallKey, ExpertName],
    done: Inputs,
    same: Callable[[str, str], bool] | None,
) -> PartialBallot:
    """Collect the votes of calls by slot, as far as they have ended.

    NOTE: answers that compare by more than their text are grouped from the lowest slot on, under what that one wrote.
    A vote behind a missing one may find another group in the end, so it counts as missing too.
    """
    ordered = sorted(keys, key=attrgetter("slot"))
    missing = [place for place, key in enumerate(ordered) if key not in done]
    num_read = missing[0] if missing and same is not eq else len(ordered)
    votes = [
        Vote(expert_of[key], said(done.get(key)) if place < num_read else None) for place, key in enumerate(ordered)
    ]
    return PartialBallot(
        ballot=make_ballot(question, votes, same),
        missing=tuple(missing if num_read == len(ordered) else range(num_read, len(ordered))),
    )


def said(record: CallRecord | None) -> str | None:
    """Give the vote of a call that has ended; one that did not finish has none."""
    return record.answer if record is not None and record.status is CallStatus.FINISHED else None

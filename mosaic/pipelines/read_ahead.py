"""Prompts of upper nodes that can be prefilled slot by slot while later slots still run.

A prompt's beginning may be computed early only where it does not depend on what is yet to come. So a node reads its
inputs in an order that was fixed before any of them ran, the shortest by prediction first, and each in a place of its
own (``mosaic.pipelines.aggregation``). The order follows from predictions alone and not from who is done first: what
is asked, and so what is answered, is the same whatever the plan.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mosaic.core.results import Inputs
from mosaic.core.workload import Call, CallKey, ExpertName, NodeName, Question
from mosaic.pipelines.aggregation import begin_tokens, fits_context
from mosaic.pipelines.node import Node, When
from mosaic.pipelines.quorum import IsSettled


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAhead:
    """In which order a node reads its inputs."""

    mean_output_tokens: Mapping[NodeName, Mapping[ExpertName, float]] = field(default_factory=dict)
    """Predicted, by node and expert; what is not predicted comes first."""

    def ordered(self, keys: Iterable[CallKey], expert_of: Mapping[CallKey, ExpertName]) -> list[CallKey]:
        """Put inputs in the order in which they are read; equal predictions leave them in the order of their slots.

        Examples
        --------
        >>> long, short = CallKey("q", "propose", 0), CallKey("q", "propose", 1)
        >>> order = ReadAhead(mean_output_tokens={"propose": {"A": 900.0, "B": 80.0}})
        >>> order.ordered([long, short], {long: "A", short: "B"}) == [short, long]
        True
        """
        known = self.mean_output_tokens
        return sorted(keys, key=lambda key: known.get(key.node, {}).get(expert_of[key], 0.0))


class Opening(NamedTuple):
    """The beginning of a prompt, as far as the calls that have ended tell it."""

    call: Call
    """As in ``Prefill``."""
    num_read: int


def openings(
    nodes: Sequence[Node],
    is_settled: IsSettled,
    read_ahead: ReadAhead,
    question: Question,
    first: Sequence[Call],
    done: Inputs,
) -> Iterator[Opening]:
    """Give the beginnings of the prompts that a question is going to need, of which an input has not ended.

    Parameters
    ----------
    nodes, is_settled, read_ahead
        Of the call graph.
    question, first, done
        As in ``CallGraph.step``.
    """
    expert_of = {call.key: call.expert for call in first}
    keys_of: dict[NodeName, list[CallKey]] = {}
    for node in nodes:
        if not node.after:
            keys_of[node.name] = sorted(call.key for call in first if call.key.node == node.name)
            continue
        keys = [CallKey(question.id, node.name, slot) for slot in range(len(node.experts))]
        expert_of |= {key: expert.name for key, expert in zip(keys, node.experts, strict=True)}
        keys_of[node.name] = keys
        inputs = [key for needed in node.after for key in keys_of[needed]]
        if all(map(done.__contains__, inputs)):
            continue
        if node.when is When.UNSETTLED and is_settled(question, inputs, expert_of, done):
            continue
        order = read_ahead.ordered(inputs, expert_of)
        num_read = next(place for place, key in enumerate(order) if key not in done)
        yield from _openings_of(node, question, order, num_read, done)


def _openings_of(
    node: Node, question: Question, order: Sequence[CallKey], num_read: int, done: Inputs
) -> Iterator[Opening]:
    """Give one beginning for each expert of a node: its slots read the same."""
    for name, slot in {expert.name: slot for slot, expert in reversed([*enumerate(node.experts)])}.items():
        expert, least = node.experts[slot], node.min_output_tokens
        if fits_context(question, expert, len(order), min_output_tokens=least):
            read = [done[key] for key in order[:num_read]]
            tokens = begin_tokens(question, read, expert, min_output_tokens=least, num_places=len(order))
            yield Opening(Call(CallKey(question.id, node.name, slot), name, tokens, after=tuple(order)), num_read)

"""A node of a call graph: who answers, after whom, and when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from mosaic.core.chat import CHARACTERS_PER_TOKEN, count_text_tokens
from mosaic.core.checks import require, require_count, require_name, require_unique
from mosaic.core.results import CallRecord, Inputs
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, NodeName, Question
from mosaic.pipelines.aggregation import (
    MIN_OUTPUT_TOKENS,
    Response,
    aggregator_prompt,
    as_counted,
    cut_experts,
    finished,
    fits_context,
    merge_call,
    visible_tokens,
)
from mosaic.pipelines.prompts import visible_text


class When(StrEnum):
    """Whether a node's calls are needed."""

    ALWAYS = "always"
    UNSETTLED = "unsettled"
    """Where the gate does not accept what the node's inputs agree on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Calls of one kind: every expert of the node answers each question once, in a slot of its own."""

    name: NodeName
    experts: tuple[Expert, ...] = ()
    """One per slot; none: those that the workload has recruited for the question (the first node only)."""
    after: tuple[NodeName, ...] = ()
    """Nodes whose responses it reads; none: it reads the question alone."""
    when: When = When.ALWAYS
    role: str | None = None
    """A label for reports; None: the node's name."""
    min_output_tokens: int = MIN_OUTPUT_TOKENS
    """Room that a prompt leaves for what is written."""
    counts_tokens: bool = False
    """Prompts are laid out by the tokens that engines counted in the calls that it reads, which are then of the first
    layer, instead of by estimates alone. Not where prompts are prefilled ahead: a beginning is laid out before."""
    leaves_one_out: bool = False
    """Its experts also answer without each of the responses in turn: calls that teach, and decide nothing."""

    def __post_init__(self) -> None:
        require_name(self.name, "node.name")
        label = f"node {self.name}"
        for name in ("experts", "after"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{label}: {name} must be a list, got {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require_unique(self.after, f"{label}: after")
        require(bool(self.experts or not self.after), f"{label}: experts", "at least one, as it reads others", ())
        if not isinstance(self.when, When):
            allowed = [when.value for when in When]
            require(self.when in allowed, f"{label}: when", f"one of {allowed}", self.when)
            object.__setattr__(self, "when", When(self.when))
        require(self.when is When.ALWAYS or bool(self.after), f"{label}: when", "always: it reads nothing", self.when)
        require_count(self.min_output_tokens, f"{label}: min_output_tokens", at_least=1)


class ToCome(NamedTuple):
    """A call of which no more is known yet than who makes it."""

    expert: ExpertName
    key: CallKey


Agent: TypeAlias = Call | ToCome
"""One of those that a node reads: its call, or one whose response stands for it."""


def node_calls(
    node: Node, question: Question, read: Sequence[CallRecord], *, has_places: bool = False
) -> Iterator[Call]:
    """Make the calls of a node that reads others, without those of experts that cannot read so much.

    With places each response has a share of its own, see ``mosaic.pipelines.aggregation``.

    Where it leaves one out, the calls without the first response have the slots behind those of the node's experts,
    and so on.
    """
    rounds = [list(read)]
    if node.leaves_one_out:
        rounds += [[record for record in read if record is not left_out] for left_out in read]
    for number, records in enumerate(rounds):
        for slot, expert in enumerate(node.experts, start=number * len(node.experts)):
            if fits_context(question, expert, len(records), min_output_tokens=node.min_output_tokens):
                key = CallKey(question.id, node.name, slot)
                yield merge_call(
                    key, _sized(node, question, records, expert, has_places), records, expert,
                    min_output_tokens=node.min_output_tokens, num_places=len(records) if has_places else None,
                )  # fmt: skip


def node_prompt(
    node: Node, question: Question, call: Call, inputs: Inputs, *, has_places: bool = False, is_whole: bool = True
) -> str:
    """Write what a call of a node that reads others reads, as `node_calls` has sized it.

    Raises
    ------
    ValueError
        If a text is absent, or the question does not fit.
    """
    expert, records = _read_by(node, call, inputs)
    return aggregator_prompt(
        _sized(node, question, records, expert, has_places),
        [Response(record.expert, visible_tokens(record), visible_text(record)) for record in records],
        expert,
        min_output_tokens=node.min_output_tokens,
        num_places=len(call.after) if has_places else None,
        is_whole=is_whole,
    )


def cut_for(
    node: Node, question: Question, call: Call, inputs: Inputs, *, has_places: bool = False
) -> tuple[ExpertName, ...]:
    """Name the experts of whose responses a call of a node reads the end alone, by slot."""
    expert, records = _read_by(node, call, inputs)
    return cut_experts(
        _sized(node, question, records, expert, has_places),
        records,
        expert,
        min_output_tokens=node.min_output_tokens,
        num_places=len(call.after) if has_places else None,
    )


def _read_by(node: Node, call: Call, inputs: Inputs) -> tuple[Expert, list[CallRecord]]:
    expert = next(expert for expert in node.experts if expert.name == call.expert)
    return expert, finished(inputs[key] for key in call.after if key in inputs)


def _sized(node: Node, question: Question, read: Sequence[CallRecord], expert: Expert, has_places: bool) -> Question:
    if has_places or not node.counts_tokens:
        return question
    rate = _text_rate(read)
    return as_counted(question, read, expert, text_rate=rate, min_output_tokens=node.min_output_tokens)


def _text_rate(read: Sequence[CallRecord]) -> float:
    """Compare the tokens that engines counted in responses with the estimate from their characters; none: 1."""
    texts = [(record.visible_tokens, visible_text(record) or "") for record in finished(read)]
    known = [(tokens, count_text_tokens(text)) for tokens, text in texts if tokens is not None]
    estimated = sum(tokens for _, tokens in known)
    return min(CHARACTERS_PER_TOKEN, sum(tokens for tokens, _ in known) / estimated) if estimated else 1.0

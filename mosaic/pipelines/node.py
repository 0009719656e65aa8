"""Defines a node of a call graph: its experts, the nodes that it reads, and when it runs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from mosaic.core.chat import CHARACTERS_PER_TOKEN, count_text_tokens
from mosaic.core.checks import AtLeast1, Name, checked, require, require_unique
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, Expert, ExpertName, NodeName, Question
from mosaic.pipelines.aggregation import (
    MIN_OUTPUT_TOKENS,
    Layout,
    Response,
    as_counted,
    finished,
    fits_context,
    lay_out,
    visible_tokens,
)
from mosaic.pipelines.prompts import visible_text


class When(StrEnum):
    """When a node's calls are needed."""

    ALWAYS = "always"
    UNSETTLED = "unsettled"
    """If the gate does not accept the answer that the node's inputs agree on."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("node {0.name}: ")
class Node:
    """Calls of one kind: every expert of the node answers each question once, in a slot of its own."""

    name: Name
    experts: tuple[Expert, ...] = ()
    """One per slot; empty: the experts that the workload recruited for the question (only for the first node)."""
    after: tuple[NodeName, ...] = ()
    """Nodes whose responses it reads; empty: it reads the question alone."""
    when: When = When.ALWAYS
    role: str | None = None
    """A label for reports; None: the node's name."""
    min_output_tokens: AtLeast1 = MIN_OUTPUT_TOKENS
    """Room that a prompt leaves for the output."""
    counts_tokens: bool = False
    """Lay prompts out by the engines' token counts of the calls that the node reads, not only by estimates.

    These calls must be of the first layer. Without effect if prompts are prefilled ahead: a beginning is laid out
    before.
    """
    leaves_one_out: bool = False
    """Its experts also answer without each response in turn: these calls are used for calibration only."""

    def __post_init__(self) -> None:
        label = f"node {self.name}"
        require_unique(self.after, f"{label}: after")
        require(bool(self.experts or not self.after), f"{label}: experts", "at least one, as it reads others", ())
        require(self.when is When.ALWAYS or bool(self.after), f"{label}: when", "always: it reads nothing", self.when)


class ToCome(NamedTuple):
    """A future call of which only the expert and the key are known."""

    expert: ExpertName
    key: CallKey


Agent: TypeAlias = Call | ToCome
"""An input of a node: its call, or a call whose response replaces it."""


def node_calls(
    node: Node, question: Question, read: Sequence[CallRecord], *, has_places: bool = False
) -> Iterator[Call]:
    """Make the calls of a node that reads others, without those of experts that cannot read so many tokens.

    With positions, each response has a fixed share, see ``mosaic.pipelines.aggregation``. A call depends on all calls
    that it may read, and reads those that finished.

    If the node leaves one response out, the calls without the first response have the slots after those of the node's
    experts, and so on.
    """
    rounds = [list(read)]
    if node.leaves_one_out:
        rounds += [[record for record in read if record is not left_out] for left_out in read]
    for number, records in enumerate(rounds):
        for slot, expert in enumerate(node.experts, start=number * len(node.experts)):
            if fits_context(question, expert, len(records), min_output_tokens=node.min_output_tokens):
                layout = node_layout(node, question, records, expert, len(records) if has_places else None)
                key = CallKey(question.id, node.name, slot)
                yield Call(key, expert.name, layout.prompt_tokens, after=tuple(record.key for record in records))


def node_layout(
    node: Node, question: Question, read: Iterable[CallRecord], expert: Expert, num_places: int | None
) -> Layout:
    """Lay out the prompt of a node's expert from some calls: those that finished."""
    records = finished(read)
    texts = [visible_text(record) for record in records]
    least = node.min_output_tokens
    if num_places is None and node.counts_tokens:
        rate = _text_rate([record.visible_tokens for record in records], texts)
        question = as_counted(question, records, expert, text_rate=rate, min_output_tokens=least)
    responses = [
        Response(record.expert, visible_tokens(record), text) for record, text in zip(records, texts, strict=True)
    ]
    return lay_out(question, responses, expert, min_output_tokens=least, num_places=num_places)


def _text_rate(counted: Sequence[int | None], texts: Sequence[str | None]) -> float:
    """Return the ratio of the engines' token counts of responses to the estimates from characters; 1 without counts."""
    pairs = zip(counted, texts, strict=True)
    known = [(tokens, count_text_tokens(text or "")) for tokens, text in pairs if tokens is not None]
    estimated = sum(tokens for _, tokens in known)
    return min(CHARACTERS_PER_TOKEN, sum(tokens for tokens, _ in known) / estimated) if estimated else 1.0

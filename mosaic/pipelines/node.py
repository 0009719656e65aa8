"""A node of a call graph: who answers, after whom, and when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mosaic.core.checks import require, require_count, require_name, require_unique
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, Expert, NodeName, Question
from mosaic.pipelines.aggregation import MIN_OUTPUT_TOKENS, fits_context, merge_call


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
                    key, question, records, expert,
                    min_output_tokens=node.min_output_tokens, num_places=len(records) if has_places else None,
                )  # fmt: skip

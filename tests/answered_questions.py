"""Questions whose calls have been answered, and pipelines for those that disagree."""

from collections.abc import Sequence

from mosaic.core.results import CallRecord, Inputs
from mosaic.core.workload import AnswerKind, Call, Question, Workload
from mosaic.pipelines.call_graph import CallGraph, mixture_of_agents
from mosaic.pipelines.final_answers import Comparisons, comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.rule import Majority, Never, Order, Rule, Scope
from tests.factories import make_call, make_expert
from tests.run_records import make_failed, make_record

FAILED = "(failed)"
"""In a list of answers: the call did not finish."""


def make_moa(
    rule: Rule | None = None, compare: Comparisons | None = None, *, min_output_tokens: int = 4096
) -> CallGraph:
    """Experts, and the aggregator W where most of them do not agree."""
    return mixture_of_agents(
        make_expert("W", max_output_tokens=1000),
        rule=rule or Majority(),
        compare=compare or comparisons(),
        min_output_tokens=min_output_tokens,
    )


def make_tree(rule: Rule | None = None) -> CallGraph:
    """Recruited experts, the mergers M and N, and the aggregator W where the gate does not accept what these say."""
    mergers = (make_expert("M"), make_expert("N"))
    nodes = (
        Node(name="propose"),
        Node(name="merge", experts=mergers, after=("propose",)),
        Node(name="final", experts=(make_expert("W"),), after=("merge",), when="unsettled"),
    )
    return CallGraph(nodes=nodes, rule=rule or Never(), compare=comparisons())


def agreement(tau: float = 2 / 3, order: Order = Order.SLOT) -> Majority:
    """The early exit that accepts what the agents of a node agree on."""
    return Majority(name="agreement", tau=tau, scope=Scope.NODE, order=order)


def make_question(
    name: str, kind: AnswerKind = AnswerKind.CHOICE, *, prompt_tokens: int = 50, **changes: str | None
) -> Question:
    num_options = 4 if kind is AnswerKind.CHOICE else None
    return Question(id=name, prompt_tokens=prompt_tokens, answer_kind=kind, num_options=num_options, **changes)


def ended(call: Call, answer: str | None, **changes: object) -> CallRecord:
    """What became of a call."""
    made = make_failed if answer == FAILED else make_record
    said = None if answer == FAILED else answer
    return made(call.key.question, expert=call.expert, key=call.key, answer=said, **changes)


def answered(question: Question, answers: Sequence[str | None]) -> tuple[Question, tuple[Call, ...], Inputs]:
    """A question, its calls of the first layer, by experts A, B, C in turn, and what became of them."""
    calls = [make_call(question.id, expert="ABC"[slot % 3], slot=slot) for slot in range(len(answers))]
    records = [ended(call, answer) for call, answer in zip(calls, answers, strict=True)]
    return question, tuple(calls), {record.key: record for record in records}


def make_batch(*batch: tuple[Question, int]) -> Workload:
    """Questions with a number of calls each."""
    calls = tuple(call for question, number in batch for call in answered(question, [None] * number)[1])
    return Workload(name="test", questions=tuple(question for question, _ in batch), calls=calls)

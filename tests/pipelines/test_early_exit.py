"""Early exit: who is asked, who is cancelled, and that what comes of a question does not depend on the schedule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.workload import AnswerKind, Call, CallKey
from mosaic.pipelines import Calibrated, FasterMoa, Majority, Never, Rule
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import AnswerSource, comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.rule import Order, Scope
from tests.answered_questions import agreement, make_question
from tests.calibration_questions import make_question as calibrated
from tests.calibration_questions import save_answers
from tests.factories import make_expert
from tests.question_courses import Came, Course, courses, run

W, M = make_expert("W"), make_expert("M")


def leaves(name: str, number: int) -> Node:
    return Node(name=name, experts=tuple(make_expert("ABC"[slot % 3]) for slot in range(number)))


SHAPES = {
    "flat": (leaves("propose", 3), Node(name="last", experts=(W,), after=("propose",))),
    "tree": (
        *(leaves(f"leaf_{one}", 3) for one in range(3)),
        *(Node(name=f"mid_{one}", experts=(M,), after=(f"leaf_{one}",)) for one in range(3)),
        Node(name="last", experts=(W,), after=("mid_0", "mid_1", "mid_2")),
    ),
    "all to all": (
        leaves("low", 5),
        Node(name="high", experts=(M,) * 5, after=("low",)),
        Node(name="last", experts=(W,), after=("high",)),
    ),
    "read twice": (
        leaves("propose", 3),
        Node(name="mid", experts=(M,), after=("propose",)),
        Node(name="last", experts=(W,), after=("propose", "mid")),
    ),
}


def graph_of(shape: str, rule: Rule | None) -> CallGraph:
    return CallGraph(nodes=SHAPES[shape], compare=comparisons(), rule=rule or Never())


def first_of(shape: str) -> list[Call]:
    roots = [node for node in SHAPES[shape] if not node.after]
    return [
        Call(CallKey("q", node.name, slot), expert.name, 50)
        for node in roots
        for slot, expert in enumerate(node.experts)
    ]


def upper_of(shape: str) -> list[CallKey]:
    upper = [node for node in SHAPES[shape] if node.after]
    return [CallKey("q", node.name, slot) for node in upper for slot in range(len(node.experts))]


def courses_of(shape: str, *kinds: AnswerKind) -> st.SearchStrategy[Course]:
    return courses(first_of(shape), upper_of(shape), kinds or tuple(AnswerKind))


RULES = {
    "agreement": lambda order: agreement(order=order),
    "unanimous": lambda order: agreement(1, order),
    "at risk": lambda order: Majority(scope=Scope.QUESTION, order=order),
    "faster_moa": lambda order: FasterMoa(seed=3, order=order),
}


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(sorted(SHAPES)), st.sampled_from(sorted(RULES)), st.booleans())
def test_in_the_order_of_slots_what_comes_of_a_question_does_not_depend_on_the_schedule(
    data, shape: str, rule: str, cancels: bool
) -> None:
    course = data.draw(courses_of(shape))
    graph = graph_of(shape, RULES[rule](Order.SLOT))
    one = run(graph, course, cancels=cancels)
    other = run(graph, course, sorted(course.says), cancels=not cancels)
    kept = [(came.end.answer.answer, came.end.answer.source, came.end.decision.skip) for came in (one, other)]
    assert kept[0] == kept[1], "the confidence alone may differ: it is what missing votes leave at least"
    last = {key: call for key, call in one.calls.items() if key.node == "last"}
    assert last == {key: call for key, call in other.calls.items() if key.node == "last"}


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(sorted(SHAPES)), st.sampled_from(["agreement", "unanimous", "at risk"]))
def test_what_agents_agree_on_is_the_same_in_either_order_and_sooner_known_as_they_finish(data, shape, rule) -> None:
    course = data.draw(courses_of(shape, AnswerKind.CHOICE))  # others may be written in another way
    by_slot, as_they_finish = (run(graph_of(shape, RULES[rule](order)), course, cancels=True) for order in Order)
    assert by_slot.end.answer.answer == as_they_finish.end.answer.answer
    assert len(by_slot.calls) - by_slot.num_cancelled >= len(as_they_finish.calls) - as_they_finish.num_cancelled


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(sorted(SHAPES)), st.sampled_from(sorted(RULES)), st.sampled_from(list(Order)))
def test_nobody_asks_or_reads_more_than_where_everybody_answers(data, shape: str, rule: str, order: Order) -> None:
    course = data.draw(courses_of(shape))
    came = run(graph_of(shape, RULES[rule](order)), course, cancels=True)
    whole = run(graph_of(shape, None), course, cancels=True)
    assert whole.num_cancelled == 0
    assert set(came.calls) <= set(whole.calls)
    assert (came.end.answer.source is AnswerSource.MAJORITY) >= came.end.decision.skip


def agreed(shape: str, says: dict[str, str], rule: Rule | None = None) -> Came:
    """Let all agents of a node give an answer, by slot."""
    question = make_question("q", answer="A")
    first = first_of(shape)
    keys = [*(call.key for call in first), *upper_of(shape)]
    course = Course(question, first, {key: (says[key.node][key.slot], 0.9) for key in keys}, keys, set())
    return run(graph_of(shape, rule or agreement()), course, cancels=True)


def asked(came: Came) -> set[str]:
    return {key.node for key in came.calls}


def test_a_successor_whose_inputs_agree_is_left_out_and_so_is_all_above_it_where_that_settles_the_answer() -> None:
    says = {"leaf_0": "AAB", "leaf_1": "BAA", "leaf_2": "ABB", "mid_0": "B", "mid_1": "B", "mid_2": "B", "last": "B"}
    came = agreed("tree", says)
    answer, decision = came.end.answer, came.end.decision
    assert (answer.answer, answer.source, decision.skip) == ("A", AnswerSource.MAJORITY, True)
    assert asked(came) == {"leaf_0", "leaf_1", "leaf_2"}
    assert came.num_cancelled == 1 + 0 + 3, "the third of the first leaf, and the whole third leaf"


def test_upper_layers_are_asked_where_the_successors_differ() -> None:
    says = {"leaf_0": "AAB", "leaf_1": "ABC", "leaf_2": "BBB", "mid_0": "D", "mid_1": "C", "mid_2": "D", "last": "C"}
    came = agreed("tree", says)
    assert (came.end.answer.answer, came.end.answer.source) == ("C", AnswerSource.AGGREGATOR)
    assert asked(came) == {"leaf_0", "leaf_1", "leaf_2", "mid_1", "last"}
    assert [vote.answer for vote in came.end.ballot.votes] == ["A", "C", "B"]


def test_the_last_agent_reads_the_response_that_stands_for_a_successor_that_was_left_out() -> None:
    says = {"leaf_0": "BAA", "leaf_1": "ABC", "leaf_2": "BBB", "mid_0": "D", "mid_1": "C", "mid_2": "D", "last": "C"}
    last = agreed("tree", says).calls[CallKey("q", "last", 0)]
    assert last.after == (CallKey("q", "leaf_0", 1), CallKey("q", "mid_1", 0), CallKey("q", "leaf_2", 0))


def test_at_risk_the_whole_first_layer_decides() -> None:
    says = {"leaf_0": "AAA", "leaf_1": "AAB", "leaf_2": "ABB", "mid_0": "B", "mid_1": "B", "mid_2": "B", "last": "B"}
    came = agreed("tree", says, RULES["at risk"](Order.SLOT))
    assert (came.end.answer.answer, came.end.decision.skip) == ("A", True)
    assert came.num_cancelled == 4, "six of nine are settled with the seventh: two leaves, and two that read others"
    assert asked(came) <= {"leaf_0", "leaf_1", "leaf_2", "mid_0", "mid_1"}
    came = agreed("tree", {**says, "leaf_2": "BBB"}, RULES["at risk"](Order.SLOT))
    assert (came.end.answer.answer, came.end.answer.source, came.num_cancelled) == ("B", AnswerSource.AGGREGATOR, 0)


def test_a_calibrated_exit_promises_what_its_gate_does_and_names_its_own_keys(tmp_path) -> None:
    said = [calibrated(f"c{i}", "AAB" if i % 2 else "AAA", gold="A") for i in range(600)]
    values = {
        "calibration": save_answers(tmp_path, said),
        "accepted_loss_frac": 0.05,
        "risk_frac": 0.05,
        "fit_frac": 0.3,
    }
    made = Calibrated(**values, scope="question", order="slot")
    assert made.chosen is not None
    assert made.chosen <= 2 / 3
    assert "promises a loss of at most 5 pp" in made.notes()[0]
    with pytest.raises(ValueError, match=r"exit\.risk_frac must be below 1, got 2"):
        Calibrated(**{**values, "risk_frac": 2}, scope="question")


def test_one_rule_decides_who_is_asked() -> None:
    asks = (SHAPES["flat"][0], Node(name="last", experts=(W,), after=("propose",), when="unsettled"))
    with pytest.raises(ValueError, match="exit=agreement: gate must be never: .*, got 'majority'"):
        CallGraph(nodes=asks, rule=Majority(), compare=comparisons()).with_exit(agreement())
    graph = CallGraph(nodes=asks, compare=comparisons()).with_exit(agreement())
    assert (graph.rule, graph.without_rule().rule) == (agreement(), Never())

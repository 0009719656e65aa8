"""Which calls a question needs, what they read, and what it answers in the end."""

import sys
from collections.abc import Mapping
from types import ModuleType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mosaic.config.instantiation import make
from mosaic.core.results import CallStatus, Inputs, Response
from mosaic.core.workload import AGGREGATE, PROPOSE, AnswerKind, Call, CallKey
from mosaic.pipelines import Rule, aggregation
from mosaic.pipelines.aggregation import lay_out
from mosaic.pipelines.call_graph import CallGraph, mixture_of_agents
from mosaic.pipelines.final_answers import AnswerSource, FinalAnswer, accuracy_frac, comparisons
from mosaic.pipelines.node import Node, When
from mosaic.pipelines.prompts import expert_prompt
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.ballot import Decision
from mosaic.pipelines.rules.rule import Majority, Never
from mosaic.pipelines.walk import walk
from tests.answered_questions import FAILED, answered, ended, make_batch, make_moa, make_question, make_tree
from tests.factories import make_expert
from tests.readme_blocks import ROOT, blocks_of

MATH, TEXT = AnswerKind.MATH, AnswerKind.TEXT
MIXED = (
    answered(make_question("agreed"), ["A", "A", "A"]),
    answered(make_question("split"), ["A", "B", "C"]),
    answered(make_question("two"), ["D", "A", "D"]),
    answered(make_question("lost"), ["B", FAILED, "B"]),
    answered(make_question("dumb"), ["C", None, None]),
    answered(make_question("half", MATH), ["0.5", "1/2", "3"]),
    answered(make_question("words", TEXT), ["Emma", "Emma", "Emma"]),
)


def needed(graph: CallGraph, *asked) -> list[Call]:
    return [call for question in asked for call in walk(graph, *question).submit]


def after(done: Inputs, call: Call, answer: str | None, **changes: object) -> Inputs:
    """What has ended, with one call more."""
    return {**done, call.key: ended(call, answer, **changes)}


def test_a_node_waits_for_every_node_that_it_reads_also_for_those_without_calls_yet() -> None:
    """Two agents read a part of the first layer each; the one who reads both waits for the slower part."""
    merger, writer = make_expert("M"), make_expert("W")
    graph = CallGraph(
        nodes=(
            Node(name="fast", experts=(make_expert("A"),)),
            Node(name="slow", experts=(make_expert("B"),)),
            Node(name="left", experts=(merger,), after=("fast",)),
            Node(name="right", experts=(merger,), after=("slow",)),
            Node(name="last", experts=(writer,), after=("left", "right")),
        ),
        compare=comparisons(),
    )
    question = make_question("q")
    first = [Call(CallKey("q", "fast", 0), "A", 50), Call(CallKey("q", "slow", 0), "B", 50)]
    done: Inputs = {first[0].key: ended(first[0], "A")}
    (left,) = walk(graph, question, first, done).submit
    done = {**done, left.key: ended(left, "A")}
    progress = walk(graph, question, first, done)
    assert (progress.submit, progress.is_over) == ((), False)
    done = {**done, first[1].key: ended(first[1], "B")}
    (right,) = walk(graph, question, first, done).submit
    (last,) = walk(graph, question, first, {**done, right.key: ended(right, "B")}).submit
    assert last.after == (left.key, right.key)


# Mixture of agents


def test_a_gates_decisions_by_hand() -> None:
    graph = make_moa()
    third, two_thirds = pytest.approx(1 / 3), pytest.approx(2 / 3)
    assert {asked[0].id: walk(graph, *asked).vote()[1] for asked in MIXED} == {
        "agreed": Decision(True, "A", 1.0),
        "split": Decision(False, "A", third),
        "two": Decision(True, "D", two_thirds),
        "lost": Decision(True, "B", two_thirds),
        "dumb": Decision(False, "C", third),
        "half": Decision(True, "0.5", two_thirds),
        "words": Decision(False, None, None),
    }
    calls = needed(graph, *MIXED)
    assert [call.key for call in calls] == [CallKey(name, AGGREGATE, 0) for name in ("split", "dumb", "words")]
    assert {call.expert for call in calls} == {"W"}
    for call in calls:
        assert call.after == tuple(CallKey(call.key.question, PROPOSE, slot) for slot in range(3))


def test_a_call_that_failed_or_is_not_there_has_no_answer_whatever_its_record_says() -> None:
    question, first, done = answered(make_question("q"), ["A", "A", "B"])
    cancelled = {**done, first[1].key: replace(done[first[1].key], status=CallStatus.CANCELLED)}
    missing = {key: record for key, record in done.items() if key != first[0].key}
    for ended_calls, answers in ((cancelled, ["A", None, "B"]), (missing, [None, "A", "B"])):
        ballot, _ = walk(make_moa(), question, first, ended_calls).vote()
        assert [(vote.expert, vote.answer) for vote in ballot.votes] == list(zip("ABC", answers, strict=True))


def test_where_all_calls_failed_the_aggregator_answers_alone() -> None:
    question, first, done = answered(make_question("q", text="Which?"), [FAILED, FAILED])
    graph = make_moa()
    (call,) = walk(graph, question, first, done).submit
    assert walk(graph, question, first, done).vote()[1] == Decision(False, None, 0.0)
    assert graph.prompt(question, call, done) == lay_out(question, [], make_expert("W")).text()
    assert call.after, "it is no call of the first layer"


def test_a_question_that_does_not_fit_keeps_the_gates_answer() -> None:
    # 8192 tokens of context, of which 1000 are for the answer.
    fits, long = (
        answered(make_question(name, prompt_tokens=tokens), ["A", "B", "B"])
        for name, tokens in (("fits", 6000), ("long", 7100))
    )
    graph = make_moa(Never())
    assert [call.key.question for call in needed(graph, fits, long)] == ["fits"]
    assert walk(graph, *long).end().is_too_long
    decision = walk(graph, *long).vote()[1]
    assert decision == Decision(False, "B", pytest.approx(2 / 3)), "it was not the gate that left it out"
    answer = walk(graph, *long).answer
    assert answer is not None
    assert (answer.answer, answer.source) == ("B", AnswerSource.NOT_AGGREGATED)
    # Less room for what is written leaves more for the question.
    assert len(needed(make_moa(Never(), min_output_tokens=600), long)) == 1


def test_free_text_goes_to_the_aggregator_unless_a_comparison_is_plugged_in() -> None:
    words = answered(make_question("words", TEXT), ["Emma", "emma", "Jane"])
    assert len(needed(make_moa(Majority(tau=0.1)), words)) == 1
    plugged = make_moa(compare=comparisons(lambda a, b: a.casefold() == b.casefold()))
    assert needed(plugged, words) == []
    assert walk(plugged, *words).vote()[1] == Decision(True, "Emma", pytest.approx(2 / 3))


def test_a_comparison_for_free_text_leaves_the_other_kinds_as_they_are() -> None:
    def same(one: str, other: str) -> bool:
        return True

    own, plain = comparisons(same), comparisons()
    assert (own[TEXT], plain[TEXT]) == (same, None)
    for kind in (AnswerKind.CHOICE, MATH):
        assert own[kind] is plain[kind] is not None


def test_slots_decide_the_order_of_votes_and_responses_so_ties_go_to_the_lowest() -> None:
    question, first, done = answered(make_question("q"), ["A", "B"])
    ballot, decision = walk(make_moa(), question, first[::-1], done).vote()
    assert ([vote.answer for vote in ballot.votes], decision.answer) == (["A", "B"], "A")
    (call,) = walk(make_moa(), question, first[::-1], done).submit
    assert [key.slot for key in call.after] == [0, 1]


@given(
    answers=st.lists(st.sampled_from([*"ABCD", None, FAILED]), min_size=1, max_size=5),
    tau=st.floats(0.01, 1.0),
    order=st.randoms(),
)
def test_a_question_is_skipped_or_aggregated_whatever_the_order_of_its_records(answers, tau, order) -> None:
    question, first, done = answered(make_question("q"), answers)
    shuffled = list(done.items())
    order.shuffle(shuffled)
    graph = make_moa(Majority(tau=tau))
    step = walk(graph, question, first, dict(shuffled))
    decision = walk(graph, question, first, done).vote()[1]
    assert [call.after for call in step.submit] == [tuple(done)] * (not decision.skip)
    assert (step.answer is not None) == decision.skip
    assert step == walk(graph, question, first, done)


# Final answers


def final_of(asked, said: str | None = None, graph: CallGraph | None = None) -> FinalAnswer:
    """The answer after all calls, an aggregator's among them, have ended."""
    question, first, done = asked
    graph = graph or make_moa()
    for call in walk(graph, question, first, done).submit:
        done = after(done, call, said)
    answer = walk(graph, question, first, done).answer
    assert answer is not None
    return answer


def test_final_answers_by_hand() -> None:
    settled = answered(make_question("q", answer="A"), ["A", "A", "B"])
    split = answered(make_question("q", answer="A"), ["A", "B", None])
    assert final_of(settled) == FinalAnswer(
        question="q", answer="A", source=AnswerSource.MAJORITY, confidence=2 / 3, votes=("A", "A", "B"), gold="A",
        correct=True,
    )  # fmt: skip
    assert final_of(split, "C") == FinalAnswer(
        question="q", answer="C", source=AnswerSource.AGGREGATOR, confidence=1 / 3, votes=("A", "B", None), gold="A",
        correct=False,
    )  # fmt: skip
    silent, failed = final_of(split, None), final_of(split, FAILED)
    assert (silent.answer, silent.source, silent.correct) == (None, AnswerSource.AGGREGATOR, False), "it has answered"
    assert (failed.answer, failed.source, failed.correct) == ("A", AnswerSource.NOT_AGGREGATED, True)


@pytest.mark.parametrize("is_failed", [False, True])
def test_a_gate_that_accepts_one_node_does_not_excuse_another_that_failed(is_failed: bool) -> None:
    nodes = (
        Node(name="propose"),
        Node(name="check", experts=(make_expert("M"),), after=("propose",), when=When.UNSETTLED),
        Node(name="last", experts=(make_expert("W"),), after=("propose",)),
    )
    graph = CallGraph(nodes=nodes, rule=Majority(), compare=comparisons())
    final = final_of(answered(make_question("q"), ["A", "A", "A"]), FAILED if is_failed else "B", graph)
    assert final.source is (AnswerSource.NOT_AGGREGATED if is_failed else AnswerSource.AGGREGATOR)


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "correct"),
    [
        (AnswerKind.CHOICE, "B", "B", True),
        (AnswerKind.CHOICE, "B", "A", False),
        (AnswerKind.CHOICE, "B", None, False),
        (AnswerKind.CHOICE, None, "A", None),
        (MATH, "1/2", "0.5", True),
        (MATH, "1/2", "0.6", False),
        (MATH, None, "0.5", None),
        (TEXT, "Emma", "Emma", None),
        (TEXT, None, None, None),
    ],
)
def test_answers_are_graded_as_their_kind_compares(kind, gold, answer, correct) -> None:
    asked = answered(make_question("q", kind, answer=gold), [answer])
    merged = final_of(asked, answer, make_moa(Never()))
    assert (merged.answer, merged.gold, merged.correct) == (answer, gold, correct)
    if kind is not TEXT:
        voted = final_of(asked, graph=mixture_of_agents(None, rule=Never(), compare=comparisons()))
        assert (voted.answer, voted.gold, voted.correct) == (answer, gold, correct)


def test_accuracy_is_of_the_answers_that_can_be_told() -> None:
    def graded(correct: bool | None) -> FinalAnswer:
        return FinalAnswer("q", "A", AnswerSource.MAJORITY, 1.0, ("A",), None, correct)

    assert accuracy_frac([graded(True), graded(None), graded(False), graded(True)]) == pytest.approx(2 / 3)
    assert accuracy_frac([graded(False)]) == 0.0
    assert accuracy_frac([graded(None)]) is None
    assert accuracy_frac(iter(())) is None


# Prompts


def test_an_expert_reads_the_question_and_an_aggregator_what_was_answered_by_slot() -> None:
    question, first, done = answered(make_question("q", text="A or B?"), ["A", FAILED, "B"])
    said = {0: "Surely A.", 2: "It is B."}
    done = {key: replace(r, response=Response(said.get(key.slot)), output_tokens=4) for key, r in done.items()}
    graph = make_moa(Never())
    (call,) = walk(graph, question, first, done).submit
    assert graph.prompt(question, first[0], {}) == expert_prompt(question)
    read = [aggregation.Response("A", 4, "Surely A."), aggregation.Response("C", 4, "It is B.")]
    assert graph.prompt(question, call, done) == lay_out(question, read, graph.node(AGGREGATE).experts[0]).text()


def test_an_aggregator_does_not_read_thinking() -> None:
    question, first, done = answered(make_question("q", text="A or B?"), ["A"])
    (key,) = done
    thought = Response("hm, B? no</think>It is A.", thinking_opened=True)
    done = {key: replace(done[key], response=thought, visible_tokens=3)}
    (call,) = walk(make_moa(Never()), question, first, done).submit
    prompt = make_moa(Never()).prompt(question, call, done)
    assert "It is A." in prompt
    assert "hm" not in prompt


# Other graphs


def go_through(graph: CallGraph, votes: str, says: Mapping[str, str | None]) -> tuple[list[list[str]], FinalAnswer]:
    """What a question needs layer by layer, as experts, and its answer; upper experts say what the table has."""
    question, first, done = answered(make_question("q", answer="A"), list(votes))
    steps = []
    while (step := walk(graph, question, first, done)).answer is None:
        assert step.submit, "it must go on"
        steps.append([call.expert for call in step.submit])
        for call in step.submit:
            assert all(key in done for key in call.after)
            done = after(done, call, says[call.expert])
    return steps, step.answer


@pytest.mark.parametrize(
    ("merged", "final", "answer", "source"),
    [
        ("AA", None, "A", AnswerSource.AGGREGATOR),
        ("AB", "C", "C", AnswerSource.AGGREGATOR),
        ("AB", FAILED, "A", AnswerSource.NOT_AGGREGATED),
    ],
)
def test_a_gate_before_the_last_of_three_layers_sees_what_the_mergers_say(merged, final, answer, source) -> None:
    says = {"M": merged[0], "N": merged[1], "W": final}
    steps, got = go_through(make_tree(Majority()), "ABCD", says)
    assert steps == [["M", "N"], ["W"]][: 1 if merged == "AA" else 2]
    assert (got.answer, got.source, got.votes) == (answer, source, tuple(merged))


def test_where_a_gate_accepts_two_mergers_its_answer_is_the_final_one() -> None:
    class Contrary(Never):
        def decide(self, ballot):
            return Decision(True, ballot.votes[-1].answer, 0.9)

    steps, answer = go_through(make_tree(Contrary()), "AB", {"M": "A", "N": "B"})
    assert (steps, answer.answer, answer.confidence) == ([["M", "N"]], "B", 0.9)


def test_what_reads_a_node_that_was_not_needed_is_not_needed_either() -> None:
    experts = (make_expert("M"),)
    nodes = (
        Node(name="propose"),
        Node(name="merge", experts=experts, after=("propose",), when=When.UNSETTLED),
        Node(name="check", experts=(make_expert("N"),), after=("merge",)),
    )
    graph = CallGraph(nodes=nodes, rule=Majority(), compare=comparisons())
    says = {"M": "B", "N": "C"}
    assert go_through(graph, "AAA", says)[0] == []
    steps, answer = go_through(graph, "ABC", says)
    assert (steps, answer.answer) == ([["M"], ["N"]], "C")


def test_several_last_calls_vote() -> None:
    nodes = (Node(name="propose"), Node(name="merge", experts=tuple(map(make_expert, "MNO")), after=("propose",)))
    graph = CallGraph(nodes=nodes, compare=comparisons())
    steps, answer = go_through(graph, "AA", {"M": "B", "N": "C", "O": "C"})
    assert (steps, answer.answer, answer.source) == ([["M", "N", "O"]], "C", AnswerSource.AGGREGATOR)


def test_layers_first_calls_and_experts_of_a_graph() -> None:
    tree = make_tree()
    assert [[node.name for node in layer] for layer in tree.layers] == [["propose"], ["merge"], ["final"]]
    assert (tree.first_nodes, [node.name for node in tree.upper_nodes]) == (("propose",), ["merge", "final"])
    assert [expert.name for expert in tree.experts] == ["M", "N", "W"]
    batch = make_batch((make_question("q0"), 2), (make_question("q1"), 1))
    assert tree.first_calls(batch) == batch.calls
    # Nodes that name their experts ask them all, whomever the workload has recruited.
    named = CallGraph(
        nodes=(
            Node(name="draft", experts=(make_expert("X"), make_expert("Y"))),
            Node(name="other", experts=(make_expert("Z"),)),
        ),
        compare=comparisons(),
    )
    assert [(str(call.key), call.expert, call.prompt_tokens) for call in named.first_calls(batch)] == [
        ("q0/draft/0", "X", 50), ("q0/draft/1", "Y", 50), ("q1/draft/0", "X", 50), ("q1/draft/1", "Y", 50),
        ("q0/other/0", "Z", 50), ("q1/other/0", "Z", 50),
    ]  # fmt: skip


def test_of_a_layer_as_many_calls_are_expected_as_questions_need() -> None:
    batch = make_batch((make_question("q0"), 2), (make_question("q1"), 1))
    merges, finals = make_tree().expected_calls(batch, {"merge": 0.75, "final": 0.0}, {"merge": 900})
    assert [(str(call.key), call.expert, call.prompt_tokens) for call in merges] == [
        ("q0/merge/0", "M", 900), ("q0/merge/1", "N", 900), ("q1/merge/1", "N", 900),
    ]  # fmt: skip
    assert finals == ()
    merges, finals = make_tree().expected_calls(batch, {}, {"merge": 900, "final": 500})
    assert [len(merges), *(str(call.key) for call in finals)] == [4, "q0/final/0", "q1/final/0"]


FIRST, MERGE = Node(name="a"), Node(name="b", experts=(make_expert("W"),), after=("a",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Node(name=""), r"node : name must be a non-empty string, got ''"),
        (lambda: Node(name="b", after="a"), "node b: after must be a list of strings, got 'a'"),
        (lambda: Node(name="b", after=("a", "a")), "node b: after must be unique, got 'a' twice"),
        (lambda: Node(name="b", after=("a",)), "node b: experts must be at least one, as it reads others"),
        (lambda: Node(name="b", when="often"), r"node b: when must be one of \['always', 'unsettled'\], got 'often'"),
        (lambda: Node(name="b", when="unsettled"), "node b: when must be always: it reads nothing"),
        (lambda: Node(name="b", min_output_tokens=0), "node b: min_output_tokens must be at least 1, got 0"),
        (lambda: graph_of(), "pipeline: nodes must be at least one, got 0"),
        (lambda: graph_of(FIRST, FIRST), "pipeline: name of a node must be unique, got 'a' twice"),
        (lambda: graph_of(MERGE, FIRST), r"node b: after must be of the nodes before it, \[\], got 'a'"),
    ],
)
def test_bad_graphs_are_refused(make, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def graph_of(*nodes: Node) -> CallGraph:
    return CallGraph(nodes=nodes, compare=comparisons())


def test_the_documented_class_and_yaml_file_are_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    code, config = (block.text for block in blocks_of(ROOT / "docs" / "how-to" / "rule.md"))
    settings = yaml.safe_load(config)
    module = ModuleType(settings["_target_"].rpartition(".")[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    rule: Rule = make(settings, "gate")
    question, first, done = answered(make_question("q"), ["A", "B", "A"])
    assert walk(make_moa(rule), question, first, {}).answer is None
    assert walk(make_moa(rule), question, first, dict(list(done.items())[::2])).cancel == (first[1].key,)
    answer = walk(make_moa(rule), question, first, done).answer
    assert answer is not None
    assert (answer.answer, rule.promise(), rule.name) == ("A", None, "all_but_one")


def test_a_question_that_needed_nothing_more_ends_by_what_has_ended_since() -> None:
    """A call that failed at first may be tried again: what was found before does not stand."""
    question, first, done = answered(make_question("q", answer="B"), ["A", "A", "A"])
    questions = Questions(make_batch((question, 3)), make_moa())
    for record in done.values():
        questions.record(record)
    assert questions.needed("q") == ()
    assert questions.ends()[0].answer.answer == "A"
    for call in first[:2]:
        questions.record(ended(call, "B"))
    assert [end.answer.votes for end in questions.ends()] == [("B", "B", "A")]
    assert questions.needed("q") == ()
    assert questions.ends() == [walk(questions.graph, *questions.of("q")).end()]

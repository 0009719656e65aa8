"""Early quorum: what no longer matters and how often, and that the final answers are those of the gate without it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.workload import AnswerKind, CallKey
from mosaic.pipelines.agreement import PRIOR_QUESTIONS, Agreement
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.ballot import Ballot
from mosaic.pipelines.rules.calibrated import Calibrated
from mosaic.pipelines.rules.rule import Majority, Never, Rule, decided_by_plurality, decided_by_trying
from mosaic.pipelines.rules.weighted import Weighted
from mosaic.pipelines.walk import walk
from tests.answered_questions import answered, make_moa, make_question, make_tree
from tests.calibration_questions import make_ballot_of, save_answers
from tests.calibration_questions import make_question as calibrated
from tests.factories import make_call, make_expert
from tests.question_courses import courses, run


def partial(votes: str) -> Ballot:
    """A vote each: a letter, - for one that cannot be parsed, ? for one that is missing."""
    pending = tuple(place for place, vote in enumerate(votes) if vote == "?")
    return replace(make_ballot_of(votes.replace("?", "-"), experts="XYZXYZ"), pending=pending)


@pytest.mark.parametrize(
    ("gate", "votes", "answer"),
    [
        (Majority(), "AA?", "A"),
        (Majority(), "?AA", "A"),
        (Majority(), "A?B", None),
        (Majority(), "A??", None),
        (Majority(), "A-?", None),
        (Majority(), "--?", None),
        (Majority(), "AAB", "A"),
        (Majority(tau=0.5), "AA??", "A"),  # a tie goes to the lowest slot
        (Majority(tau=0.5), "?AA?", None),
        (Majority(tau=0.5), "-AA?", "A"),  # what cannot be parsed has come, and will not be another vote
        (Majority(tau=0.3), "A-?", "A"),
        (Majority(tau=0.3), "?A-", None),
        (Majority(tau=1), "AA?", None),
        (Majority(tau=1), "AAA", "A"),
        (Never(), "AA?", None),
        (Never(), "AAA", None),
    ],
)
def test_a_gate_is_settled_when_nothing_that_is_missing_can_change_it(gate: Rule, votes: str, answer) -> None:
    decision = gate.decided_early(partial(votes))
    assert (None if decision is None else decision.answer) == answer


@given(st.text("ABC-?", min_size=1, max_size=5), st.floats(0.05, 1.0))
def test_the_plurality_is_settled_just_where_no_way_to_go_on_changes_it(votes: str, tau: float) -> None:
    gate, so_far = Majority(tau=tau), partial(votes)
    if votes.count("?") < 5:
        assert gate.decided_early(so_far) == decided_by_trying(so_far, gate.decide)


def test_what_cannot_be_compared_or_tried_is_never_settled() -> None:
    free_text = replace(make_ballot_of("AA-", comparable=False), pending=(2,))
    assert Majority().decided_early(free_text) is None
    gate = Majority(tau=0.1)
    six = partial("ABC???")
    assert (decided_by_plurality(six, 0.05), decided_by_trying(six, gate.decide)) == (None, None)
    many = replace(make_ballot_of("A" * 8 + "-" * 4, experts="X" * 12), pending=(8, 9, 10, 11))
    assert decided_by_plurality(many, 0.5) is not None
    assert decided_by_trying(many, Majority(tau=0.5).decide) is None


@pytest.fixture(scope="module")
def gates(tmp_path_factory) -> list[Rule]:
    """Gates of every kind, some of them taught on questions that X and Y mostly get right."""
    said = [calibrated(f"c{i}", "AAB" if i % 4 else "BAA", gold="A" if i % 5 else "B") for i in range(400)]
    path = save_answers(tmp_path_factory.mktemp("gates"), said)
    promise = {"calibration": path, "accepted_loss_frac": 0.3}
    return [
        Majority(),
        Majority(tau=0.5),
        Majority(tau=0.25),
        Majority(tau=1),
        Never(),
        Weighted(calibration=path, min_posterior=0.6),
        Calibrated(**promise),
        Calibrated(**promise, confidence="weighted"),
    ]


def test_weighted_votes_are_settled_too(gates) -> None:
    settled = {
        gate.name + getattr(gate, "confidence", ""): [
            votes for votes in ("A??", "?A?", "AA?", "A?A", "?AA", "AB?") if gate.decided_early(partial(votes))
        ]
        for gate in gates[5:]
    }
    assert settled["calibratedplurality"] == ["AA?", "A?A", "?AA"]
    assert settled["weighted"]
    assert "AB?" not in settled["weighted"]


def gated(*upper: Node) -> Callable[[Rule], CallGraph]:
    return lambda rule: CallGraph(nodes=(Node(name="propose"), *upper), rule=rule, compare=comparisons())


def asking(name: str, experts: str, *after: str, when: str = "unsettled") -> Node:
    return Node(name=name, experts=tuple(map(make_expert, experts)), after=after, when=when)


GRAPHS = {
    "moa": make_moa,
    "tree": make_tree,
    "cascade": gated(asking("big", "M", "propose"), asking("last", "N", "propose", "big")),
    "read twice": gated(asking("aggregate", "W", "propose"), asking("last", "N", "propose", when="always")),
    "gated mergers": gated(asking("merge", "MNO", "propose"), asking("final", "W", "merge")),
}
UPPER = [
    CallKey("q", node, slot)
    for node, n in (("big", 1), ("last", 1), ("final", 1), ("aggregate", 1), ("merge", 3))
    for slot in range(n)
]
FIRST = tuple(make_call("q", expert="XYZ"[slot % 3], slot=slot) for slot in range(4))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 4).flatmap(lambda n: courses(FIRST[:n], UPPER)), st.integers(0, 7), st.sampled_from(sorted(GRAPHS))
)
def test_final_answers_and_what_an_aggregator_reads_are_those_without_a_quorum(gates, course, number, shape) -> None:
    graph = GRAPHS[shape](gates[number])
    whole, early = run(graph, course, cancels=False), run(graph, course, cancels=True)
    kept = [(end.answer.answer, end.answer.source, end.answer.correct) for end in (whole.end, early.end)]
    assert kept[0] == kept[1]
    read, read_early = ({key: call for key, call in came.calls.items() if call.after} for came in (whole, early))
    assert read_early == {key: call for key, call in read.items() if key in read_early}
    assert len(read) - len(read_early) <= early.num_cancelled
    if not early.num_cancelled:
        assert early.end.answer == whole.end.answer


def test_the_third_call_is_needless_when_two_agree_and_every_call_is_needed_until_then() -> None:
    question, first, done = answered(make_question("q"), ["A", "A", "B"])
    keys = [call.key for call in first]
    graph = make_moa(Majority())

    def needless(*ends: int) -> tuple[CallKey, ...]:
        return walk(graph, question, first, {keys[slot]: done[keys[slot]] for slot in ends}).cancel

    assert [needless(), needless(0), needless(0, 2)] == [(), (), ()]
    assert needless(0, 1) == walk(graph, question, first, {key: done[key] for key in keys[:2]}).cancel == (keys[2],)
    assert needless(0, 1, 2) == ()


def test_what_another_node_reads_is_needed() -> None:
    question, first, done = answered(make_question("q"), ["A", "A", "B"])
    both = {call.key: done[call.key] for call in first[:2]}
    assert walk(GRAPHS["cascade"](Majority()), question, first, both).cancel == (first[2].key,)
    assert walk(GRAPHS["read twice"](Majority()), question, first, both).cancel == ()


def test_answers_with_more_than_one_form_are_settled_from_the_lowest_slot_on() -> None:
    """What slot 0 wrote would stand for the group, or split it: 75% is 75 and is 0.75, which are not the same."""
    question, first, done = answered(make_question("q", AnswerKind.MATH), ["0.75", "75%", "75"])
    keys = [call.key for call in first]
    graph = make_moa(Majority())
    assert walk(graph, question, first, {keys[1]: done[keys[1]], keys[2]: done[keys[2]]}).cancel == ()
    assert walk(graph, question, first, {keys[0]: done[keys[0]], keys[1]: done[keys[1]]}).cancel == (keys[2],)


def counted(graph, *votes: str) -> Agreement:
    """Calibration questions that A, B and C answer; - cannot be parsed."""
    asked = [answered(make_question(f"c{i}"), [None if v == "-" else v for v in said]) for i, said in enumerate(votes)]
    questions = {question.id: question for question, _, _ in asked}
    return Agreement(graph, questions, [record for _, _, done in asked for record in done.values()])


def test_pairs_are_counted_and_lean_on_what_all_pairs_do() -> None:
    # A and B agree on 3 of 4, A and C on 3, B and C on 2: 8 of 12 pairs.
    agreement = counted(make_moa(Majority()), "AAA", "AAB", "ABA", "BBB")
    expected = (3 + PRIOR_QUESTIONS * 8 / 12) / (4 + PRIOR_QUESTIONS)
    assert agreement.settled_frac(["A", "B"], 1) == agreement.settled_frac(["B", "A"], 1) == pytest.approx(expected)
    assert agreement.settled_frac(["A", "Z"], 1) == pytest.approx(8 / 12), "never seen together"
    assert agreement.settled_frac(["A"], 2) == 0.0
    assert agreement.settled_frac(["A", "B", "C"], 1) == 0.0, "no question has four slots"
    assert agreement.is_ever_settled


def test_what_cannot_be_parsed_agrees_with_nothing() -> None:
    agreement = counted(make_moa(Majority()), "--A", "-A-")
    assert agreement.settled_frac(["A", "B"], 1) == 0.0
    assert not agreement.is_ever_settled


def test_nothing_is_settled_early_without_a_gate_on_the_first_layer() -> None:
    for graph in (make_moa(Never()), make_tree(Majority())):
        assert not counted(graph, "AAA", "BBB").is_ever_settled

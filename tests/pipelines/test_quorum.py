"""Early quorum: what no longer matters, and that the final answers are those of the gate without it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import AnswerKind, Call, CallKey, Question
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import FinalAnswer, comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.ballot import Ballot
from mosaic.pipelines.rules.calibrated import Calibrated
from mosaic.pipelines.rules.calibration_file import encode_calibration_answers
from mosaic.pipelines.rules.rule import Majority, Never, Rule, Unanimous, decided_by_plurality, decided_by_trying
from mosaic.pipelines.rules.weighted import Weighted
from mosaic.pipelines.walk import walk
from tests.answered_questions import FAILED, answered, ended, make_moa, make_question, make_tree
from tests.calibration_questions import SETTING, make_ballot_of
from tests.calibration_questions import make_question as calibrated
from tests.factories import make_call, make_expert


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
        (Unanimous(), "AA?", None),
        (Unanimous(), "AAA", "A"),
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
    path = tmp_path_factory.mktemp("gates") / "calibration.parquet"
    said = [calibrated(f"c{i}", "AAB" if i % 4 else "BAA", gold="A" if i % 5 else "B") for i in range(400)]
    path.write_bytes(encode_calibration_answers(said, SETTING))
    promise = {"calibration": path, "accepted_loss_frac": 0.3}
    return [
        Majority(),
        Majority(tau=0.5),
        Majority(tau=0.25),
        Unanimous(),
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


class Course(NamedTuple):
    """A question on its way: what calls would say, in which order they end, and which cannot be stopped in time."""

    question: Question
    first: tuple[Call, ...]
    says: dict[CallKey, str | None]
    order: list[CallKey]
    late: set[CallKey]


GRAPHS = {
    "moa": lambda gate: make_moa(gate),
    "tree": make_tree,
    "cascade": lambda gate: CallGraph(
        nodes=(
            Node(name="propose"),
            Node(name="big", experts=(make_expert("M"),), after=("propose",), when="unsettled"),
            Node(name="last", experts=(make_expert("N"),), after=("propose", "big"), when="unsettled"),
        ),
        rule=gate,
        compare=comparisons(),
    ),
    "read twice": lambda gate: CallGraph(
        nodes=(
            Node(name="propose"),
            Node(name="aggregate", experts=(make_expert("W"),), after=("propose",), when="unsettled"),
            Node(name="last", experts=(make_expert("N"),), after=("propose",)),
        ),
        rule=gate,
        compare=comparisons(),
    ),
    "gated mergers": lambda gate: CallGraph(
        nodes=(
            Node(name="propose"),
            Node(name="merge", experts=tuple(map(make_expert, "MNO")), after=("propose",), when="unsettled"),
            Node(name="final", experts=(make_expert("W"),), after=("merge",), when="unsettled"),
        ),
        rule=gate,
        compare=comparisons(),
    ),
}
MATH = ["1/2", "0.5", "75%", "75", "0.75", None, FAILED]
LETTERS = ["A", "B", "C", None, FAILED]


@st.composite
def courses(draw) -> Course:
    kind = draw(st.sampled_from([AnswerKind.CHOICE, AnswerKind.MATH, AnswerKind.TEXT]))
    question = make_question("q", kind, answer="A")
    first = tuple(make_call("q", expert="XYZ"[slot % 3], slot=slot) for slot in range(draw(st.integers(1, 4))))
    upper = [(node, 1) for node in ("big", "last", "final", "aggregate")] + [("merge", 3)]
    keys = [call.key for call in first] + [CallKey("q", node, slot) for node, n in upper for slot in range(n)]
    said = st.sampled_from(MATH if kind is AnswerKind.MATH else LETTERS)
    return Course(
        question,
        first,
        {key: draw(said) for key in keys},
        draw(st.permutations(keys)),
        {key for key in keys if draw(st.integers(0, 3)) == 0},
    )


def run(graph: CallGraph, course: Course, *, has_quorum: bool) -> tuple[FinalAnswer, dict[CallKey, Call], int]:
    """Go through a question, call by call; give its answer, the calls behind the first layer and how many were cut."""
    done: dict[CallKey, CallRecord] = {}
    calls = {call.key: call for call in course.first}
    num_cancelled = 0
    while True:
        step = walk(graph, course.question, course.first, done)
        if step.answer is not None:
            return step.answer, {key: call for key, call in calls.items() if call.after}, num_cancelled
        calls |= {call.key: call for call in step.submit}
        for key in step.cancel if has_quorum else ():
            assert key in calls
            if key not in course.late:
                num_cancelled += 1
                done[key] = ended(calls[key], "wasted")._replace(status=CallStatus.CANCELLED)
        waiting: Sequence[CallKey] = [key for key in course.order if key in calls and key not in done]
        if waiting:
            done[waiting[0]] = ended(calls[waiting[0]], course.says[waiting[0]])


@settings(max_examples=300, deadline=None)
@given(courses(), st.integers(0, 7), st.sampled_from(sorted(GRAPHS)))
def test_final_answers_and_what_an_aggregator_reads_are_those_without_a_quorum(gates, course, number, shape) -> None:
    graph = GRAPHS[shape](gates[number])
    alone, read, _ = run(graph, course, has_quorum=False)
    early, read_early, num_cancelled = run(graph, course, has_quorum=True)
    assert (early.answer, early.source, early.correct) == (alone.answer, alone.source, alone.correct)
    last = {key: call for key, call in read.items() if key in read_early}
    assert read_early == last
    assert len(read) - len(read_early) <= num_cancelled
    if not num_cancelled:
        assert early == alone


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


def test_a_ballot_with_no_vote_is_nothing_to_settle() -> None:
    assert Majority(tau=0.01).decided_early(partial("???")) is None

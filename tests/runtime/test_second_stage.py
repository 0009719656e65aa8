"""From the experts' answers to the aggregator's calls, and both stages on one clock."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.results import Action, CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, AnswerKind, CallKey, Question
from mosaic.pipelines.gates.gate import Decision, Majority, Never, Unanimous
from mosaic.runtime.second_stage import (
    Handover,
    answers_of,
    ballots,
    comparisons,
    hand_over,
    join_stages,
)
from tests.answered_questions import FAILED, make_aggregator, make_question, make_stage
from tests.run_records import make_failed, make_record, make_result, make_session, make_small_run


def hand(*answered: tuple[Question, list[str | None]], gate=None, compare=None, aggregator=None) -> Handover:
    workload, records = make_stage(*answered)
    return hand_over(workload, records, gate or Majority(), aggregator or make_aggregator(), compare or comparisons())


CHOICE, MATH, TEXT = AnswerKind.CHOICE, AnswerKind.MATH, AnswerKind.TEXT
MIXED = (
    (make_question("agreed"), ["A", "A", "A"]),
    (make_question("split"), ["A", "B", "C"]),
    (make_question("two"), ["D", "A", "D"]),
    (make_question("lost"), ["B", FAILED, "B"]),
    (make_question("dumb"), ["C", None, None]),
    (make_question("half", MATH), ["0.5", "1/2", "3"]),
    (make_question("words", TEXT), ["Emma", "Emma", "Emma"]),
)


# The aggregator


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, r"aggregator\.name must be a non-empty string, got ''"),
        ({"tp_degrees": 4}, r"aggregator\.tp_degrees must be a list of whole numbers, got 4"),
        ({"tp_degrees": "41"}, r"aggregator\.tp_degrees must be a list of whole numbers, got '41'"),
        ({"tp_degrees": ()}, r"aggregator\.tp_degrees must be at least one degree, got \(\)"),
        ({"tp_degrees": (4, 0)}, r"aggregator\.tp_degrees must be at least 1, got 0"),
        ({"tp_degrees": (1.5,)}, r"aggregator\.tp_degrees must be a whole number, got 1\.5"),
        ({"tp_degrees": (4, 1, 4)}, r"aggregator\.tp_degrees must be unique, got 4 twice"),
        ({"min_output_tokens": 0}, r"aggregator\.min_output_tokens must be at least 1, got 0"),
    ],
)
def test_a_bad_aggregator_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_aggregator(**change)


def test_alone_it_is_copied_to_every_gpu_and_over_several_it_is_one_session() -> None:
    aggregator = make_aggregator(**{"tp_degrees": [4, 1]})
    assert aggregator.tp_degrees == (4, 1)
    alone, gang = aggregator.shaped(1), aggregator.shaped(4)
    # The pool's cap is that of the expert in its own role.
    assert (alone.tp_degree, alone.max_replicas) == (1, None)
    assert (gang.tp_degree, gang.max_replicas) == (4, 1)
    assert replace(gang, tp_degree=1, max_replicas=3) == aggregator.expert


# The gate's decisions and the aggregator's calls


def test_a_handover_by_hand() -> None:
    handover = hand(*MIXED)
    decisions = {ballot.question.id: d for ballot, d in zip(handover.ballots, handover.decisions, strict=True)}
    third = pytest.approx(1 / 3)
    two_thirds = pytest.approx(2 / 3)
    assert decisions == {
        "agreed": Decision(True, "A", 1.0),
        "split": Decision(False, "A", third),
        "two": Decision(True, "D", two_thirds),
        "lost": Decision(True, "B", two_thirds),
        "dumb": Decision(False, "C", third),
        "half": Decision(True, "0.5", two_thirds),
        "words": Decision(False, None, None),
    }
    assert (handover.skip_frac, handover.num_too_long) == (4 / 7, 0)
    assert [call.key for call in handover.calls] == [CallKey(name, AGGREGATE, 0) for name in ("split", "dumb", "words")]
    assert {call.expert for call in handover.calls} == {"W"}


@pytest.mark.parametrize(
    ("gate", "skipped"),
    [(Never(), 0), (Unanimous(), 1), (Majority(), 4), (Majority(tau=0.3), 6)],
)
def test_all_but_the_skipped_questions_have_a_call(gate, skipped: int) -> None:
    handover = hand(*MIXED, gate=gate)
    assert len(handover.calls) == 7 - skipped
    assert handover.skip_frac == skipped / 7


def test_a_call_comes_after_the_finished_calls_of_its_question() -> None:
    handover = hand(*MIXED, gate=Never())
    after = {call.key.question: [key.slot for key in call.after] for call in handover.calls}
    assert after == {
        "agreed": [0, 1, 2], "split": [0, 1, 2], "two": [0, 1, 2], "lost": [0, 2], "dumb": [0, 1, 2],
        "half": [0, 1, 2], "words": [0, 1, 2],
    }  # fmt: skip
    assert all(key.question == call.key.question for call in handover.calls for key in call.after)


def test_a_failed_call_has_no_answer_whatever_its_record_says() -> None:
    workload, records = make_stage((make_question("q"), ["A", "A", "B"]))
    records[1] = records[1]._replace(status=CallStatus.CANCELLED)
    (ballot,) = ballots(workload, records, comparisons())
    assert [vote.answer for vote in ballot.votes] == ["A", None, "B"]
    assert [vote.expert for vote in ballot.votes] == ["A", "B", "C"]


def test_a_call_without_a_record_has_no_answer() -> None:
    workload, records = make_stage((make_question("q"), ["A", "A", "B"]))
    (ballot,) = ballots(workload, records[1:], comparisons())
    assert [vote.answer for vote in ballot.votes] == [None, "A", "B"]


def test_where_all_calls_failed_the_aggregator_answers_alone() -> None:
    handover = hand((make_question("q"), [FAILED, FAILED]))
    (call,) = handover.calls
    assert call.after == ()
    assert handover.decisions == (Decision(False, None, 0.0),)


def test_questions_that_do_not_fit_the_aggregators_context_keep_the_gates_answer() -> None:
    # 8192 tokens of context, of which 1000 are for the answer.
    fits, long = make_question("fits", prompt_tokens=6000), make_question("long", prompt_tokens=7100)
    handover = hand((fits, ["A", "B", "B"]), (long, ["A", "B", "B"]), gate=Never())
    assert [call.key.question for call in handover.calls] == ["fits"]
    assert handover.decisions[1] == Decision(False, "B", pytest.approx(2 / 3))
    assert handover.skip_frac == 0.0, "it was not the gate that left it out"
    assert handover.num_too_long == 1
    # More room for the answer leaves less for the question.
    roomy = make_aggregator(min_output_tokens=600)
    assert len(hand((long, ["A", "B", "B"]), gate=Never(), aggregator=roomy).calls) == 1


def test_free_text_goes_to_the_aggregator_unless_a_comparison_is_plugged_in() -> None:
    words = (make_question("words", TEXT), ["Emma", "emma", "Jane"])
    handover = hand(words, gate=Majority(tau=0.1))
    assert (len(handover.calls), handover.skip_frac) == (1, 0.0)
    plugged = hand(words, compare=comparisons(lambda a, b: a.casefold() == b.casefold()))
    assert plugged.calls == ()
    assert plugged.decisions == (Decision(True, "Emma", pytest.approx(2 / 3)),)


def test_a_comparison_for_free_text_leaves_the_other_kinds_as_they_are() -> None:
    def same(one: str, other: str) -> bool:
        return True

    own, plain = comparisons(same), comparisons()
    assert (own[TEXT], plain[TEXT]) == (same, None)
    for kind in (CHOICE, MATH):
        assert own[kind] is plain[kind] is not None


def test_votes_are_in_the_order_of_the_slots_so_ties_go_to_the_lowest() -> None:
    workload, records = make_stage((make_question("q"), ["A", "B"]))
    backwards = replace(workload, calls=workload.calls[::-1])
    (ballot,) = ballots(backwards, records, comparisons())
    assert [vote.answer for vote in ballot.votes] == ["A", "B"]


def test_questions_without_calls_have_no_ballot() -> None:
    workload, records = make_stage((make_question("q"), ["A"]))
    more = replace(workload, questions=(make_question("unasked"), *workload.questions))
    assert [ballot.question.id for ballot in ballots(more, records, comparisons())] == ["q"]


@given(
    answers=st.lists(
        st.lists(st.sampled_from([*"ABCD", None, FAILED]), min_size=1, max_size=5), min_size=1, max_size=8
    ),
    tau=st.floats(0.01, 1.0),
    order=st.randoms(),
)
def test_every_question_is_skipped_or_aggregated_whatever_the_order_of_the_records(answers, tau, order) -> None:
    workload, records = make_stage(*((make_question(f"q{i}"), said) for i, said in enumerate(answers)))
    order.shuffle(records)
    handover = hand_over(workload, records, Majority(tau=tau), make_aggregator(), comparisons())
    skipped = {b.question.id for b, d in zip(handover.ballots, handover.decisions, strict=True) if d.skip}
    called = [call.key.question for call in handover.calls]
    assert len(called) == len(set(called))
    assert skipped.isdisjoint(called)
    assert handover.num_too_long == 0
    assert skipped | set(called) == {question.id for question in workload.questions}
    finished = {record.key for record in records if record.status is CallStatus.FINISHED}
    for call in handover.calls:
        assert set(call.after) == {key for key in finished if key.question == call.key.question}


# Both stages on one clock


def make_second() -> RunResult:
    """The aggregator loads from 0 to 10 and serves to 30, with one call that failed before it began."""
    key = CallKey("q1", AGGREGATE, 0)
    return make_result(
        make_session(0, expert="W", workers=(0, 1), end_ts=30.0, node=AGGREGATE),
        calls=(
            make_record("q1", expert="W", key=key, queued_ts=10.0, admitted_ts=11.0, first_token_ts=12.0,
                        finished_ts=30.0, answer="A"),
            make_failed("q2", expert="W", key=key._replace(question="q2"), queued_ts=10.0),
        ),
        actions=(Action(20.0, "cancel", key),),
        lower_bound_s=5.0,
    )  # fmt: skip


def test_the_second_stage_begins_where_the_first_ends() -> None:
    first = make_small_run()
    joined = join_stages(first, make_second())
    assert joined.sessions[:3] == first.sessions
    last = joined.sessions[3]
    assert (last.session, last.load_start_ts, last.load_s, last.start_ts, last.end_ts) == (3, 80.0, 10.0, 90.0, 110.0)
    assert joined.calls[:3] == first.calls
    merged, failed = joined.calls[3:]
    assert (merged.session, merged.queued_ts, merged.admitted_ts, merged.first_token_ts, merged.finished_ts) == (
        3, 90.0, 91.0, 92.0, 110.0,
    )  # fmt: skip
    assert (failed.queued_ts, failed.admitted_ts, failed.first_token_ts, failed.finished_ts) == (90.0, None, None, None)
    assert joined.actions == (Action(100.0, "cancel", CallKey("q1", AGGREGATE, 0)),)
    assert (joined.num_workers, joined.lower_bound_s) == (2, 60.0), "the bound is the expert stage's"


def test_an_empty_second_stage_changes_nothing() -> None:
    first = make_small_run()
    assert join_stages(first, make_result()) == first


def test_after_an_empty_first_stage_the_second_begins_at_zero() -> None:
    second = make_second()
    joined = join_stages(make_result(), second)
    assert (joined.sessions, joined.calls, joined.actions) == (second.sessions, second.calls, second.actions)


def test_sessions_that_never_opened_keep_their_numbers() -> None:
    # Its only call was cancelled before it could load: a record without a session.
    first = make_result(make_session(0), calls=(make_record("q0", session=4, status=CallStatus.CANCELLED),))
    assert [session.session for session in join_stages(first, make_second()).sessions] == [0, 5]


@st.composite
def runs(draw: st.DrawFn) -> RunResult:
    sessions, calls = [], []
    for number in draw(st.lists(st.integers(0, 20), unique=True, max_size=5)):
        start, load_s, serve_s = (draw(st.floats(0, 1000)) for _ in range(3))
        made = make_session(number, load=(start, start + load_s), end_ts=start + load_s + serve_s)
        sessions.append(made)
        calls.append(make_record(f"q{number}", session=number, finished_ts=made.end_ts))
    return make_result(*sessions, calls=tuple(calls))


@given(first=runs(), second=runs())
def test_no_session_of_the_second_stage_overlaps_the_first(first: RunResult, second: RunResult) -> None:
    joined = join_stages(first, second)
    later = joined.sessions[len(first.sessions) :]
    ends = [session.end_ts for session in first.sessions]
    assert joined.sessions[: len(first.sessions)] == first.sessions
    assert len({session.session for session in joined.sessions}) == len(first.sessions) + len(second.sessions)
    for before, after in zip(second.sessions, later, strict=True):
        assert all(after.load_start_ts >= end for end in ends)
        assert after.end_ts - after.load_start_ts == pytest.approx(before.end_ts - before.load_start_ts, abs=1e-6)
        assert after.session > max((session.session for session in first.sessions), default=-1)
        assert (after.load_s, after.num_calls) == (before.load_s, before.num_calls)
    by_number = {session.session: session for session in later}
    for record in joined.calls[len(first.calls) :]:
        assert by_number[record.session].end_ts == record.finished_ts


def test_answers_are_those_of_the_calls_that_finished() -> None:
    second = make_second()
    silent = make_record("q3", key=CallKey("q3", AGGREGATE, 0), answer=None)
    assert answers_of(replace(second, calls=(*second.calls, silent))) == {"q1": "A", "q3": None}

"""Quorum, budgets and hedges on the simulator: what is cancelled or cut, what that costs, and what comes of it."""

from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mosaic
from mosaic.core.commands import Cancel, Cut
from mosaic.core.events import Finished, Lost, Started
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, Inputs, RunResult
from mosaic.core.view import View
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey
from mosaic.pipelines.budgets import Budgets
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.loss_table import BudgetSetting, loss_table
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.ballot import plurality
from mosaic.pipelines.rules.rule import Majority
from mosaic.pipelines.walk import walk
from mosaic.runtime.loop import drive
from mosaic.runtime.stopping import Cuts, Hedge, Quorum
from tests import budget_courses
from tests.answered_questions import make_moa, make_tree
from tests.factories import make_cluster
from tests.run_records import assert_no_worker_overlaps, make_record
from tests.runtime.jobs import make_job
from tests.runtime.planners import batch_of, make_planner, run_layers
from tests.runtime.replay import Replay
from tests.sim.cluster_runs import make_backend


class Course(NamedTuple):
    graph: CallGraph
    num_questions: int
    says: dict[CallKey, str | None]
    lengths: dict[CallKey, int]
    num_workers: int
    has_barrier: bool

    def outcome(self, call: Call, inputs: Inputs) -> Outcome:
        return Outcome(self.lengths[call.key], self.says[call.key])


@st.composite
def courses(draw) -> Course:
    graph = draw(st.sampled_from([make_moa(Majority(tau=0.5)), make_moa(Majority()), make_tree(Majority(tau=0.5))]))
    num_questions = draw(st.integers(1, 6))
    keys = [
        CallKey(f"q{i}", node, slot)
        for i in range(num_questions)
        for node, n in ((PROPOSE, 4), ("merge", 2), ("final", 1), (AGGREGATE, 1))
        for slot in range(n)
    ]
    return Course(
        graph,
        num_questions,
        {key: draw(st.sampled_from(["A", "A", "B", None])) for key in keys},
        {key: draw(st.integers(1, 200)) for key in keys},
        draw(st.integers(1, 3)),
        draw(st.booleans()),
    )


def run(course: Course, *, has_quorum: bool) -> tuple[RunResult, Questions]:
    batch, graph = batch_of(course.num_questions), course.graph
    expected = graph.expected_calls(batch, {}, dict.fromkeys(("merge", "final", AGGREGATE), 300))
    return run_layers(
        graph, batch, course.outcome, num_workers=course.num_workers,
        expected=None if course.has_barrier else expected,
        stops=lambda questions: [Quorum(questions)] if has_quorum else [],
    )  # fmt: skip


def backend_of(course: Course, planner=None):
    planner = planner or make_planner(course.graph, num_workers=course.num_workers)
    return make_backend(course.outcome, experts=planner.experts, cluster=make_cluster(course.num_workers))


def assert_same(alone: RunResult, other: RunResult) -> None:
    """Every call ends once, those that finished say what they said, and no worker overlaps."""
    keys = [record.key for record in other.calls]
    assert len(keys) == len(set(keys))
    assert set(keys) == {record.key for record in alone.calls}
    said = {record.key: (record.answer, record.prompt_tokens, record.output_tokens) for record in alone.calls}
    for record in other.calls:
        assert record.status in (CallStatus.FINISHED, CallStatus.CANCELLED)
        if record.status is CallStatus.FINISHED:
            assert (record.answer, record.prompt_tokens, record.output_tokens) == said[record.key]
    assert_no_worker_overlaps(other)


@settings(max_examples=75, deadline=None)
@given(courses())
def test_answers_are_the_same_and_no_call_is_lost_or_answered_twice(course: Course) -> None:
    alone, questions = run(course, has_quorum=False)
    early, settled = run(course, has_quorum=True)
    for question in questions:
        one, other = (walk(of.graph, *of.of(question.id)).end().answer for of in (questions, settled))
        assert (one.answer, one.source) == (other.answer, other.source)
    assert_same(alone, early)
    finished = {record.key: record for record in early.calls if record.status is CallStatus.FINISHED}
    cancels = {action.command.key: action.ts for action in early.actions if isinstance(action.command, Cancel)}
    assert cancels.keys() >= {record.key for record in early.calls} - finished.keys()
    late = {key: ts for key, ts in cancels.items() if key in finished}
    assert late == {key: finished[key].finished_ts for key in late}, "only calls that end at that very instant"
    again = drive(backend_of(course), [Replay(early.actions)], num_workers=course.num_workers)
    assert again == early


def test_the_third_call_is_cancelled_while_it_runs_and_counts_as_cancelled() -> None:
    keys = {question: [CallKey(question, PROPOSE, slot) for slot in range(4)] for question in ("q0", "q1")}
    says = dict.fromkeys(keys["q0"], "A") | dict(zip(keys["q1"], "ABCD", strict=True))
    says |= {CallKey(question, AGGREGATE, 0): "B" for question in keys}
    lengths = {key: 1000 if key.slot == 3 and key.question == "q0" else 20 for key in says}
    course = Course(make_moa(Majority(tau=0.75)), 2, says, lengths, 2, True)
    early, questions = run(course, has_quorum=True)
    alone, _ = run(course, has_quorum=False)
    (record,) = [record for record in early.calls if record.status is CallStatus.CANCELLED]
    last_ts = max(r.finished_ts for r in early.calls if r.key in keys["q0"][:3])
    assert (record.key, record.finished_ts) == (keys["q0"][3], last_ts)
    assert 0 < record.output_tokens < 1000
    assert record.wasted_tokens >= record.output_tokens, "its prompt was read in vain too"
    assert [call.wasted_tokens for call in early.calls if call.status is CallStatus.CANCELLED] == [record.wasted_tokens]
    assert max(s.end_ts for s in early.sessions) < max(s.end_ts for s in alone.sessions)
    assert walk(questions.graph, *questions.of("q0")).end().answer.answer == "A"


def test_it_looks_at_calls_that_end_and_cancels_anew_what_a_lost_worker_gave_back() -> None:
    batch = batch_of(1, 3)
    questions, view = Questions(batch, make_moa()), View(2)
    calls = {call.key: call for call in questions.first_calls}
    one, two, three = calls
    view.calls, view.running = dict(calls), dict(calls)
    quorum = Quorum(questions)
    assert quorum.reacts
    assert list(quorum.on(Lost(0.5, 0, "unplugged"), view)) == []
    given = []
    for key in (one, two):
        event = Finished(1.0, make_record("q0", key=key, answer="A"))
        view.observe(event)
        given += quorum.on(event, view)
    assert given == [Cancel(three)]
    assert list(quorum.on(Lost(2.0, 1, "unplugged"), view)) == [Cancel(three)]
    view.observe(Finished(3.0, make_record("q0", key=three, answer="B")))
    assert list(quorum.on(Lost(4.0, 1, "unplugged"), view)) == []


# Budgets and hedges


@settings(max_examples=100, deadline=None)
@given(budget_courses.courses())
def test_no_schedule_loses_more_on_a_question_than_the_calibration_counts(course: budget_courses.Course) -> None:
    result, questions = course.run()
    known = course.questions()
    worst = loss_table(known, plurality).losses(course.setting)
    for question, most in zip(known, worst, strict=True):
        answer = walk(questions.graph, *questions.of(question.id)).end().answer
        assert int(question.aggregator_correct) - int(bool(answer.correct)) <= most
    keys = [record.key for record in result.calls]
    assert len(keys) == len(set(keys))
    assert {key for key in keys if key.node == PROPOSE} == course.lengths.keys()
    limits = dict(zip((PROPOSE, AGGREGATE), course.setting[1:3], strict=True))
    for record in result.calls:
        if record.status is CallStatus.FINISHED and record.key.node == PROPOSE:
            assert (record.output_tokens, record.answer) == (course.lengths[record.key], course.votes[record.key])
            assert record.output_tokens <= (limits[PROPOSE] or 200)
        if record.status is CallStatus.CUT:
            assert record.answer is None
            assert record.output_tokens <= (limits[record.key.node] or 200)


@settings(max_examples=50, deadline=None)
@given(budget_courses.courses())
def test_without_a_hedge_what_comes_of_a_question_is_exactly_what_the_calibration_counts(
    course: budget_courses.Course,
) -> None:
    course = course._replace(setting=course.setting._replace(hedge_tokens=None))
    _, questions = course.run()
    known = course.questions()
    losses = loss_table(known, plurality).losses(course.setting)
    for question, loss in zip(known, losses, strict=True):
        done = questions.of(question.id)[2]
        if sum(done[key].status is CallStatus.CUT for key in done if key.node == PROPOSE) == len(budget_courses.SLOTS):
            continue  # it counts as wrong
        correct = walk(questions.graph, *questions.of(question.id)).end().answer.correct
        assert int(question.aggregator_correct) - int(bool(correct)) == loss


def one_question(
    votes: str, lengths: tuple[int, ...], setting: BudgetSetting, **changes: object
) -> budget_courses.Course:
    keys = [CallKey("q0", PROPOSE, slot) for slot in budget_courses.SLOTS]
    subsets = [frozenset(slot for slot in budget_courses.SLOTS if mask >> slot & 1) for mask in range(8)]
    read = {("q0", slots): (100, "ABCD"[len(slots)]) for slots in subsets}
    votes_by_key = dict(zip(keys, votes, strict=True))
    return budget_courses.Course(setting, votes_by_key, read, dict(zip(keys, lengths, strict=True)), 1, **changes)


def test_the_last_call_is_cut_at_its_hedge_and_the_aggregator_reads_the_others() -> None:
    course = one_question("ABA", (10, 10, 190), BudgetSetting(2 / 3 - 1e-3, hedge_tokens=40), num_workers=3)
    result, questions = course.run()
    late = next(record for record in result.calls if record.key == CallKey("q0", PROPOSE, 2))
    assert (late.status, late.output_tokens) == (CallStatus.CUT, 40)
    end = walk(questions.graph, *questions.of("q0")).end()
    assert (end.answer.answer, end.answer.source) == ("C", AnswerSource.AGGREGATOR)
    assert end.answer.votes == ("A", "B", None)


def test_a_call_is_waited_for_where_the_others_agree() -> None:
    course = one_question("AAB", (10, 10, 190), BudgetSetting(2 / 3 - 1e-3, hedge_tokens=40), num_workers=3)
    result, _ = course.run()
    assert {record.status for record in result.calls} == {CallStatus.FINISHED}
    assert len(result.calls) == 3


def test_an_aggregation_that_is_cut_leaves_the_vote() -> None:
    course = one_question("ABA", (10, 10, 10), BudgetSetting(1.0, aggregate_tokens=50))
    result, questions = course.run()
    assert [record.status for record in result.calls if record.key.node == AGGREGATE] == [CallStatus.CUT]
    answer = walk(questions.graph, *questions.of("q0")).end().answer
    assert (answer.answer, answer.source) == ("A", AnswerSource.MAJORITY)


@pytest.mark.parametrize("threshold", [None, 2 / 3 - 1e-3])
def test_what_budgets_leave_alone_stands_and_is_not_aggregated(threshold: float | None) -> None:
    course = one_question("ABA", (190, 10, 190), BudgetSetting(threshold, propose_tokens=50))
    result, questions = course.run()
    assert {record.key.node for record in result.calls} == {PROPOSE}
    answer = walk(questions.graph, *questions.of("q0")).end().answer
    assert (answer.answer, answer.source, answer.votes) == ("B", AnswerSource.MAJORITY, (None, "B", None))


def test_calls_that_a_lost_worker_gave_back_are_cut_again() -> None:
    questions, view = Questions(batch_of(1, 3), make_moa()), View(2)
    calls = {call.key: call for call in questions.first_calls}
    one, two, three = calls
    view.calls, view.running = dict(calls), dict(calls)
    cuts = Cuts(Budgets(cut_tokens={PROPOSE: {"A": 9, "C": 7}}))
    assert list(cuts.on(Started(0.0), view)) == [Cut(one, 9), Cut(three, 7)]
    assert list(cuts.on(Finished(0.5, make_record(key=two)), view)) == []
    del view.running[one]
    assert list(cuts.on(Lost(1.0, 1, "unplugged"), view)) == [Cut(three, 7)]
    graph = replace(make_moa(), budgets=Budgets(hedge_tokens={"C": 30}))
    hedge, questions = Hedge(Questions(batch_of(1, 3), graph)), Questions(batch_of(1, 3), graph)
    view = View(2, calls=dict(calls), running=dict(calls))
    given = []
    for key, answer in ((one, "A"), (two, "B")):
        event = Finished(1.0, make_record("q0", key=key, expert="AB"[key.slot], answer=answer, output_tokens=500))
        view.observe(event)
        given += hedge.on(event, view)
    assert given == [Cut(three, 30)]
    assert list(hedge.on(Lost(2.0, 1, "unplugged"), view)) == [Cut(three, 30)]


def test_a_job_with_budgets_is_measured_and_priced_within_them() -> None:
    whole = make_job()
    budgets = Budgets(cut_tokens={PROPOSE: dict.fromkeys("ABC", 20)})
    cut = replace(whole, graph=replace(whole.graph, budgets=budgets))
    long, short = mosaic.run(whole), mosaic.run(cut)
    predicted = [outcome.planned[0].plan.predicted_makespan_s for outcome in (long, short)]
    assert predicted[1] < predicted[0]
    assert {record.status for record in short.result.calls if record.key.node == PROPOSE} == {CallStatus.CUT}
    assert short.skip_frac == 0
    assert short.always == long.always

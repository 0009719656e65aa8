"""Budgets on the simulator: what is cut, and that what comes of it is what a calibration counts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

import mosaic
from mosaic.core.commands import Cut
from mosaic.core.events import Finished, Lost, Started
from mosaic.core.results import CallStatus
from mosaic.core.view import View
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey
from mosaic.pipelines.budgets import Budgets
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.loss_table import BudgetSetting, loss_table
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.ballot import plurality
from mosaic.pipelines.walk import walk
from mosaic.runtime.stopping import Cuts, Hedge
from tests.answered_questions import make_moa
from tests.budget_courses import SLOTS, Course, courses
from tests.run_records import make_record
from tests.runtime.jobs import make_job
from tests.runtime.planners import batch_of


@settings(max_examples=100, deadline=None)
@given(courses())
def test_no_schedule_loses_more_on_a_question_than_the_calibration_counts(course: Course) -> None:
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
@given(courses())
def test_without_a_hedge_what_comes_of_a_question_is_exactly_what_the_calibration_counts(course: Course) -> None:
    course = course._replace(setting=course.setting._replace(hedge_tokens=None))
    _, questions = course.run()
    known = course.questions()
    losses = loss_table(known, plurality).losses(course.setting)
    for question, loss in zip(known, losses, strict=True):
        done = questions.of(question.id)[2]
        if sum(done[key].status is CallStatus.CUT for key in done if key.node == PROPOSE) == len(SLOTS):
            continue  # it counts as wrong
        correct = walk(questions.graph, *questions.of(question.id)).end().answer.correct
        assert int(question.aggregator_correct) - int(bool(correct)) == loss


def one_question(votes: str, lengths: tuple[int, ...], setting: BudgetSetting, **changes: object) -> Course:
    keys = [CallKey("q0", PROPOSE, slot) for slot in SLOTS]
    subsets = [frozenset(slot for slot in SLOTS if mask >> slot & 1) for mask in range(8)]
    read = {("q0", slots): (100, "ABCD"[len(slots)]) for slots in subsets}
    votes_by_key = dict(zip(keys, votes, strict=True))
    return Course(setting, votes_by_key, read, dict(zip(keys, lengths, strict=True)), 1, **changes)


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

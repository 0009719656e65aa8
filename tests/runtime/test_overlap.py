"""Overlapped aggregation and moves on the simulator: the same answers, every call once, and what it earns."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mosaic
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.runtime.keeping import Keeping
from mosaic.runtime.layers import Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.overlap import Overlap
from mosaic.runtime.prospects import Measured, Prospects
from mosaic.runtime.quorum import Quorum
from mosaic.runtime.replay import Replay
from tests.answered_questions import make_moa
from tests.runtime.jobs import Told, make_job
from tests.runtime.planners import make_planner
from tests.runtime.test_layers import batch_of
from tests.runtime.test_quorum_controller import Course, backend_of, courses, run

STATUSES = (CallStatus.FINISHED, CallStatus.CANCELLED)


def run_overlapped(course: Course, *, has_quorum: bool) -> tuple[RunResult, Questions]:
    batch, graph = batch_of(course.num_questions), course.graph
    planner, questions = make_planner(graph, num_workers=course.num_workers), Questions(batch, graph)
    prospects = Prospects(Measured(planner.profiles, planner.cluster))
    first = planner.plan(questions.first_calls).plan
    controllers = [prospects, Overlap(questions, planner, prospects, first)]
    controllers += [*([Quorum(questions)] if has_quorum else ()), Keeping()]
    return drive(backend_of(course, planner), controllers, num_workers=course.num_workers), questions


def answers_of(questions: Questions) -> list[tuple]:
    ends = [questions.graph.end(*questions.of(question.id)).answer for question in questions]
    return [(end.question, end.answer, end.source, end.correct) for end in ends]


def assert_same(alone: RunResult, other: RunResult) -> None:
    """Every call ends once, those that finished say what they said, and no worker overlaps."""
    keys = [record.key for record in other.calls]
    assert len(keys) == len(set(keys))
    assert set(keys) == {record.key for record in alone.calls}
    said = {record.key: (record.answer, record.prompt_tokens, record.output_tokens) for record in alone.calls}
    for record in other.calls:
        assert record.status in STATUSES
        if record.status is CallStatus.FINISHED:
            assert (record.answer, record.prompt_tokens, record.output_tokens) == said[record.key]
    for worker in range(other.num_workers):
        mine = [session for session in other.sessions if worker in session.workers]
        assert all(a.end_ts <= b.load_start_ts for a, b in pairwise(sorted(mine, key=lambda s: s.load_start_ts)))


@settings(max_examples=80, deadline=None)
@given(courses(), st.booleans())
def test_answers_are_those_behind_a_barrier_and_no_call_is_lost_or_answered_twice(course, has_quorum) -> None:
    alone, questions = run(course, has_quorum=False)
    result, overlapped = run_overlapped(course, has_quorum=has_quorum)
    assert answers_of(overlapped) == answers_of(questions)
    assert_same(alone, result)
    assert drive(backend_of(course), [Replay(result.actions)], num_workers=course.num_workers) == result


def test_an_aggregation_joins_its_experts_session_while_others_still_answer() -> None:
    """W is expert and aggregator: nothing is loaded twice, and q0 is aggregated before q1 has all its answers."""
    world = Told(votes={"agreed": "AAA", "split": "ABC", "dumb": "D--"})
    job = make_job(world=world)
    graph = replace(job.graph, nodes=(job.graph.nodes[0], replace(job.graph.nodes[1], experts=(job.experts[2],))))
    job = replace(job, graph=graph)
    plain, joined = mosaic.run(job), mosaic.run(replace(job, has_overlap=True))
    assert [answer[:3] for answer in joined.answers] == [answer[:3] for answer in plain.answers]
    loads = [len([s for s in outcome.result.sessions if s.load_s > 0]) for outcome in (plain, joined)]
    assert loads == [4, 3]
    assert max(s.end_ts for s in joined.result.sessions) < max(s.end_ts for s in plain.result.sessions)
    aggregated = [record for record in joined.result.calls if record.key.node == AGGREGATE]
    homes = {record.session for record in joined.result.calls if record.key.node == PROPOSE and record.expert == "C"}
    assert {record.session for record in aggregated} <= homes
    assert joined.always == plain.always


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_a_job_answers_alike_with_each_combination_of_reactions(tau: float) -> None:
    job = make_job(make_moa(replace(make_moa().gate, tau=tau)))
    plain = mosaic.run(job)
    for has_quorum in (False, True):
        outcome = mosaic.run(replace(job, has_quorum=has_quorum, has_overlap=True))
        assert [answer[:3] for answer in outcome.answers] == [answer[:3] for answer in plain.answers]

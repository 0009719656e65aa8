"""Overlapped aggregation and moves on the simulator: the same answers, every call once, and what it earns."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mosaic
from mosaic.core.events import Started
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.rule import Majority, Never, Rule
from mosaic.pipelines.walk import walk
from mosaic.runtime.job import Reaction
from mosaic.runtime.loop import drive
from mosaic.runtime.moves import Moves
from mosaic.runtime.no_barrier import Keeping, Overlap
from mosaic.runtime.prospects import Prospects
from mosaic.runtime.static_plan import plan_commands
from mosaic.runtime.stopping import Quorum
from tests.answered_questions import make_moa
from tests.factories import make_call, make_cluster, make_entry, make_expert, make_plan, make_profile, make_session
from tests.runtime.jobs import Told, make_job
from tests.runtime.planners import make_planner
from tests.runtime.replay import Replay
from tests.runtime.test_layers import batch_of
from tests.runtime.test_quorum_controller import Course, assert_same, backend_of, courses, run
from tests.sim.cluster_runs import make_backend


def run_overlapped(course: Course, *, has_quorum: bool, has_moves: bool = False) -> tuple[RunResult, Questions]:
    batch, graph = batch_of(course.num_questions), course.graph
    planner, questions = make_planner(graph, num_workers=course.num_workers), Questions(batch, graph)
    if has_moves:  # and every load pays
        names = [expert.name for expert in planner.experts]
        profile = make_profile(*(make_entry(name, load_s=0.0) for name in names))
        planner = replace(planner, profiles={node.name: profile for node in graph.nodes})
    prospects = Prospects(planner.profiles, planner.cluster)
    controllers = [prospects, Overlap(questions=questions, planner=planner, prospects=prospects)]
    controllers += [*([Quorum(questions)] if has_quorum else ()), *([Moves(prospects)] if has_moves else ()), Keeping()]
    tick_s = 0.7 if has_moves else None
    return drive(backend_of(course, planner), controllers, num_workers=course.num_workers, tick_s=tick_s), questions


def answers_of(questions: Questions) -> list[tuple]:
    ends = [walk(questions.graph, *questions.of(question.id)).end().answer for question in questions]
    return [(end.question, end.answer, end.source, end.correct) for end in ends]


@settings(max_examples=80, deadline=None)
@given(courses(), st.booleans(), st.booleans())
def test_answers_are_those_behind_a_barrier_and_no_call_is_lost_or_answered_twice(
    course, has_quorum, has_moves
) -> None:
    alone, questions = run(course, has_quorum=False)
    result, overlapped = run_overlapped(course, has_quorum=has_quorum, has_moves=has_moves)
    assert answers_of(overlapped) == answers_of(questions)
    assert_same(alone, result)
    if not has_moves:  # ticks come at no event that the log could name
        assert drive(backend_of(course), [Replay(result.actions)], num_workers=course.num_workers) == result


def test_an_aggregation_joins_its_experts_session_while_others_still_answer() -> None:
    """W is expert and aggregator: nothing is loaded twice, and q0 is aggregated before q1 has all its answers."""
    world = Told(votes={"agreed": "AAA", "split": "ABC", "dumb": "D--"})
    job = make_job(world=world)
    graph = replace(job.graph, nodes=(job.graph.nodes[0], replace(job.graph.nodes[1], experts=(job.experts[2],))))
    job = replace(job, graph=graph)
    plain, joined = mosaic.run(job), mosaic.run(replace(job, reactions={Reaction.OVERLAP}))
    assert [answer[:3] for answer in joined.answers] == [answer[:3] for answer in plain.answers]
    loads = [len([s for s in outcome.result.sessions if s.load_s > 0]) for outcome in (plain, joined)]
    assert loads == [4, 3]
    assert max(s.end_ts for s in joined.result.sessions) < max(s.end_ts for s in plain.result.sessions)
    aggregated = [record for record in joined.result.calls if record.key.node == AGGREGATE]
    homes = {record.session for record in joined.result.calls if record.key.node == PROPOSE and record.expert == "C"}
    assert {record.session for record in aggregated} <= homes
    assert joined.always == plain.always


COMBINATIONS = [
    set(some) for n in range(4) for some in combinations((Reaction.QUORUM, Reaction.OVERLAP, Reaction.MOVES), n)
]


@pytest.mark.parametrize("rule", [Majority(tau=0.5), Majority(tau=1.0), Never()])
def test_a_job_answers_alike_with_each_combination_of_reactions(rule: Rule) -> None:
    job = make_job(make_moa(rule))
    plain = mosaic.run(job)
    for reactions in (*COMBINATIONS, {Reaction.QUORUM, Reaction.NO_BARRIER}):
        outcome = mosaic.run(replace(job, reactions=reactions))
        assert [answer[:3] for answer in outcome.answers] == [answer[:3] for answer in plain.answers]
        assert outcome.always.aggregator_s == pytest.approx(plain.always.aggregator_s)
        assert outcome.always.accuracy_frac == plain.always.accuracy_frac
        assert outcome.skip_frac == plain.skip_frac
        statuses = {call.status for call in outcome.result.calls}
        assert isinstance(rule, Majority) or CallStatus.CANCELLED not in statuses


def test_a_free_worker_takes_calls_over_and_the_run_ends_earlier() -> None:
    """All calls are planned on one of two workers; the other loads their expert too, and gets half of what is left."""
    calls = [make_call(f"q{i}", expert="A") for i in range(40)]
    plan = make_plan(make_session(0, calls), num_workers=2)
    known = replace(make_entry("A", load_s=40.0), output_tokens=(4000,) * 3)
    ends = []
    for moves in (False, True):
        backend = make_backend(
            lambda call, inputs: Outcome(4000, "A"), experts=[make_expert("A")], cluster=make_cluster(2)
        )
        prospects = Prospects({PROPOSE: make_profile(known)}, make_cluster(2))
        steering = [prospects, *([Moves(prospects)] if moves else ()), Keeping()]
        result = drive(backend, [Unclosed(plan, calls), *steering], num_workers=2, tick_s=1.0)
        assert sorted(record.key for record in result.calls) == sorted(call.key for call in calls)
        assert {record.workers for record in result.calls} == ({(0,), (1,)} if moves else {(0,)})
        moved = [record for record in result.calls if record.attempt]
        assert all(record.wasted_tokens > record.prompt_tokens for record in moved), "the other engine read it again"
        assert bool(moved) == moves
        ends.append(max(record.finished_ts for record in result.calls))
    assert ends[1] < 0.9 * ends[0]


class Unclosed:
    """Opens a plan's sessions and submits its calls; others close them."""

    reacts = True

    def __init__(self, plan, calls) -> None:
        self.plan, self.calls = plan, {call.key: call for call in calls}

    def on(self, event, view):
        return plan_commands(self.plan, self.calls, closes=False) if isinstance(event, Started) else ()

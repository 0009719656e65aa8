"""Overlapped aggregation and moves on the simulator: the same answers, every call once, and what it earns."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mosaic
from mosaic.core.commands import Open, Submit
from mosaic.core.events import Joined, Lost, Ready, Started
from mosaic.core.plan import Session
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.rule import Majority, Never, Rule
from mosaic.pipelines.walk import walk
from mosaic.runtime.forecaster import Forecaster
from mosaic.runtime.job import Reaction
from mosaic.runtime.loop import drive
from mosaic.runtime.moves import Moves
from mosaic.runtime.no_barrier import Keeping, Overlap
from mosaic.runtime.static_plan import StaticPlan
from mosaic.runtime.stopping import Quorum
from tests.answered_questions import make_moa
from tests.factories import make_call, make_cluster, make_entry, make_expert, make_plan, make_profile, make_session
from tests.runtime.jobs import Told, make_job
from tests.runtime.planners import batch_of, make_planner
from tests.runtime.replay import Replay
from tests.runtime.test_stopping import Course, assert_same, backend_of, courses, run
from tests.sim.cluster_runs import make_backend


def run_overlapped(course: Course, *, has_quorum: bool, has_moves: bool = False) -> tuple[RunResult, Questions]:
    batch, graph = batch_of(course.num_questions), course.graph
    planner, questions = make_planner(graph, num_workers=course.num_workers), Questions(batch, graph)
    if has_moves:  # and every load pays
        names = [expert.name for expert in planner.experts]
        profile = make_profile(*(make_entry(name, load_s=0.0) for name in names))
        planner = replace(planner, profiles={node.name: profile for node in graph.nodes})
    forecaster = Forecaster(planner.profiles, planner.cluster)
    controllers = [forecaster, Overlap(questions=questions, planner=planner, forecaster=forecaster)]
    controllers += [
        *([Quorum(questions)] if has_quorum else ()),
        *([Moves(forecaster)] if has_moves else ()),
        Keeping(),
    ]
    tick_s = 0.7 if has_moves else None
    return drive(backend_of(course, planner), controllers, num_workers=course.num_workers, tick_s=tick_s), questions


def brief(outcome) -> list[tuple]:
    return [(one.question, one.answer, one.source) for one in outcome.answers or ()]


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
    assert brief(joined) == brief(plain)
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
        assert brief(outcome) == brief(plain)
        assert outcome.always.aggregator_s == pytest.approx(plain.always.aggregator_s)
        assert outcome.always.accuracy_frac == plain.always.accuracy_frac
        assert outcome.skip_frac == plain.skip_frac
        statuses = {call.status for call in outcome.result.calls}
        assert isinstance(rule, Majority) or CallStatus.CANCELLED not in statuses


JOIN_TS = 20.0


class Late:
    """A simulator whose worker 1 is not there from the start."""

    name = "sim"

    def __init__(self, backend, *, joins: bool) -> None:
        self.backend, self.joins = backend, joins
        self.apply = backend.apply

    def events(self, *, reacts, tick_s=None):
        for event in self.backend.events(reacts=reacts, tick_s=tick_s):
            if self.joins and event.ts >= JOIN_TS:
                self.joins = False
                yield Joined(event.ts, 1)
            yield event
            if isinstance(event, Started):
                yield Lost(0.0, 1, "not there yet")


class WantsWorker1:
    """Has a call of B wait for worker 1, as soon as what was opened there is up."""

    reacts = True

    def on(self, event, view):
        if not isinstance(event, Ready) or view.opened[event.session].workers != (1,) or len(view.opened) > 2:
            return ()
        return [Open(Session(id=2, expert="B", workers=(1,))), Submit(make_call("last", expert="B"), 2)]


@pytest.mark.parametrize("worker_1", ["there", "joins", "never"])
def test_a_free_worker_takes_calls_over_and_the_run_ends_earlier(worker_1: str) -> None:
    """All calls are planned on one of two workers; the other loads their expert too, and gets half of what is left.

    What was opened on one that joins is closed when something else waits for it: else its call would never run.
    """
    calls = [make_call(f"q{i}", expert="A") for i in range(40)]
    plan = make_plan(make_session(0, calls), num_workers=2)
    entries = [replace(make_entry(name, load_s=10.0), output_tokens=(4000,) * 3) for name in "AB"]
    runs, is_late, moves = [], worker_1 != "there", worker_1 != "never"
    for reacts in (False, True):
        backend = make_backend(
            lambda call, inputs: Outcome(4000, "A"), experts=[*map(make_expert, "AB")], cluster=make_cluster(2)
        )
        forecaster = Forecaster({PROPOSE: make_profile(*entries)}, make_cluster(2))
        steering = [forecaster, Moves(forecaster, waits_for_join=is_late), *([WantsWorker1()] if is_late else ())]
        controllers = [StaticPlan(plan, calls), *(steering if reacts else ())]
        seen = Late(backend, joins=worker_1 == "joins" and reacts) if is_late else backend
        runs.append(drive(seen, controllers, num_workers=2, tick_s=1.0))
    alone, other = runs
    assert {record.workers for record in other.calls} == ({(0,), (1,)} if moves else {(0,)})
    more = {make_call("last", expert="B").key} if worker_1 == "joins" else set()
    assert {record.key for record in other.calls} == {call.key for call in calls} | more
    moved = [record for record in other.calls if record.attempt]
    assert bool(moved) == moves
    assert all(record.wasted_tokens > record.prompt_tokens for record in moved), "the other engine read it again"
    ends = [max(record.finished_ts for record in result.calls if record.expert == "A") for result in runs]
    assert ends[1] < (0.95 if is_late else 0.9) * ends[0] if moves else other == alone

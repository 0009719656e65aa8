"""Pilots: calls of the batch itself, answered before the plan which they price."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mosaic
from mosaic.core.errors import BackendError
from mosaic.core.workload import AGGREGATE
from mosaic.pipelines.call_graph import mixture_of_agents
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.rules.rule import Never
from mosaic.runtime.controller import show_nothing
from mosaic.runtime.job import Job, ProfileSource, Reaction
from mosaic.runtime.pilot import choose_calls, wanted_calls, why_not
from mosaic.runtime.stages import FirstStretch, Pilot, Stage
from mosaic.runtime.sweep import Sweep
from mosaic.runtime.unpriced import sessions_in_thirds, thirds
from tests.answered_questions import make_moa, make_question
from tests.runtime.jobs import Told, make_job
from tests.runtime.scripted import Scripted

NUM_QUESTIONS = 60
QUESTIONS = tuple(make_question(f"q{number}", answer="A", prompt_tokens=50) for number in range(NUM_QUESTIONS))
WORLD = Told(
    votes={question.id: ("ABC" if number % 4 else "AAB") for number, question in enumerate(QUESTIONS)},
    said=dict.fromkeys((question.id for question in QUESTIONS), "A"),
)


def make_batch(**changes) -> Job:
    given = {
        "questions": QUESTIONS, "world": WORLD, "max_batch_frac": 0.25, "profile_source": ProfileSource.BATCH,
        "sweep": Sweep(shard_sizes=(20, 60)),
    }  # fmt: skip
    return make_job(**(given | changes))


def first_calls(job: Job):
    return job.graph.first_calls(job.workload)


def said(outcome) -> dict:
    return {
        record.key: (record.output_tokens, record.answer, record.status, record.expert)
        for record in outcome.result.calls
    }


@pytest.mark.parametrize("graph", [None, mixture_of_agents(None, rule=Never(), compare=comparisons())])
def test_a_run_with_a_pilot_asks_each_call_once_and_gets_the_same_answers(graph) -> None:
    with_pilot = mosaic.run(make_batch(graph=graph))
    without = mosaic.run(make_batch(graph=graph, profile_source=ProfileSource.CALIBRATION))
    assert len(with_pilot.result.calls) == len(said(with_pilot)), "each once"
    assert said(with_pilot) == said(without)
    assert with_pilot.answers == without.answers
    assert with_pilot.result.num_pilot_sessions > 0 == without.result.num_pilot_sessions


def test_the_plan_is_for_the_calls_that_the_pilot_leaves() -> None:
    outcome = mosaic.run(make_batch())
    result, plan = outcome.result, outcome.planned[0].plan
    pilot = {record.key for record in result.calls if record.session < result.num_pilot_sessions}
    planned = {key for session in plan.sessions for key in session.shard}
    assert not pilot & planned
    assert pilot | planned >= {call.key for call in outcome.planned[0].problem.calls}
    assert len(outcome.planned[0].problem.calls) == 180 - len({key for key in pilot if key.node != AGGREGATE})


def test_the_pilot_comes_first_on_one_clock_and_the_batch_starts_at_its_end() -> None:
    result = mosaic.run(make_batch()).result
    pilot = [session for session in result.sessions if session.session < result.num_pilot_sessions]
    later = result.after_pilot().sessions
    assert len(pilot) + len(later) == len(result.sessions)
    assert max(session.end_ts for session in pilot) <= min(session.load_start_ts for session in later)


def test_upper_nodes_are_priced_by_calls_that_the_pilots_questions_need() -> None:
    logged: list[str] = []
    outcome = mosaic.run(make_batch(), log=logged.append)
    pilot = [record for record in outcome.result.calls if record.session < outcome.result.num_pilot_sessions]
    assert Counter(record.key.node for record in pilot)[AGGREGATE] >= 7
    assert [line.split(":")[0] for line in logged] == ["pilot", "pilot of aggregate"]
    assert "45 of the batch's own calls (A 15, B 15, C 15)" in logged[0]


def test_where_too_few_need_an_upper_node_others_price_it_and_the_reason_is_logged() -> None:
    logged: list[str] = []
    agreed = Told(votes=dict.fromkeys(WORLD.votes, "AAA") | {"q1": "ABC"}, said=WORLD.said)
    job = make_batch(world=agreed)
    outcome = mosaic.run(job, log=logged.append)
    assert logged[1].startswith("aggregate is not priced by the batch's own calls: of the pilot's questions ")
    assert logged[1].endswith("need W, and its price takes 7")
    assert "calls that are not the batch" in logged[2]
    assert said(outcome) == said(mosaic.run(replace(job, profile_source=ProfileSource.CALIBRATION)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reactions": {Reaction.QUORUM}}, "a quorum cancels calls"),
        ({"reactions": {Reaction.NO_BARRIER}}, "without a barrier"),
        ({"max_batch_frac": None, "sweep": Sweep(shard_sizes=(40, 80))}, "takes 120 calls, and the batch has 60"),
        ({"max_batch_frac": 1.0}, "a pilot would take all"),
        ({"profile_source": ProfileSource.CALIBRATION}, "profile.source=calibration"),
        ({"profile_source": ProfileSource.AUTO}, "simulated calls are not sent"),
    ],
)
def test_why_the_batchs_own_calls_are_not_measured(changes, reason: str) -> None:
    job = make_batch(**changes)
    assert reason in why_not(job, first_calls(job))
    if job.profile_source is ProfileSource.BATCH:
        with pytest.raises(ValueError, match="profile.source must be auto or calibration here, got 'batch'"):
            mosaic.run(job)


def test_a_saved_plan_leaves_no_pilot() -> None:
    job = make_batch()
    saved = mosaic.run(replace(job, profile_source=ProfileSource.CALIBRATION)).planned[0].plan
    assert "a saved plan places every call" in why_not(replace(job, plans=(saved,)), first_calls(job))


class Losing:
    """A site on which workers are lost, after so many sessions."""

    def __init__(self, site, losses) -> None:
        self.site = site
        self.scripted = Scripted(losses=losses)

    def __getattr__(self, name):
        return getattr(self.site, name)

    def places(self, expert):
        return [(0,), (2,), (3,)]

    def backend(self, questions, prompts, **named):
        return self.scripted


def run_stages(job: Job, losses):
    """Run two stages on a site that loses workers; gives what was sent in each, and the pilot after it."""
    seen: list[tuple[Stage, Pilot]] = []

    losing = Losing(job.site, losses)

    def stages():
        pilot = Pilot()
        for site in (job.site, losing):
            calls = choose_calls(job, first_calls(job), pilot.records)
            stage = Stage("pilot", sessions_in_thirds(calls, job.experts, site.places), calls)
            pilot = yield stage
            seen.append((stage, pilot))

    FirstStretch(replace(job, site=losing), stages(), show_nothing).run("pilot")
    return seen


def test_a_stage_ends_with_all_its_calls_and_says_which_sessions_served_them() -> None:
    job = make_batch()
    (first, after_first), (more, after_both) = run_stages(job, {1: (1, "its node is gone")})
    assert {session.workers for session in first.sessions} >= {(1,)}
    assert after_first.records.keys() == {call.key for call in first.calls}
    assert after_first.num_sessions > len(first.sessions), "others took over"
    assert len(after_first.sessions) < after_first.num_sessions, "those that were lost have no record"
    numbers = {session.session for session in after_first.sessions}
    assert {record.session for record in after_first.records.values()} <= numbers
    assert after_both.records.keys() - after_first.records.keys() == {call.key for call in more.calls}
    assert {key: after_both.records[key] for key in after_first.records} == after_first.records
    assert all(after_both.records[call.key].session >= after_first.num_sessions for call in more.calls)


def test_a_stage_that_no_worker_serves_is_an_error() -> None:
    with pytest.raises(BackendError, match="without the workers that are lost|all workers are lost"):
        run_stages(make_batch(), dict.fromkeys(range(4), (0, "gone")))


@given(st.floats(0.01, 0.9))
def test_a_pilot_has_enough_of_each_expert_and_whole_questions(frac: float) -> None:
    job = make_batch(graph=make_moa(), max_batch_frac=frac)
    calls = first_calls(job)
    chosen = choose_calls(job, calls)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(calls)
    counts = Counter(call.expert for call in chosen)
    assert all(counts[expert] >= num_calls for expert, num_calls in wanted_calls(job, calls).items())
    whole = Counter(call.key.question for call in chosen)
    assert sum(count == 3 for count in whole.values()) >= min(NUM_QUESTIONS, max(8, int(frac * NUM_QUESTIONS)))
    again = choose_calls(job, calls, {call.key for call in chosen})
    assert not set(again) & set(chosen)


@given(st.integers(7, 10_000))
def test_three_sessions_of_two_sizes_serve_all(num_calls: int) -> None:
    sizes = [len(part) for part in thirds(range(num_calls))]
    assert sum(sizes) == num_calls
    assert 0 < sizes[0] < sizes[1] < sizes[2]

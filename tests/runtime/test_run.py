"""From a workload to answers on plain values: the Python API, as the README shows it."""

from collections.abc import Set
from contextlib import contextmanager
from dataclasses import replace

import pytest

import mosaic
from mosaic.core.commands import Submit
from mosaic.core.errors import PlanError, ProfileError
from mosaic.core.results import CallStatus, Response
from mosaic.core.workload import AGGREGATE, AnswerKind
from mosaic.pipelines.final_answers import AnswerSource, comparisons
from mosaic.pipelines.rules.rule import Majority, Never, Scope
from mosaic.planning.baselines import RoundRobin
from mosaic.planning.program.schedulers import Ilp
from mosaic.runtime.job import AlwaysAggregate, Reaction, Summary
from mosaic.runtime.planner import NodePlacements, Placement
from mosaic.runtime.run import failures
from tests.answered_questions import make_moa, make_question, make_tree
from tests.controllers import Watcher
from tests.factories import assert_plan_valid, make_cluster, make_entry, make_profile
from tests.run_records import make_failed, make_result
from tests.runtime.jobs import ALONE, HARDWARE, Told, make_job, make_questions


class Steps:
    """Remembers what was timed and shown, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.predicted = {}
        self.watcher = Watcher(reacts=False)

    @contextmanager
    def step(self, name: str):
        self.seen.append(name)
        yield

    @contextmanager
    def show(self, name: str, expected):
        self.seen.append(f"shows {name}")
        self.predicted = expected.times
        yield [self.watcher]


def rows(outcome) -> dict:
    return {final.question: (final.answer, final.source, final.correct) for final in outcome.answers}


MAJORITY, AGGREGATOR, NOT_AGGREGATED = AnswerSource
BY_HAND = {
    "agreed": ("A", MAJORITY, True),
    "split": ("C", AGGREGATOR, True),
    # It said nothing that could be read: its answer counts all the same.
    "dumb": (None, AGGREGATOR, False),
}


def test_a_run_by_hand() -> None:
    outcome = mosaic.run(make_job())
    assert rows(outcome) == BY_HAND
    assert outcome.skip_frac == pytest.approx(1 / 3)
    assert [decision.skip for decision in outcome.decisions] == [True, False, False]
    assert [ballot.question.id for ballot in outcome.ballots] == ["agreed", "split", "dumb"]
    for planned in outcome.planned:
        assert_plan_valid(planned.plan, planned.problem)
    *first, last = outcome.result.sessions
    assert (last.node, last.workers, last.num_calls) == (AGGREGATE, (0, 1, 2, 3), 2)
    assert last.load_start_ts == max(session.end_ts for session in first), "both layers are on one clock"
    assert len(outcome.result.calls) == 9 + 2
    assert 0 < outcome.result.lower_bound_s <= last.load_start_ts


@pytest.mark.parametrize("reactions", [set(), {Reaction.NO_BARRIER}], ids=["barrier", "no barrier"])
def test_steps_are_timed_and_shown_in_order_and_controllers_hear_the_run_alone(reactions: Set[Reaction]) -> None:
    steps, watcher = Steps(), Watcher(reacts=False)
    outcome = mosaic.run(
        make_job(reactions=reactions), controllers=[watcher], show=steps.show, step=steps.step, tick_s=1.0
    )
    assert steps.seen == [
        "profile", "shows profiling", "plan", "profile_upper", "shows profiling aggregate", "execute", "shows calls",
        "always_aggregate",
    ]  # fmt: skip
    assert sorted(watcher.records, key=str) == sorted(outcome.result.calls, key=str)
    assert len(steps.watcher.records) > len(watcher.records), "who shows the run hears the measurements too"
    # Sessions of all layers, as they are numbered in the run.
    assert steps.predicted.keys() == {session.session for session in outcome.result.sessions}
    assert rows(outcome) == BY_HAND


def test_the_log_of_commands_is_kept_where_anybody_reacts() -> None:
    assert mosaic.run(make_job()).result.actions == ()
    for reacting in (
        mosaic.run(make_job(reactions={Reaction.NO_BARRIER})),
        mosaic.run(make_job(), controllers=[Watcher()]),
    ):
        submitted = {
            action.command.call.key for action in reacting.result.actions if isinstance(action.command, Submit)
        }
        assert submitted == {record.key for record in reacting.result.calls}


def test_a_plan_for_many_workers_is_announced() -> None:
    for num_workers, lines in ((4, []), (100, ["planning: round_robin, 9 calls on 100 workers"])):
        logged: list[str] = []
        mosaic.plan(make_job(cluster=make_cluster(num_workers, gpu=HARDWARE.gpu)), log=logged.append)
        assert [line for line in logged if line.startswith("planning")] == lines


def test_a_plan_is_that_of_the_runs_first_layer() -> None:
    job = make_job()
    planned = mosaic.plan(job)
    assert planned == mosaic.run(job).planned[0]
    assert [(session.expert, session.workers) for session in planned.plan.sessions] == [
        ("A", (0,)), ("B", (1,)), ("C", (2,)),
    ]  # fmt: skip
    assert planned.problem.costs.costs.profile.source == "simulated sweep of three on a100_80gb with other luck"
    ilp = mosaic.plan(replace(job, scheduler=Ilp())).plan
    assert ilp.predicted_makespan_s <= planned.plan.predicted_makespan_s


def test_profiles_that_are_given_are_not_measured() -> None:
    gpu = HARDWARE.gpu.name
    first = make_profile(*(make_entry(name, gpu=gpu) for name in "ABC"))
    upper = make_profile(make_entry("W", tp_degree=4, gpu=gpu))
    steps = Steps()
    outcome = mosaic.run(make_job(profile=first, upper_profile=upper), show=steps.show)
    assert steps.seen == ["shows calls"]
    assert [planned.problem.costs.costs.profile for planned in outcome.planned] == [first, upper]
    with pytest.raises(ProfileError, match="profile 'test' has no lengths for expert 'C'"):
        mosaic.plan(make_job(profile=make_profile(*first.entries[:2])))


def test_a_problem_holds_no_true_lengths() -> None:
    job = make_job(world=Told(output_tokens=1234))
    lengths = {call.key: 1234 for call in job.workload.calls}
    assert "1234" not in repr(mosaic.plan(replace(job, workload=replace(job.workload, output_tokens=lengths))).problem)


@pytest.mark.parametrize(("gate", "num_aggregated"), [(Never(), 3), (Majority(tau=1), 2), (Majority(tau=0.3), 0)])
def test_the_gate_says_how_many_are_aggregated(gate, num_aggregated: int) -> None:
    outcome = mosaic.run(make_job(make_moa(gate)))
    assert sum(record.key.node == AGGREGATE for record in outcome.result.calls) == num_aggregated
    assert len(outcome.planned) == (2 if num_aggregated else 1)
    assert outcome.skip_frac == pytest.approx(1 - num_aggregated / 3)
    # Whatever is skipped, it is known what the same world gives without a gate.
    never = mosaic.run(make_job(make_moa(Never())))
    assert outcome.always.accuracy_frac == never.always.accuracy_frac == pytest.approx(1 / 3)
    assert outcome.always.aggregator_s == pytest.approx(never.always.aggregator_s)
    assert never.always.aggregator_s == pytest.approx(
        max(s.end_ts for s in never.result.sessions) - never.result.sessions[-1].load_start_ts
    )


def test_of_a_large_batch_it_is_told_on_demand_what_skipping_nothing_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mosaic.run(make_job())
    monkeypatch.setattr("mosaic.runtime.job.LARGE_BATCH", 2)
    large = mosaic.run(make_job())
    assert (large.always, rows(large)) == (AlwaysAggregate(), BY_HAND)
    assert mosaic.run(make_job(summary=Summary.FULL)).always == whole.always != AlwaysAggregate()
    assert mosaic.run(make_job(make_moa(Never()))).always.aggregator_s is not None, "it has just happened"


def test_without_an_aggregator_the_majority_of_the_experts_answers() -> None:
    outcome = mosaic.run(make_job(ALONE))
    assert (outcome.skip_frac, len(outcome.planned), outcome.always) == (None, 1, AlwaysAggregate())
    assert rows(outcome) == {
        "agreed": ("A", MAJORITY, True), "split": ("A", MAJORITY, False), "dumb": ("D", MAJORITY, True)
    }  # fmt: skip


def test_without_an_aggregator_there_are_no_answers_where_nobody_can_tell_whether_they_are_right() -> None:
    without_gold = [replace(question, answer=None) for question in make_questions()]
    assert mosaic.run(make_job(ALONE, questions=tuple(without_gold))).answers is None
    silent = Told(votes=dict.fromkeys((question.id for question in make_questions()), "---"))
    assert mosaic.run(make_job(ALONE, world=silent)).answers is None, "its world has lengths only"


def test_of_two_placements_the_one_predicted_to_end_first_is_run() -> None:
    choice = NodePlacements(placements=(Placement(tp_degree=1), Placement(tp_degree=4)))
    outcome = mosaic.run(make_job(make_moa(Never()), placements={AGGREGATE: choice}))
    planned = outcome.planned[1]
    sessions = [session for session in outcome.result.sessions if session.node == AGGREGATE]
    assert {len(session.workers) for session in sessions} == {planned.problem.expert("W").tp_degree}
    assert [entry.tp_degree for entry in planned.problem.costs.costs.profile.entries] == [1, 4]


def test_three_layers_run_with_and_without_a_barrier() -> None:
    for reactions in (set(), {Reaction.NO_BARRIER}):
        job = make_job(make_tree(Majority()), reactions=reactions, placements={})
        outcome = mosaic.run(job)
        nodes = [record.key.node for record in outcome.result.calls]
        assert (nodes.count("propose"), nodes.count("merge"), nodes.count("final")) == (9, 6, 1), "only dumb is split"
        assert {name: row[0] for name, row in rows(outcome).items()} == {"agreed": "B", "split": "C", "dumb": None}


@pytest.mark.parametrize("reactions", [set(), {Reaction.NO_BARRIER}], ids=["barrier", "no barrier"])
def test_questions_that_no_aggregator_can_read_keep_the_gates_answer(reactions: Set[Reaction]) -> None:
    long = make_questions(prompt_tokens=7900)
    outcome = mosaic.run(make_job(make_moa(), questions=long, reactions=reactions))
    assert (len(outcome.planned), outcome.skip_frac, outcome.num_too_long) == (1, pytest.approx(1 / 3), 2)
    assert {name: row[:2] for name, row in rows(outcome).items()} == {
        "agreed": ("A", MAJORITY), "split": ("A", NOT_AGGREGATED), "dumb": ("D", NOT_AGGREGATED),
    }  # fmt: skip


def test_free_text_cannot_be_graded_unless_a_comparison_is_plugged_in() -> None:
    words = (make_question("split", AnswerKind.TEXT, answer="c"),)
    world = Told({"split": "xxx"}, {"split": "C"})
    (final,) = mosaic.run(make_job(questions=words, world=world)).answers
    assert (final.answer, final.source, final.correct, final.confidence) == ("C", AGGREGATOR, None, None)
    plugged = make_moa(Never(), comparisons(lambda a, b: a.lower() == b.lower()))
    (graded,) = mosaic.run(make_job(plugged, questions=words, world=world)).answers
    assert (graded.answer, graded.correct, graded.confidence) == ("C", True, 1.0)


def test_a_plan_that_breaks_its_problem_is_not_run() -> None:
    class Forgetful:
        """Drops the last session of a good plan."""

        name = "forgetful"

        def plan(self, problem):
            good = RoundRobin().plan(problem)
            return replace(good, sessions=good.sessions[:-1], predicted=good.predicted[:-1])

    steps = Steps()
    with pytest.raises(PlanError, match="plan drops call agreed/propose/2"):
        mosaic.run(make_job(scheduler=Forgetful()), step=steps.step)
    assert "execute" not in steps.seen


def test_errors_of_failed_calls_are_counted() -> None:
    calls = [make_failed(f"q{i}", response=Response(error=error)) for i, error in enumerate(["x", "y", "x", None])]
    cancelled = make_failed("q9", response=Response(error="x"), status=CallStatus.CANCELLED)
    assert failures(make_result(calls=(*calls, cancelled))) == {"x": 2, "y": 1}


def test_what_an_exit_judges_by_is_loaded_before_anything_is_measured() -> None:
    steps = Steps()

    class Loading(Majority):
        def load(self) -> None:
            steps.seen.append("loads the exit")

    mosaic.run(make_job(make_moa(Loading(scope=Scope.NODE))), step=steps.step)
    assert steps.seen[:2] == ["loads the exit", "profile"]

"""The second stage as one library call: gate, profile, plan, execute, final answers."""

from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from mosaic.runtime.second_stage import SecondStage, comparisons

import mosaic
from mosaic.core.errors import BackendError
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, AnswerKind, Expert
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.gates.gate import Majority, Never, Unanimous
from mosaic.planning.costs import AffineCosts
from mosaic.planning.plan_check import check_plan
from mosaic.planning.profiles import Profile
from mosaic.planning.schedulers.round_robin import RoundRobin
from tests.answered_questions import FAILED, make_aggregator, make_question, make_stage
from tests.factories import make_cluster
from tests.run_records import make_result, make_session
from tests.runtime.test_aggregator_plan import ALONE, GANG, POOL
from tests.sim.cluster_runs import make_backend

CLUSTER = make_cluster(4)
SAID = {"split": "C", "dumb": None, "agreed": "B"}
"""What the aggregator says."""
QUESTIONS = (
    (replace(make_question("agreed"), answer="A"), ["A", "A", "A"]),
    (replace(make_question("split"), answer="C"), ["A", "B", "C"]),
    (replace(make_question("dumb"), answer="D"), ["D", FAILED, None]),
)


class Steps:
    """Remembers what was timed, asked and made, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def step(self, name: str):
        self.seen.append(name)
        yield
        self.seen.append(f"end of {name}")

    def profile(self) -> Profile:
        self.seen.append("profile asked")
        return Profile(source="test", entries=(GANG, ALONE))

    def backend(self, expert: Expert):
        self.seen.append(f"backend for {expert.name} over {expert.tp_degree}")
        return make_backend(self.outcome, experts=[expert], cluster=CLUSTER)

    def outcome(self, call) -> Outcome:
        return Outcome(20, SAID[call.key.question])


def first_stage(*answered) -> tuple[Any, RunResult]:
    workload, records = make_stage(*answered)
    return workload, make_result(make_session(0, end_ts=50.0), calls=tuple(records), num_workers=4)


def aggregate(*answered, steps: Steps | None = None, **changes: Any) -> SecondStage:
    workload, first = first_stage(*answered)
    steps = steps or Steps()
    arguments: dict[str, Any] = {
        "gate": Majority(),
        "aggregator": make_aggregator(4),
        "pool": POOL,
        "cluster": CLUSTER,
        "costs": AffineCosts,
        "scheduler": RoundRobin(),
        "profile": steps.profile,
        "backend": steps.backend,
        **changes,
    }
    return mosaic.aggregate(workload, first, **arguments)


def test_a_second_stage_by_hand() -> None:
    stage = aggregate(*QUESTIONS)
    assert stage.aggregated == {"split": "C", "dumb": None}
    rows = {final.question: (final.answer, final.source, final.correct) for final in stage.answers}
    assert rows == {
        "agreed": ("A", AnswerSource.MAJORITY, True),
        "split": ("C", AnswerSource.AGGREGATOR, True),
        # It said nothing that could be read: its answer counts all the same.
        "dumb": (None, AnswerSource.AGGREGATOR, False),
    }
    assert stage.handover.skip_frac == pytest.approx(1 / 3)
    assert stage.planned is not None
    check_plan(stage.planned.plan, stage.planned.problem)
    first, second = stage.joined.sessions
    assert (second.node, second.workers, second.load_start_ts) == (AGGREGATE, (0, 1, 2, 3), first.end_ts)
    assert len(stage.joined.calls) == 9 + 2


def test_steps_are_timed_in_order_and_the_backend_gets_the_aggregator_as_it_is_placed() -> None:
    steps = Steps()
    aggregate(*QUESTIONS, steps=steps, step=steps.step, aggregator=make_aggregator(4, 1))
    assert steps.seen == [
        "gate", "end of gate", "profile_aggregator", "profile asked", "end of profile_aggregator",
        "plan_aggregator", "end of plan_aggregator", "aggregate", "backend for W over 4", "end of aggregate",
    ]  # fmt: skip


def test_where_nothing_is_left_nothing_is_measured_planned_or_run() -> None:
    steps = Steps()
    stage = aggregate(QUESTIONS[0], steps=steps)
    assert steps.seen == []
    assert (stage.planned, stage.aggregated, stage.handover.calls) == (None, {}, ())
    assert stage.joined == first_stage(QUESTIONS[0])[1]
    assert [final.answer for final in stage.answers] == ["A"]
    assert stage.handover.skip_frac == 1.0


@pytest.mark.parametrize(("gate", "num_aggregated"), [(Never(), 3), (Unanimous(), 2), (Majority(tau=0.3), 0)])
def test_the_gate_says_how_many_are_aggregated(gate, num_aggregated: int) -> None:
    assert len(aggregate(*QUESTIONS, gate=gate).aggregated) == num_aggregated


def test_a_call_that_failed_leaves_the_gates_answer() -> None:
    class Lossy:
        name = "lossy"

        dead_workers: ClassVar[dict[int, str]] = {}

        def execute(self, plan, calls, listener=None):
            result = make_backend(Steps().outcome, experts=[make_aggregator().shaped(4)], cluster=CLUSTER).execute(
                plan, calls
            )
            lost = result.calls[0]._replace(status=CallStatus.FAILED, answer=None, finished_ts=None)
            return replace(result, calls=(lost, *result.calls[1:]))

    stage = aggregate(*QUESTIONS, backend=lambda expert: Lossy())
    assert stage.aggregated == {"dumb": None}
    rows = {final.question: (final.answer, final.source) for final in stage.answers}
    assert rows["split"] == ("A", AnswerSource.MAJORITY)


def test_a_question_that_does_not_fit_keeps_the_gates_answer() -> None:
    long = (replace(make_question("split", prompt_tokens=7900), answer="B"), ["B", "A", "C"])
    stage = aggregate(long)
    assert (stage.planned, stage.handover.skip_frac) == (None, 0.0)
    (final,) = stage.answers
    assert (final.answer, final.source, final.correct) == ("B", AnswerSource.MAJORITY, True)


def test_free_text_is_aggregated_and_cannot_be_graded_unless_a_comparison_is_plugged_in() -> None:
    words = (replace(make_question("split", AnswerKind.TEXT), answer="c"), ["x", "x", "x"])
    (final,) = aggregate(words).answers
    assert (final.answer, final.source, final.correct, final.confidence) == ("C", AnswerSource.AGGREGATOR, None, None)
    (graded,) = aggregate(words, gate=Never(), compare=comparisons(lambda a, b: a.lower() == b.lower())).answers
    assert (graded.answer, graded.correct, graded.confidence) == ("C", True, 1.0)


def test_an_error_of_the_backend_reaches_the_caller() -> None:
    with pytest.raises(BackendError, match="expert must be one of"):
        aggregate(*QUESTIONS, backend=lambda expert: make_backend(Steps().outcome, cluster=CLUSTER))

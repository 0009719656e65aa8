"""Early quorum on the simulator: what is cancelled, what that costs, and that the answers are the same."""

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.commands import Cancel
from mosaic.core.events import Finished, Lost
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, Inputs, RunResult
from mosaic.core.view import View
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.rule import Majority
from mosaic.pipelines.walk import walk
from mosaic.runtime.loop import drive
from mosaic.runtime.stopping import Quorum
from tests.answered_questions import make_moa, make_tree
from tests.factories import make_cluster
from tests.run_records import assert_no_worker_overlaps, make_record
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

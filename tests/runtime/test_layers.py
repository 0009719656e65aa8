"""Pipelines as controllers, on the simulator: with a barrier between layers, and without."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.commands import Submit
from mosaic.core.errors import PlanError
from mosaic.core.realization import Outcome
from mosaic.core.results import RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.rule import Majority, Never
from mosaic.pipelines.walk import walk
from mosaic.runtime.planner import Planned
from tests.answered_questions import make_moa, make_question, make_tree
from tests.factories import assert_plan_valid
from tests.run_records import assert_no_worker_overlaps
from tests.runtime.planners import batch_of, run_layers


class Run(NamedTuple):
    result: RunResult
    questions: Questions
    planned: list[tuple[Planned, int]]
    """With the number of the plan's session 0 in the run."""

    def calls_of(self, node: str) -> list[str]:
        return [record.key.question for record in self.result.calls if record.key.node == node]


def submits(run: Run) -> list[tuple[float, Submit]]:
    return [(action.ts, action.command) for action in run.result.actions if isinstance(action.command, Submit)]


def run_graph(graph: CallGraph, batch: Workload, says: Mapping[CallKey, str], **options: Any) -> Run:
    """Run a pipeline whose calls say what a table has."""
    planned: list[tuple[Planned, int]] = []

    def outcome(call: Call, inputs) -> Outcome:
        assert set(inputs) == set(call.after)
        return Outcome(5 + 37 * (call.prompt_tokens + call.key.slot) % 90, says[call.key])

    return Run(*run_layers(graph, batch, outcome, on_plan=lambda *made: planned.append(made), **options), planned)


class Case(NamedTuple):
    """Questions that four experts, two mergers and an aggregator answer."""

    batch: Workload
    says: dict[CallKey, str]
    split: set[str]
    """Questions whose mergers do not agree."""


@st.composite
def cases(draw) -> Case:
    batch = batch_of(draw(st.integers(1, 6)))
    says, split = {}, set()
    for question in batch.questions:
        said = draw(st.text("ABCD", min_size=7, max_size=7))
        keys = [
            CallKey(question.id, node, slot)
            for node, n in (("propose", 4), ("merge", 2), ("final", 1))
            for slot in range(n)
        ]
        says |= dict(zip(keys, said, strict=True))
        if said[4] != said[5]:
            split.add(question.id)
    return Case(batch, says, split)


def assert_just_what_is_needed(run: Run, case: Case) -> None:
    names = [question.id for question in case.batch.questions]
    assert sorted(run.calls_of("propose")) == sorted(names * 4)
    assert sorted(run.calls_of("merge")) == sorted(names * 2)
    assert sorted(run.calls_of("final")) == sorted(case.split)
    ends = {record.key: record.finished_ts for record in run.result.calls}
    assert len(ends) == len(run.result.calls)
    for name in names:
        final = walk(run.questions.graph, *run.questions.of(name)).answer
        assert final is not None
        last = CallKey(name, "final" if name in case.split else "merge", 0)
        assert (final.answer, final.source) == (case.says[last], AnswerSource.AGGREGATOR)
    assert_no_worker_overlaps(run.result)
    records = {record.key: record for record in run.result.calls}
    for _, command in submits(run):
        assert all(ends[key] <= records[command.call.key].queued_ts for key in command.call.after)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 3))
def test_with_a_barrier_each_layer_waits_for_the_one_before(case: Case, num_workers: int) -> None:
    run = run_graph(make_tree(Majority()), case.batch, case.says, num_workers=num_workers)
    assert_just_what_is_needed(run, case)
    nodes = ["propose", "merge", *(["final"] if case.split else [])]
    spans = []
    for node in nodes:
        mine = [session for session in run.result.sessions if session.node == node]
        spans.append((min(s.load_start_ts for s in mine), max(s.end_ts for s in mine)))
    assert all(before[1] <= behind[0] for before, behind in pairwise(spans))
    assert [made.problem.calls[0].key.node for made, _ in run.planned] == nodes
    for made, first in run.planned:
        assert_plan_valid(made.plan, made.problem)
        opened = [
            session for session in run.result.sessions if first <= session.session < first + len(made.plan.sessions)
        ]
        assert [session.expert for session in opened] == [session.expert for session in made.plan.sessions]


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 3), st.sampled_from([0.0, 0.2, 1.0]), st.sampled_from([0.0, 0.05, 1.0]), st.booleans())
def test_without_a_barrier_calls_start_when_what_they_read_has_ended(case, num_workers, merged, final, stays) -> None:
    """Whatever was expected: what was not has a session planned when it comes."""
    graph = make_tree(Majority())
    expected = graph.expected_calls(case.batch, {"merge": merged, "final": final}, {"merge": 300, "final": 300})
    run = run_graph(graph, case.batch, case.says, num_workers=num_workers, expected=expected, stays=stays)
    assert_just_what_is_needed(run, case)


def test_without_a_barrier_the_next_layer_begins_while_the_first_goes_on() -> None:
    # A answers a question on worker 0 long before B has answered the others on worker 1.
    batch = batch_of(9, 2)
    calls = tuple(call for call in batch.calls if call.expert == ("A" if call.key.question == "q0" else "B"))
    graph, says = make_moa(Never()), defaultdict(lambda: "A")
    expected = graph.expected_calls(batch, {}, {AGGREGATE: 300})
    for options, waits in (({}, True), ({"expected": expected}, False)):
        run = run_graph(graph, replace(batch, calls=calls), says, **options)
        assert sorted(run.calls_of(AGGREGATE)) == sorted(question.id for question in batch.questions)
        last_ts = max(record.finished_ts for record in run.result.calls if record.key.node == PROPOSE)
        first_ts = min(ts for ts, command in submits(run) if command.call.key.node == AGGREGATE)
        assert (first_ts == last_ts) if waits else (first_ts < last_ts)


def split_batch() -> tuple[Workload, dict[CallKey, str]]:
    """Three questions whose experts do not agree."""
    batch = batch_of(3)
    says = {call.key: "ABCD"[call.key.slot] for call in batch.calls}
    return batch, says | {CallKey(question.id, AGGREGATE, 0): "D" for question in batch.questions}


def test_saved_plans_are_run_again_and_a_later_one_of_other_calls_is_made_anew() -> None:
    batch, says = split_batch()
    ran = run_graph(make_moa(), batch, says)
    first, second = (made.plan for made, _ in ran.planned)
    again = run_graph(make_moa(), batch, says, plans=[first, second])
    assert [made.plan for made, _ in again.planned] == [first, second]
    assert again.result == ran.result
    settled = says | {CallKey("q0", "propose", slot): "A" for slot in range(4)}
    other = run_graph(make_moa(), batch, settled, plans=[first, second])
    assert sorted(other.calls_of(AGGREGATE)) == ["q1", "q2"]
    assert other.planned[1][0].plan != second
    with pytest.raises(PlanError):
        run_graph(make_moa(), batch, says, plans=[second])


def test_only_questions_that_have_calls_are_asked_for() -> None:
    batch = batch_of(1)
    more = Workload(name="more", questions=(make_question("unasked"), *batch.questions), calls=batch.calls)
    assert [question.id for question in Questions(more, make_moa())] == ["q0"]


def test_the_calls_of_a_node_as_they_are_needed_and_as_they_would_be_without_a_gate() -> None:
    batch = batch_of(2)
    run = run_graph(make_moa(), batch, {call.key: "A" for call in batch.calls})
    assert run.questions.calls_of(AGGREGATE) == ()
    assert [call.key.question for call in run.questions.calls_of(AGGREGATE, skipping=False)] == ["q0", "q1"]


@given(st.integers(1, 30), st.floats(0, 1))
def test_as_many_calls_are_expected_as_their_shares_add_up_to(num_questions: int, frac: float) -> None:
    (picked,) = make_moa(Never()).expected_calls(batch_of(num_questions, 2), {AGGREGATE: frac}, {AGGREGATE: 300})
    assert abs(len(picked) - frac * num_questions) <= 0.5 + 1e-9
    assert len(set(picked)) == len(picked)

"""Quorum, overlap and moves, as every backend carries them out: no call is lost, none is answered twice, answers stay.

Experts A, B and A again vote on twelve questions, and an aggregator reads the answers that do not agree.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mosaic.core.commands import Move
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.rule import Majority
from mosaic.pipelines.walk import walk
from mosaic.runtime.controller import Controller
from mosaic.runtime.forecaster import Forecaster
from mosaic.runtime.layers import Layers
from mosaic.runtime.moves import Moves
from mosaic.runtime.no_barrier import Keeping, Overlap
from mosaic.runtime.planner import Planner
from mosaic.runtime.stopping import Quorum
from tests.answered_questions import make_question
from tests.contracts.test_backend_contract import Kind, true_outcome
from tests.factories import make_call, make_entry, make_expert, make_profile
from tests.runtime.planners import make_planner
from tests.runtime.replay import Replay

NUM_QUESTIONS = 12
VOTED = {"agreed": "AAB", "split": "ABC", "late": "A-A"}
"""By the kind of a question, which its number gives; - cannot be parsed."""
ANSWERS = {"agreed": "A", "split": "D", "late": "A"}
MakeControllers = Callable[[Questions, Planner], Sequence[Controller]]


def kind_of(key: CallKey) -> str:
    return list(VOTED)[int(key.question[1:]) % 3]


def voted(call, inputs=None):
    if call.after:
        return Outcome(9, answer="D")
    vote = VOTED[kind_of(call.key)][call.key.slot]
    return Outcome(true_outcome(call).output_tokens, answer=None if vote == "-" else vote)


def run(
    kind: Kind,
    folder: Path,
    make_controllers: MakeControllers,
    *,
    aggregator: str = "T",
    is_third_late: bool = False,
    load_s: float = 10.0,
    tick_s: float | None = None,
) -> tuple[RunResult, Questions]:
    late_s = (0.0, 0.0, kind.late_s if is_third_late else 0.0)
    calls = [
        make_call(f"q{i}", expert="ABA"[slot], slot=slot, ready_s=late_s[slot])
        for i in range(NUM_QUESTIONS)
        for slot in range(3)
    ]
    merger = make_expert(aggregator, tp_degree=2 if aggregator == "T" else 1)
    nodes = (Node(name=PROPOSE), Node(name=AGGREGATE, experts=(merger,), after=(PROPOSE,), when="unsettled"))
    graph = CallGraph(nodes=nodes, rule=Majority(), compare=comparisons())
    batch = tuple(make_question(f"q{i}") for i in range(NUM_QUESTIONS))
    questions = Questions(Workload(name="voted", questions=batch, calls=tuple(calls)), graph)
    entries = [make_entry(name, load_s=load_s, tp_degree=2 if name == "T" else 1) for name in "ABT"]
    profiles = dict.fromkeys((PROPOSE, AGGREGATE), make_profile(*entries))
    planner = make_planner(graph, "AB".replace(aggregator, ""), num_workers=3, profiles=profiles)
    controllers = make_controllers(questions, planner)
    return kind.drive(voted, controllers, experts=planner.experts, folder=folder, tick_s=tick_s), questions


def quorum(questions: Questions, planner: Planner) -> Sequence[Controller]:
    return [Layers(questions, planner), Quorum(questions)]


def all_reactions(questions: Questions, planner: Planner) -> Sequence[Controller]:
    forecaster = Forecaster(planner.profiles, planner.cluster)
    overlap = Overlap(questions=questions, planner=planner, forecaster=forecaster)
    return [forecaster, overlap, Quorum(questions), Moves(forecaster), Keeping()]


def assert_each_ends_once_with_its_answer(result: RunResult, questions: Questions) -> None:
    keys = {record.key for record in result.calls}
    assert len(keys) == len(result.calls) == NUM_QUESTIONS * 3 + 4
    assert {record.status for record in result.calls} <= {CallStatus.CANCELLED, CallStatus.FINISHED}
    for question in questions:
        end = walk(questions.graph, *questions.of(question.id)).end().answer
        assert end.answer == ANSWERS[kind_of(CallKey(question.id, PROPOSE, 0))]


def test_a_quorum_loses_no_call_answers_none_twice_and_changes_no_answer(kind, tmp_path):
    """Third calls come late, and are cancelled where the first two agree."""
    result, questions = run(kind, tmp_path, quorum, is_third_late=True)
    assert_each_ends_once_with_its_answer(result, questions)
    ended = {record.key: record.status for record in result.calls}
    cancelled = {key for key, status in ended.items() if status is CallStatus.CANCELLED}
    decided = {CallKey(f"q{i}", PROPOSE, 2) for i in range(0, NUM_QUESTIONS, 3)}
    assert cancelled == decided if kind.one_clock else cancelled <= decided, "on real clocks some may end first"
    resumed, _ = run(kind, tmp_path, quorum, is_third_late=True)
    replay = Replay(result.actions)
    replayed, _ = run(kind, tmp_path / "replayed", lambda *_: [replay], is_third_late=True)
    for again in (resumed, replayed):
        assert {record.key: record.status for record in again.calls} == ended


@pytest.mark.parametrize("aggregator", ["A", "T"])
def test_calls_overlap_and_move_and_each_ends_once_with_the_answer_of_its_question(kind, tmp_path, aggregator):
    """Loads are short, so that any free worker takes calls over; A sits on one worker of three unless they do."""
    options = {"aggregator": aggregator, "load_s": 0.001, "tick_s": 0.05}
    result, questions = run(kind, tmp_path, all_reactions, **options)
    assert_each_ends_once_with_its_answer(result, questions)
    ended = {record.key: record for record in result.calls}
    submitted = {a.command.call.key: a.command.call for a in result.actions if hasattr(a.command, "call")}
    for key, record in ended.items():
        if record.status is CallStatus.FINISHED:
            said = voted(submitted[key])
            assert (record.output_tokens, record.answer) == (said.output_tokens, said.answer)
    if kind.one_clock:  # on real clocks it depends on who is first
        assert any(isinstance(action.command, Move) for action in result.actions), "a free worker took calls over"
    for worker in range(3):
        mine = sorted((s for s in result.sessions if worker in s.workers), key=lambda s: s.load_start_ts)
        assert all(one.end_ts <= two.load_start_ts for one, two in itertools.pairwise(mine))
    resumed, _ = run(kind, tmp_path, all_reactions, **options)
    said = {key: (record.answer, record.output_tokens) for key, record in ended.items() if record.answer}
    again = {record.key: (record.answer, record.output_tokens) for record in resumed.calls}
    assert {key: again[key] for key in said if key in again} == said

"""Overlap and moves, as every backend carries them out: no call is lost, none is answered twice, answers stay."""

import itertools
from pathlib import Path

import pytest

from mosaic.core.commands import Move, Open
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.rule import Majority
from mosaic.pipelines.walk import walk
from mosaic.runtime.layers import Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.moves import Moves
from mosaic.runtime.no_barrier import Keeping, Overlap
from mosaic.runtime.prospects import Measured, Prospects
from mosaic.runtime.quorum import Quorum
from mosaic.runtime.replay import Replay
from tests.answered_questions import make_question
from tests.contracts.test_backend_contract import ANSWERS, Kind, kind_of, voted
from tests.factories import make_call, make_cluster, make_entry, make_expert, make_profile
from tests.runtime.planners import make_planner


def run_reacting(
    kind: Kind, folder: Path, aggregator: str, *, replayed: RunResult | None = None
) -> tuple[RunResult, Questions]:
    """Twelve questions ask A, B and A again; A sits on one worker of three unless calls are moved."""
    calls = [make_call(f"q{i}", expert="ABA"[slot], slot=slot) for i in range(12) for slot in range(3)]
    merger = make_expert(aggregator, tp_degree=2 if aggregator == "T" else 1)
    nodes = (Node(name=PROPOSE), Node(name=AGGREGATE, experts=(merger,), after=(PROPOSE,), when="unsettled"))
    graph = CallGraph(nodes=nodes, rule=Majority(), compare=comparisons())
    batch = Workload(name="voted", questions=tuple(make_question(f"q{i}") for i in range(12)), calls=tuple(calls))
    questions = Questions(batch, graph)
    quick = {"load_s": 0.001}  # so that any free worker takes calls over
    profile = make_profile(make_entry("A", **quick), make_entry("B", **quick), make_entry("T", tp_degree=2, **quick))
    recruited = "AB".replace(aggregator, "")
    planner = make_planner(graph, recruited, num_workers=3, profiles=dict.fromkeys((PROPOSE, AGGREGATE), profile))
    backend = kind.make(voted, experts=planner.experts, cluster=make_cluster(3), folder=folder)
    prospects = Prospects(Measured(planner.profiles, planner.cluster))
    overlap = Overlap(questions=questions, planner=planner, prospects=prospects)
    everybody = [prospects, overlap, Quorum(questions), Moves(prospects), Keeping()]
    if replayed is not None:
        everybody = [Replay(replayed.actions)]
    log = getattr(backend, "log", None)
    return drive(backend, everybody, num_workers=3, log=log, tick_s=0.05), questions


@pytest.mark.parametrize("aggregator", ["A", "T"])
def test_calls_overlap_and_move_and_each_ends_once_with_the_answer_of_its_question(kind, tmp_path, aggregator):
    result, questions = run_reacting(kind, tmp_path, aggregator)
    ended = {record.key: record for record in result.calls}
    assert len(ended) == len(result.calls) == 12 * 3 + 4
    assert {record.status for record in result.calls} <= {CallStatus.CANCELLED, CallStatus.FINISHED}
    for question in questions:
        key = CallKey(question.id, PROPOSE, 0)
        assert walk(questions.graph, *questions.of(question.id)).end().answer.answer == ANSWERS[kind_of(key)]
    for key, record in ended.items():
        if record.status is CallStatus.FINISHED:
            call = next(command.call for command in submits(result) if command.call.key == key)
            assert (record.output_tokens, record.answer) == voted(call)[:2]
    if kind.one_clock:  # on real clocks it depends on who is first
        assert any(isinstance(action.command, Move) for action in result.actions), "a free worker took calls over"
    for worker in range(3):
        mine = sorted((s for s in result.sessions if worker in s.workers), key=lambda s: s.load_start_ts)
        assert all(one.end_ts <= two.load_start_ts for one, two in itertools.pairwise(mine))
    resumed, _ = run_reacting(kind, tmp_path, aggregator)
    said = {key: (record.answer, record.output_tokens) for key, record in ended.items() if record.answer}
    again = {record.key: (record.answer, record.output_tokens) for record in resumed.calls}
    assert {key: again[key] for key in said if key in again} == said


def submits(result: RunResult) -> list:
    return [action.command for action in result.actions if hasattr(action.command, "call")]


def test_an_aggregator_that_answers_too_is_not_loaded_for_its_aggregations(kind, tmp_path):
    result, _ = run_reacting(kind, tmp_path, "A")
    merged = {record.session for record in result.calls if record.key.node == AGGREGATE}
    asked = {record.session for record in result.calls if record.key.node == PROPOSE and record.expert == "A"}
    opened = {action.command.session.id for action in result.actions if isinstance(action.command, Open)}
    assert merged <= asked | opened
    assert all(session.node == PROPOSE for session in result.sessions)

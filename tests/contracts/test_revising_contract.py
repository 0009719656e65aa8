"""New plans where lengths contradict the old one, as backends carry them out: the same answers, each call once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from mosaic.core.commands import Move
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import PROPOSE, Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.rules.rule import Never
from mosaic.runtime.forecaster import Forecaster
from mosaic.runtime.layers import Layers
from mosaic.runtime.no_barrier import Keeping
from mosaic.runtime.revising import Revising
from tests.answered_questions import make_question
from tests.contracts.test_backend_contract import BACKENDS, Kind
from tests.factories import make_call, make_entry, make_profile
from tests.runtime.planners import make_planner
from tests.runtime.replay import Replay

NUM_CALLS = {"A": 120, "B": 48, "C": 30}
LENGTHS = {"A": 120, "B": 20, "C": 20}
"""On average."""


def length_of(name: str, number: int) -> int:
    return LENGTHS[name] // 2 + number * 7919 % LENGTHS[name]


def outcome(call, inputs=None) -> Outcome:
    return Outcome(length_of(call.expert, int(call.key.question[1:])), answer="ABCD"[int(call.key.question[1:]) % 4])


def run_revised(
    kind: Kind, folder: Path, a_scale: float, *, replayed: RunResult | None = None, least_s: float = 0.0
) -> tuple[RunResult, list[Plan]]:
    """Three experts on two workers, planned for an A that writes so many times what it does."""
    calls = [make_call(f"q{i}", expert=name) for name, number in NUM_CALLS.items() for i in range(number)]
    calls = [structs.replace(call, key=call.key._replace(slot="ABC".index(call.expert))) for call in calls]
    graph = CallGraph(nodes=(Node(name=PROPOSE),), rule=Never(), compare=comparisons())
    batch = Workload(name="w", questions=tuple(make_question(f"q{i}") for i in range(120)), calls=tuple(calls))
    questions = Questions(batch, graph)
    scales = {"A": a_scale, "B": 1.0, "C": 1.0}
    entries = [
        replace(
            make_entry(name, load_s=0.001, fixed_s=0.01, per_call_s=0.01 * LENGTHS[name] * scale),
            output_tokens=tuple(max(1, round(scale * length_of(name, i))) for i in range(100)),
        )
        for name, scale in scales.items()
    ]
    planner = make_planner(graph, "ABC", profiles={PROPOSE: make_profile(*entries)})
    forecaster, plans = Forecaster(planner.profiles, planner.cluster), []
    revising = Revising(planner, forecaster, lambda plan, lost: plans.append(plan), least_s=least_s)
    controllers = [forecaster, Layers(questions, planner, closes=False), revising, Keeping()]
    if replayed is not None:
        controllers = [Replay(replayed.actions)]
    run = kind.drive(outcome, controllers, experts=planner.experts, folder=folder, num_workers=2, tick_s=0.02)
    return run, plans


def said(result: RunResult) -> dict[object, tuple[str | None, int]]:
    return {record.key: (record.answer, record.output_tokens) for record in result.calls}


@pytest.mark.parametrize("a_scale", [0.05, 4.0])
def test_a_plan_that_lengths_contradict_loses_no_call_and_changes_no_answer(kind, tmp_path, a_scale):
    result, plans = run_revised(kind, tmp_path, a_scale)
    assert Counter(record.expert for record in result.calls) == NUM_CALLS
    assert {record.status for record in result.calls} == {CallStatus.FINISHED}
    for record in result.calls:
        number = int(record.key.question[1:])
        assert (record.answer, record.output_tokens) == ("ABCD"[number % 4], length_of(record.expert, number))
    ran = [session for session in result.sessions if session.num_calls]
    assert sum(session.num_calls for session in ran) == sum(NUM_CALLS.values())
    if kind.one_clock:
        assert bool(plans) == any(isinstance(action.command, Move) for action in result.actions)
        assert bool(plans) == (a_scale == 0.05)
        replayed, _ = run_revised(kind, tmp_path, a_scale, replayed=result)
        assert (replayed.calls, replayed.sessions) == (result.calls, result.sessions)
    resumed, _ = run_revised(kind, tmp_path, a_scale)
    assert said(resumed) == said(result)


def test_lengths_are_looked_at_no_more_often_than_is_stated(tmp_path):
    _, plans = run_revised(BACKENDS["sim"], tmp_path, 0.05, least_s=1_000.0)
    assert not plans, "the first tick came before any call had ended"

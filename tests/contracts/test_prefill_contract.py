"""Prefill ahead of time, as every backend carries it out: no answer changes, and none of it is an answer."""

from pathlib import Path

import pytest

from mosaic.core.commands import Close, Open, Prefill, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Prefilled
from mosaic.core.plan import Session, unpriced_plan
from mosaic.core.realization import Outcome
from mosaic.core.results import RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey, Workload
from mosaic.pipelines.call_graph import CallGraph, PrefillOrder
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.questions import Questions
from mosaic.runtime.prefill_ahead import PrefillAhead
from mosaic.runtime.servers import Servers
from tests.answered_questions import make_question
from tests.contracts.test_backend_contract import Kind
from tests.controllers import Answers, Watcher
from tests.factories import make_call, make_expert
from tests.runtime.replay import Replay

EXPERTS = [make_expert(name) for name in "ABW"]
SLOTS = ((1, "A"), (0, "B"))
NUM_QUESTIONS = 6
READ = [make_call("q0", expert=expert, slot=slot) for slot, expert in enumerate("AB")]
BEGUN = Call(CallKey("q0", AGGREGATE, 0), "W", 70, after=tuple(call.key for call in READ))


def outcome(call, inputs=None) -> Outcome:
    """B writes more than A, so that there is time to read A ahead."""
    return Outcome({"A": 4, "B": 60, "W": 5}[call.expert] + int(call.key.question[1:]), answer="B")


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ahead")


@pytest.fixture(scope="module")
def ahead(kind, folder) -> RunResult:
    """One run for all tests of a backend."""
    return run(kind, folder)


def run(kind: Kind, folder: Path, *, is_ahead: bool = True, replayed: RunResult | None = None) -> RunResult:
    """Six questions ask A and B, and W reads both."""
    calls = [
        make_call(f"q{i}", expert=expert, slot=slot, ready_s=kind.late_s if is_ahead else 0.0)  # W is up by then
        for i in range(NUM_QUESTIONS)
        for slot, expert in SLOTS
    ]
    nodes = (Node(name=PROPOSE), Node(name=AGGREGATE, experts=(make_expert("W"),), after=(PROPOSE,)))
    order = PrefillOrder(mean_output_tokens={PROPOSE: {"A": 7.0, "B": 63.0}})
    graph = CallGraph(nodes=nodes, compare=comparisons(), prefill_order=order)
    texts = tuple(make_question(f"q{i}") for i in range(NUM_QUESTIONS))
    questions = Questions(Workload(name="read", questions=texts, calls=tuple(calls)), graph)
    ahead = PrefillAhead(questions)
    sessions = [Session(id=n, expert=expert.name, workers=(n,)) for n, expert in enumerate(EXPERTS)]
    servers = Servers(questions=questions, plan=unpriced_plan(sessions, num_workers=len(sessions)), home=ahead.home)
    controllers = [servers, *([ahead] if is_ahead else [])]
    if replayed is not None:
        controllers = [Replay(replayed.actions)]
    return kind.drive(outcome, controllers, experts=EXPERTS, folder=folder)


def said(result: RunResult) -> dict:
    return {record.key: (record.output_tokens, record.answer, record.prompt_tokens) for record in result.calls}


def prefills(result: RunResult) -> list[Prefill]:
    return [action.command for action in result.actions if isinstance(action.command, Prefill)]


def test_every_call_ends_once_and_says_what_it_says_without_prefills(kind, ahead, tmp_path):
    without = run(kind, tmp_path, is_ahead=False)
    assert len(ahead.calls) == 3 * NUM_QUESTIONS
    assert said(ahead) == said(without)
    assert prefills(ahead)
    assert not without.prefills
    assert not prefills(without)
    assert sum(session.num_calls for session in ahead.sessions) == 3 * NUM_QUESTIONS


def test_what_was_prefilled_is_recorded_and_counted(kind, ahead):
    result = ahead
    assert bool(result.prefills) is not kind.is_remote, "servers take no beginnings of prompts"
    for record in result.prefills:
        assert (record.key.node, record.expert, record.session) == (AGGREGATE, "W", 2)
        assert record.cached_tokens + record.computed_tokens <= record.prompt_tokens
        assert record.queued_ts <= record.finished_ts
    ordered = prefills(result)
    assert len(result.prefills) <= len(ordered), "each has one end at most"
    assert {len(command.call.after) for command in ordered} == {2}
    assert all(command.call.after[0].slot == 1 for command in ordered), "the shortest by prediction is read first"
    assert {command.num_read for command in ordered} <= {0, 1}


def test_a_run_that_goes_on_or_is_replayed_says_the_same(kind, folder, ahead, tmp_path):
    first, again = ahead, run(kind, folder)
    replayed = run(kind, tmp_path, replayed=first)
    assert said(first) == said(again) == said(replayed)
    assert set(prefills(replayed)) == set(prefills(first))
    if kind.one_clock:
        assert replayed.prefills == first.prefills
    elif not kind.is_remote:
        assert set(first.prefills) <= set(again.prefills), "what was done before is counted"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Prefill(BEGUN, 7, 0), "session must be one that was opened"),
        (Prefill(Call(BEGUN.key, "A", 70), 2, 0), "call q0/aggregate/0 is for 'A'"),
    ],
)
def test_prefills_that_cannot_be_are_refused(kind, tmp_path, command, message):
    started = [Open(Session(id=2, expert="W", workers=(2,))), Submit(Call(BEGUN.key, "W", 70), 2)]
    with pytest.raises(BackendError, match=message):
        kind.drive(outcome, [Answers({"started": started, "ready 2": [command]})], experts=EXPERTS, folder=tmp_path)


def test_a_prefill_that_comes_too_early_or_too_late_has_no_effect(kind, tmp_path):
    call = Call(BEGUN.key, "W", 70)
    watcher = Watcher()
    opened = Open(Session(id=2, expert="W", workers=(2,)))
    early = [opened, Submit(call, 2), Prefill(BEGUN, 2, 0), Close(2)]
    told = Answers({"started": early, f"finished {call.key}": [Prefill(BEGUN, 2, 1)]})
    result = kind.drive(outcome, [told, watcher], experts=EXPERTS, folder=tmp_path)
    assert [record.key for record in result.calls] == [call.key]
    assert not result.prefills
    assert not [event for event in watcher.events if isinstance(event, Prefilled)]

"""What every backend promises. To add a backend, add it to BACKENDS."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from mosaic.core.errors import BackendError
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, Cancel
from mosaic.core.workload import AGGREGATE, Call, CallKey, PROPOSE
from mosaic.runtime.backend import Backend
from tests.engines.contract_backends import make_fake_executor, make_vllm_executor
from tests.engines.executor_runs import has_vllm
from tests.factories import make_call, make_cluster, make_expert
from tests.sim.cluster_runs import make_backend, make_plan, make_session, some_calls


def make_simulator(outcomes, *, experts, cluster, folder: Path) -> Backend:
    return make_backend(outcomes, experts=experts, cluster=cluster)


class Kind(NamedTuple):
    make: Callable[..., Backend]
    """Takes the true outcomes, ``experts=``, ``cluster=`` and ``folder=``, where a run that was there goes on."""
    late_s: float
    """When late calls are ready: after their session's load, and no longer than a test may wait for it."""
    one_clock: bool
    """Whether finishes on unlike workers are heard in order of time too; real ones are heard as they come."""


BACKENDS = {"sim": Kind(make_simulator, 100.0, True), "executor": Kind(make_fake_executor, 1.5, False)}
if has_vllm():
    BACKENDS["vllm"] = Kind(make_vllm_executor, 12.0, False)


def true_outcome(call):
    return Outcome(3 + 7 * (call.key.slot + len(call.key.question) + int(call.key.question[1:] or 0)) % 40, answer="B")


A, B, T = some_calls("A", 30), some_calls("B", 20), some_calls("T", 5)


class Five(NamedTuple):
    """A run of five sessions.

    A twice on worker 0, B on worker 1, T on both once A's first shard and B are done, and A again at the end.
    """

    backend: Backend
    plan: Plan
    calls: list[Call]
    late: list[Call]
    one_clock: bool

    def execute(self, listener=None):
        return self.backend.execute(self.plan, self.calls, listener)


def make_five(name: str, folder: Path) -> Five:
    kind = BACKENDS[name]
    late = some_calls("A", 4, start=30, ready_s=kind.late_s)
    plan = make_plan(
        make_session(3, A[:20], workers=(0,)),
        make_session(1, B, workers=(1,)),
        make_session(4, T, workers=(0, 1)),
        make_session(0, A[20:], workers=(2,), after=(1,)),
        make_session(2, late, workers=(2,)),
        num_workers=3,
    )
    return Five(make_three(name, folder), plan, [*A, *B, *T, *late], late, kind.one_clock)


def make_three(name: str, folder: Path) -> Backend:
    experts = [make_expert("A"), make_expert("B"), make_expert("T", tp_degree=2)]
    return BACKENDS[name].make(true_outcome, experts=experts, cluster=make_cluster(3), folder=folder)


@pytest.fixture(params=sorted(BACKENDS))
def backend(request, tmp_path) -> Backend:
    return make_three(request.param, tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in BACKENDS}


@pytest.fixture(params=sorted(BACKENDS))
def five(request, folders) -> Five:
    """One folder for all tests of a backend: a backend with a journal runs the five sessions once for all of them."""
    return make_five(request.param, folders[request.param])


@pytest.fixture(params=sorted(BACKENDS))
def fresh_five(request, tmp_path) -> Five:
    return make_five(request.param, tmp_path)


class Watcher:
    def __init__(self, *cancels: tuple[str, CallKey]):
        self.records = []
        self.cancels = dict(cancels)

    def on_finish(self, record):
        self.records.append(record)
        key = self.cancels.get(record.key.question)
        return [] if key is None else [Cancel(key)]


def test_it_has_a_name(backend):
    assert backend.name


def test_every_call_is_recorded_exactly_once(five):
    plan = five.plan
    result = five.execute()
    assert sorted(record.key for record in result.calls) == sorted(call.key for call in five.calls)
    session_of = {key: session for session in plan.sessions for key in session.shard}
    for record in result.calls:
        session = session_of[record.key]
        assert (record.session, record.expert, record.workers) == (session.id, session.expert, session.workers)


def test_what_came_out_is_what_would_really_happen(five):
    by_key = {record.key: record for record in five.execute().calls}
    for call in five.calls:
        record = by_key[call.key]
        assert (record.output_tokens, record.answer) == (true_outcome(call).output_tokens, "B")
        assert (record.prompt_tokens, record.status) == (call.prompt_tokens, CallStatus.FINISHED)


def test_a_call_lives_in_order_and_inside_its_session(five):
    result = five.execute()
    sessions = {record.session: record for record in result.sessions}
    ready_s = {call.key: call.ready_s for call in five.calls}
    for record in result.calls:
        session = sessions[record.session]
        assert ready_s[record.key] <= record.queued_ts
        assert session.start_ts <= record.queued_ts <= record.admitted_ts
        assert record.admitted_ts <= record.first_token_ts <= record.finished_ts <= session.end_ts


def test_sessions_count_their_calls_and_tokens(five):
    plan = five.plan
    result = five.execute()
    assert [record.session for record in result.sessions] == [session.id for session in plan.sessions]
    for record in result.sessions:
        mine = [call for call in result.calls if call.session == record.session]
        assert record.num_calls == len(mine)
        assert record.output_tokens == sum(call.output_tokens for call in mine)
        assert record.load_start_ts + record.load_s <= record.start_ts + 1e-9


def test_workers_serve_their_sessions_one_after_the_other_in_the_plans_order(five):
    plan = five.plan
    result = five.execute()
    assert result.num_workers == 3
    for worker in range(3):
        mine = [record for record in result.sessions if worker in record.workers]
        assert [record.session for record in mine] == [session.id for session in plan.worker_queue(worker)]
        for before, behind in pairwise(mine):
            assert before.end_ts <= behind.load_start_ts


def test_a_session_waits_for_those_it_follows(five):
    sessions = {record.session: record for record in five.execute().sessions}
    assert sessions[0].load_start_ts >= sessions[1].end_ts


def test_the_order_of_the_plan_binds_and_not_the_ids(backend):
    first, second = make_session(9, A[:5]), make_session(1, B[:5])
    result = backend.execute(make_plan(first, second, num_workers=3), [*A[:5], *B[:5]])
    assert [record.session for record in result.sessions] == [9, 1]
    assert result.sessions[0].end_ts <= result.sessions[1].load_start_ts


def test_an_expert_that_stays_on_its_workers_loads_once(backend):
    plan = make_plan(
        make_session(0, A[:5]), make_session(1, A[5:10]), make_session(2, B[:5]), make_session(3, A[10:]), num_workers=3
    )
    first, again, other, back = backend.execute(plan, [*A, *B[:5]]).sessions
    assert first.load_s > 0
    assert again.load_s == 0
    assert again.start_ts == again.load_start_ts == first.end_ts
    assert other.load_s > 0
    assert back.load_s > 0


def test_a_call_that_is_not_ready_waits_in_its_session(five):
    result = five.execute()
    session = next(record for record in result.sessions if record.session == 2)
    late = [record for record in result.calls if record.session == 2]
    assert session.start_ts < five.late[0].ready_s
    assert all(record.queued_ts == five.late[0].ready_s for record in late)


def test_the_same_plan_twice_gives_the_same_records(five):
    assert five.execute() == five.execute()


def test_a_listener_hears_every_finish_in_order_of_time(fresh_five):
    watcher = Watcher()
    result = fresh_five.execute(watcher)
    assert sorted(watcher.records) == sorted(result.calls)
    for session in [None] if fresh_five.one_clock else range(5):
        heard = [record.finished_ts for record in watcher.records if session in (None, record.session)]
        assert heard == sorted(heard)


def test_a_listener_that_does_nothing_changes_nothing(five):
    assert five.execute(Watcher()) == five.execute()


def test_a_cancelled_call_is_recorded_and_the_action_kept(fresh_five):
    watcher = Watcher(("A3", fresh_five.late[0].key), ("B2", T[1].key))
    result = fresh_five.execute(watcher)
    assert {(action.kind, action.call) for action in result.actions} == {
        ("cancel", fresh_five.late[0].key),
        ("cancel", T[1].key),
    }
    cancelled = {record.key: record for record in result.calls if record.status is CallStatus.CANCELLED}
    assert {action.call: action.ts for action in result.actions} == {
        key: record.finished_ts for key, record in cancelled.items()
    }
    assert len(result.calls) == len(fresh_five.calls)
    assert cancelled.keys().isdisjoint(record.key for record in watcher.records)


def test_cancelling_what_has_finished_does_nothing(five):
    result = five.execute(Watcher(("B19", B[19].key), ("A3", A[3].key)))
    assert result.actions == ()
    assert all(record.status is CallStatus.FINISHED for record in result.calls)


# The second stage: the aggregator's calls need those of an earlier run, and its session spans four workers.

MERGED = [
    make_call(
        f"q{i}", expert="W", node=AGGREGATE, after=tuple(CallKey(f"q{i}", PROPOSE, s) for s in range(i % 4))
    )
    for i in range(12)
]


def merged_outcome(call):
    """An aggregator's outcome follows what its call needs."""
    return Outcome(5 + 10 * len(call.after), answer="ABCD"[len(call.after)], visible_tokens=4)


@pytest.fixture(params=sorted(BACKENDS))
def aggregating(request, tmp_path) -> Backend:
    experts = [make_expert("A"), make_expert("W", tp_degree=4)]
    return BACKENDS[request.param].make(merged_outcome, experts=experts, cluster=make_cluster(4), folder=tmp_path)


def merge_plan(*shards) -> Plan:
    return make_plan(
        *(
            replace(make_session(number, shard, workers=(0, 1, 2, 3)), node=AGGREGATE)
            for number, shard in enumerate(shards)
        ),
        num_workers=4,
    )


def test_calls_that_need_an_earlier_run_are_served_over_four_workers(aggregating):
    result = aggregating.execute(merge_plan(MERGED), MERGED)
    (session,) = result.sessions
    assert (session.expert, session.node, session.workers) == ("W", AGGREGATE, (0, 1, 2, 3))
    assert (session.num_calls, session.load_s > 0) == (12, True)
    assert sorted(record.key for record in result.calls) == sorted(call.key for call in MERGED)
    for record in result.calls:
        assert (record.workers, record.status) == ((0, 1, 2, 3), CallStatus.FINISHED)
        assert session.start_ts <= record.admitted_ts <= record.finished_ts <= session.end_ts


def test_what_a_call_needs_reaches_its_outcome(aggregating):
    records = {record.key: record for record in aggregating.execute(merge_plan(MERGED), MERGED).calls}
    for call in MERGED:
        record = records[call.key]
        assert (record.output_tokens, record.answer, record.visible_tokens) == merged_outcome(call)


def test_an_aggregator_that_stays_on_its_workers_loads_once(aggregating):
    first, second = aggregating.execute(merge_plan(MERGED[:7], MERGED[7:]), MERGED).sessions
    assert (first.load_s > 0, second.load_s) == (True, 0)
    assert first.end_ts <= second.load_start_ts


def test_a_call_cannot_need_one_of_the_same_run(aggregating):
    needed = make_call("q1", expert="A")
    sessions = make_session(0, [needed]), make_session(1, MERGED, workers=(0, 1, 2, 3))
    with pytest.raises(BackendError, match="q1/aggregate/0: after must name calls of an earlier run, got q1/propose/0"):
        aggregating.execute(make_plan(*sessions, num_workers=4), [needed, *MERGED])


@pytest.mark.parametrize("workers", [(0,), (0, 1), (0, 1, 2)])
def test_fewer_workers_than_the_aggregator_spans_are_refused(aggregating, workers):
    plan = make_plan(make_session(0, MERGED, workers=workers), num_workers=4)
    with pytest.raises(BackendError, match=r"as many as tp_degree 4, got \(0"):
        aggregating.execute(plan, MERGED)


UNKNOWN = make_call("q0", expert="A", node=AGGREGATE)


@pytest.mark.parametrize(
    ("plan", "calls", "message"),
    [
        (make_plan(make_session(0, some_calls("Z", 1))), some_calls("Z", 1), r"expert must be one of .*, got 'Z'"),
        (make_plan(make_session(0, [*A, UNKNOWN])), A, "call q0/aggregate/0 is not one of the calls"),
        (make_plan(make_session(0, A), make_session(1, A[:1])), A, "call A0/propose/0 is not .* or is served twice"),
        (make_plan(make_session(0, [A[0], B[0]])), [A[0], B[0]], "call B0/propose/0 is for 'B'"),
        (make_plan(make_session(0, A)), [*A, *B], "plan drops 20 calls, the first of them B0"),
        (make_plan(make_session(0, A)), [*A, A[0]], "key must be unique"),
        (make_plan(make_session(0, A, workers=(3,))), A, r"worker must be one of 0 .. 2 of .*, got 3"),
        (make_plan(make_session(0, A, workers=(0, 1))), A, r"as many as tp_degree 1, got \(0, 1\)"),
        (make_plan(make_session(0, A, after=(7,))), A, "after must name sessions of the plan, got 7"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(backend, plan, calls, message):
    with pytest.raises(BackendError, match=message):
        backend.execute(plan, calls)


def test_a_listener_cannot_cancel_what_does_not_exist(five):
    with pytest.raises(BackendError, match="Cancel must name a call of the plan, got q0/aggregate/0"):
        five.execute(Watcher(("A3", UNKNOWN.key)))

"""What every backend promises. To add a backend, add it to BACKENDS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from mosaic.core.commands import Cancel, Close, Command, Cut, Move, Open, Submit
from mosaic.core.errors import BackendError
from mosaic.core.events import Closed, Idle, Ready, Started, Tick
from mosaic.core.plan import Plan, Session
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey, Expert
from mosaic.runtime.backend import Backend
from mosaic.runtime.loop import drive
from mosaic.runtime.static_plan import execute
from tests.controllers import Answers, Watcher
from tests.engines.contract_backends import make_fake_executor, make_fake_servers, make_vllm_executor
from tests.engines.executor_runs import has_vllm
from tests.factories import make_call, make_cluster, make_expert, make_plan, make_session, some_calls, worker_queue
from tests.runtime.replay import Replay
from tests.sim.cluster_runs import make_backend


def make_simulator(outcomes, *, experts, cluster, folder: Path) -> Backend:
    return make_backend(outcomes, experts=experts, cluster=cluster)


class Kind(NamedTuple):
    make: Callable[..., Backend]
    """Takes the true outcomes, ``experts=``, ``cluster=`` and ``folder=``, where a run that was there goes on."""
    late_s: float
    """When late calls are ready: after their session's load, and no longer than a test may wait for it."""
    one_clock: bool
    """Whether finishes on unlike workers are heard in order of time too; real ones are heard as they come."""
    is_remote: bool = False
    """Servers load nothing, and tell when a response is whole what it holds: no first token, no thinking apart."""

    def drive(
        self, outcomes, controllers, *, experts: Sequence[Expert], folder: Path, num_workers: int = 3, tick_s=None
    ) -> RunResult:
        """Run what controllers want; commands go into the log that a backend may have."""
        backend = self.make(outcomes, experts=experts, cluster=make_cluster(num_workers), folder=folder)
        log = getattr(backend, "log", None)
        return drive(backend, controllers, num_workers=num_workers, log=log, tick_s=tick_s)


BACKENDS = {
    "sim": Kind(make_simulator, 100.0, True),
    "executor": Kind(make_fake_executor, 1.0, False),
    "servers": Kind(make_fake_servers, 1.0, False, is_remote=True),
}
if has_vllm():
    BACKENDS["vllm"] = Kind(make_vllm_executor, 18.0, False)
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "vllm" else []) for name in sorted(BACKENDS)]


def true_outcome(call, inputs=None):
    tokens = 3 + 7 * (call.key.slot + len(call.key.question) + int(call.key.question[1:] or 0)) % 40
    return Outcome(tokens, answer="B", visible_tokens=2)


A, B = some_calls("A", 30), some_calls("B", 20)
T = [make_call(f"T{i}", expert="T", node=AGGREGATE, after=(CallKey("earlier", PROPOSE, i),)) for i in range(5)]
"""They need calls of an earlier run."""


class Five(NamedTuple):
    """A run of five sessions.

    A twice on worker 0, B on worker 1, T on both once A's first shard and B are done, and A again at the end.
    """

    name: str
    folder: Path
    plan: Plan
    calls: list[Call]
    late: list[Call]

    def execute(self, *controllers) -> RunResult:
        return execute(self.plan, self.calls, make_three(BACKENDS[self.name], self.folder), controllers)

    @property
    def one_clock(self) -> bool:
        return BACKENDS[self.name].one_clock

    @property
    def is_remote(self) -> bool:
        return BACKENDS[self.name].is_remote


def make_five(name: str, folder: Path) -> Five:
    late = some_calls("A", 4, start=30, ready_s=BACKENDS[name].late_s)
    plan = make_plan(
        make_session(3, A[:20], workers=(0,)),
        make_session(1, B, workers=(1,)),
        replace(make_session(4, T, workers=(0, 1)), node=AGGREGATE),
        make_session(0, A[20:], workers=(2,), after=(1,)),
        make_session(2, late, workers=(2,)),
        num_workers=3,
    )
    return Five(name, folder, plan, [*A, *B, *T, *late], late)


def make_three(kind: Kind, folder: Path) -> Backend:
    experts = [make_expert("A"), make_expert("B"), make_expert("T", tp_degree=2)]
    return kind.make(true_outcome, experts=experts, cluster=make_cluster(3), folder=folder)


@pytest.fixture
def backend(kind, tmp_path) -> Backend:
    return make_three(kind, tmp_path)


@pytest.fixture(params=NAMES, scope="module")
def five(request, tmp_path_factory) -> Five:
    return make_five(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def watcher() -> Watcher:
    """Who hears what happens in the one run of the five sessions that the tests of a backend share."""
    return Watcher()


@pytest.fixture(scope="module")
def result(five, watcher) -> RunResult:
    watcher.events.clear()
    return five.execute(watcher)


@pytest.fixture(scope="module")
def cancelled(five, tmp_path_factory) -> RunResult:
    """A run in which two calls that wait are cancelled when others finish."""
    table = {f"finished {A[3].key}": [Cancel(five.late[0].key)], f"finished {B[2].key}": [Cancel(T[1].key)]}
    return five._replace(folder=tmp_path_factory.mktemp("cancelled")).execute(Answers(table))


def test_every_call_is_recorded_exactly_once(five, result):
    plan = five.plan
    assert sorted(record.key for record in result.calls) == sorted(call.key for call in five.calls)
    session_of = {key: session for session in plan.sessions for key in session.shard}
    for record in result.calls:
        session = session_of[record.key]
        assert (record.session, record.expert, record.workers) == (session.id, session.expert, session.workers)


def test_what_came_out_is_what_would_really_happen(five, result):
    by_key = {record.key: record for record in result.calls}
    for call in five.calls:
        record = by_key[call.key]
        assert (record.output_tokens, record.answer) == (true_outcome(call).output_tokens, "B")
        assert (record.prompt_tokens, record.status) == (call.prompt_tokens, CallStatus.FINISHED)
        assert record.visible_tokens == (record.output_tokens if five.is_remote else 2)


def test_a_call_lives_in_order_and_inside_its_session(five, result):
    sessions = {record.session: record for record in result.sessions}
    ready_s = {call.key: call.ready_s for call in five.calls}
    for record in result.calls:
        session = sessions[record.session]
        assert ready_s[record.key] <= record.queued_ts
        assert session.start_ts <= record.queued_ts <= record.admitted_ts
        assert record.admitted_ts <= record.finished_ts <= session.end_ts
        if five.is_remote:
            assert record.first_token_ts is None
        else:
            assert record.admitted_ts <= record.first_token_ts <= record.finished_ts


def test_sessions_count_their_calls_and_tokens(five, result):
    plan = five.plan
    for record, session in zip(result.sessions, plan.sessions, strict=True):
        assert (record.session, record.expert, record.node) == (session.id, session.expert, session.node)
        mine = [call for call in result.calls if call.session == record.session]
        assert record.num_calls == len(mine)
        assert record.output_tokens == sum(call.output_tokens for call in mine)
        assert record.load_start_ts + record.load_s <= record.start_ts + 1e-9


def test_workers_serve_their_sessions_one_after_the_other_in_the_plans_order(five, result):
    plan = five.plan
    assert result.num_workers == 3
    for worker in range(3):
        mine = [record for record in result.sessions if worker in record.workers]
        assert [record.session for record in mine] == [session.id for session in worker_queue(plan, worker)]
        for before, behind in pairwise(mine):
            assert before.end_ts <= behind.load_start_ts


def test_a_session_waits_for_those_it_follows(five, result):
    sessions = {record.session: record for record in result.sessions}
    assert sessions[0].load_start_ts >= sessions[1].end_ts


def test_the_order_of_the_plan_binds_and_not_the_ids(backend):
    assert backend.name
    first, second = make_session(9, A[:5]), make_session(1, B[:5])
    result = execute(make_plan(first, second, num_workers=3), [*A[:5], *B[:5]], backend)
    assert [record.session for record in result.sessions] == [9, 1]
    assert result.sessions[0].end_ts <= result.sessions[1].load_start_ts


def test_an_expert_that_stays_on_its_workers_loads_once(kind, backend):
    plan = make_plan(
        make_session(0, A[:5]), make_session(1, A[5:10]), make_session(2, B[:5]), make_session(3, A[10:]), num_workers=3
    )
    first, again, other, back = execute(plan, [*A, *B[:5]], backend).sessions
    assert again.load_s == 0
    assert again.start_ts == again.load_start_ts == first.end_ts
    assert [session.load_s > 0 for session in (first, other, back)] == [not kind.is_remote] * 3


def test_a_call_that_is_not_ready_waits_in_its_session(five, result):
    session = next(record for record in result.sessions if record.session == 2)
    ready_s = five.late[0].ready_s
    assert session.start_ts < ready_s or not five.one_clock, "a slow machine may bring a real session up later"
    for record in result.calls:
        if record.session == 2:
            assert record.queued_ts == ready_s if session.start_ts < ready_s else record.queued_ts >= session.start_ts


def test_the_same_plan_twice_gives_the_same_records_whoever_listens(five, result):
    again = five.execute()
    assert (again.calls, again.sessions) == (result.calls, result.sessions)


def test_a_listener_hears_every_finish_in_order_of_time(five, result, watcher):
    assert sorted(watcher.records, key=str) == sorted(result.calls, key=str)
    for session in [None] if five.one_clock else range(5):
        heard = [record.finished_ts for record in watcher.records if session in (None, record.session)]
        assert heard == sorted(heard)


def test_a_run_begins_and_every_worker_ends_idle(result, watcher):
    assert watcher.events[0] == Started(watcher.events[0].ts)
    assert len(watcher.all(Started)) == 1
    assert {event.worker for event in watcher.all(Idle)} == {0, 1, 2}
    ready_ts = {session.session: session.start_ts for session in result.sessions}
    assert {event.session: event.ts for event in watcher.all(Ready)} == ready_ts
    closed = {event.record.session: event.record for event in watcher.all(Closed)}
    assert [closed[session.session] for session in result.sessions] == list(result.sessions)


def test_a_cancelled_call_is_recorded_and_the_action_kept(five, cancelled):
    cancels = {action.command.key: action for action in cancelled.actions if isinstance(action.command, Cancel)}
    assert cancels.keys() == {five.late[0].key, T[1].key}
    assert {action.cause for action in cancels.values()} == {"finished A3/propose/0", "finished B2/propose/0"}
    records = {record.key: record for record in cancelled.calls if record.status is CallStatus.CANCELLED}
    assert records.keys() == cancels.keys()
    for key, record in records.items():
        assert record.finished_ts >= cancels[key].ts - 1e-9
    assert len(cancelled.calls) == len(five.calls)


def test_a_log_replayed_gives_the_same_records(five, cancelled, tmp_path):
    replayed = drive(make_three(BACKENDS[five.name], tmp_path), [Replay(cancelled.actions)], num_workers=3)
    if five.one_clock:
        assert replayed == cancelled
    plain = [[(r.key, r.status, r.answer, r.session) for r in run.calls] for run in (cancelled, replayed)]
    assert sorted(plain[0]) == sorted(plain[1])


# Reactions: sessions are opened, fed, closed and left while others run.


def open_ended(number: int, expert: str, *workers: int) -> Session:
    return Session(id=number, expert=expert, workers=workers)


OPENED = Open(open_ended(0, "A", 0))


def answer(backend: Backend, table: Mapping[str, Sequence[Command]], *controllers, **options) -> RunResult:
    """Give the commands of a table, by the name of the event that they answer."""
    return drive(backend, [Answers(table), *controllers], num_workers=3, **options)


def statuses(result: RunResult) -> dict[str, str]:
    return {record.key.question: record.status.value for record in result.calls}


def test_sessions_are_opened_fed_and_closed_while_a_run_goes_on(backend):
    first, more, other = A[0], A[1:4], B[:3]
    submits = [*(Submit(call, 0) for call in more), *(Submit(call, 1) for call in other)]
    behind = [Open(open_ended(1, "B", 1)), *submits, Close(1)]
    result = answer(backend, {"started": [OPENED, Submit(first, 0)], f"finished {first.key}": behind})
    assert statuses(result) == dict.fromkeys(["A0", "A1", "A2", "A3", "B0", "B1", "B2"], "finished")
    one, two = result.sessions
    assert (one.num_calls, two.num_calls, two.workers) == (4, 3, (1,))
    by_key = {record.key: record for record in result.calls}
    assert two.load_start_ts >= by_key[first.key].finished_ts
    assert all(by_key[call.key].queued_ts >= by_key[first.key].finished_ts for call in more)


def test_sessions_of_an_expert_share_its_queue(backend):
    calls = A[:12]
    submitted = [Submit(call, "A") for call in calls]
    result = answer(backend, {"started": [*submitted, OPENED, Open(open_ended(1, "A", 1))]})
    assert statuses(result) == {call.key.question: "finished" for call in calls}
    assert sum(session.num_calls for session in result.sessions) == 12
    assert [session.session for session in result.sessions] == [0, 1]


def test_a_call_that_waits_in_its_experts_queue_can_be_cancelled(backend):
    result = answer(backend, {"started": [Submit(A[0], "A"), Submit(A[1], "A"), Cancel(A[0].key), OPENED]})
    assert statuses(result) == {"A0": "cancelled", "A1": "finished"}
    cancelled = next(record for record in result.calls if record.status is CallStatus.CANCELLED)
    assert (cancelled.output_tokens, cancelled.session, cancelled.workers) == (0, -1, ())


def test_a_call_goes_on_in_another_session(backend):
    """A1 waits behind the load of worker 0's second session and moves to worker 1; A2 moves while it may run."""
    moving = [A[1], A[2]]
    submits = [*(Submit(call, 0) for call in moving), Submit(A[0], 1)]
    started = [OPENED, Open(open_ended(1, "A", 1)), *submits, Move(A[1].key, 1)]
    result = answer(backend, {"started": started, "ready 1": [Move(A[2].key, 1)]})
    assert statuses(result) == {"A0": "finished", "A1": "finished", "A2": "finished"}
    by_key = {record.key: record for record in result.calls}
    assert (by_key[A[1].key].session, by_key[A[1].key].workers) == (1, (1,))
    for call in moving:
        assert by_key[call.key].output_tokens == true_outcome(call).output_tokens


def test_moving_and_cutting_what_has_ended_does_nothing(backend):
    late = [Move(A[0].key, 1), Cut(A[0].key, 1), Cancel(A[0].key), Close(0), Close(0)]
    started = [OPENED, Open(open_ended(1, "A", 1)), Submit(A[0], 0)]
    result = answer(backend, {"started": started, f"finished {A[0].key}": late})
    (record,) = result.calls
    assert (record.session, record.status) == (0, CallStatus.FINISHED)
    assert record.output_tokens == true_outcome(A[0]).output_tokens


def test_a_call_that_is_cut_has_no_answer(backend):
    longest = max(A, key=lambda call: true_outcome(call).output_tokens)
    assert true_outcome(longest).output_tokens > 10
    result = answer(backend, {"started": [OPENED, Submit(longest, 0), Cut(longest.key, 5)]})
    (record,) = result.calls
    assert (record.status, record.answer) == (CallStatus.CUT, None)
    assert 5 <= record.output_tokens <= 7


def test_a_session_that_loses_all_its_calls_is_never_loaded(backend):
    started = [OPENED, Submit(A[0], 0), Close(0), Open(open_ended(1, "B", 0)), Submit(B[0], 1), Close(1)]
    result = answer(backend, {"started": started, "ready 0": [Cancel(B[0].key)]})
    assert [session.session for session in result.sessions] == [0]
    assert statuses(result) == {"A0": "finished", "B0": "cancelled"}


def test_ticks_come_while_a_run_lasts(backend):
    watcher = Watcher()
    started = [OPENED, *(Submit(call, 0) for call in A)]
    answer(backend, {"started": started}, watcher, tick_s=0.005)  # a quiet machine serves all in less than 0.05 s
    ticks = [event.ts for event in watcher.events if isinstance(event, Tick)]
    assert ticks
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([Open(open_ended(0, "Z", 0))], r"expert must be one of .*, got 'Z'"),
        ([Open(open_ended(0, "A", 3))], r"worker must be one of 0 .. 2 of .*, got 3"),
        ([OPENED, Open(open_ended(0, "A", 1))], "session 0 of 'A': id must be one that no session has"),
        ([Open(replace(open_ended(0, "A", 0), after=(7,)))], "after: session must be one that was opened, got 7"),
        ([Submit(A[0], 7)], "session must be one that was opened and not closed, got 7"),
        ([OPENED, Submit(B[0], 0)], "call B0/propose/0 is for 'B'"),
        ([Submit(B[0], "A")], "call B0/propose/0 is for 'B'"),
        ([OPENED, Close(0), Submit(A[0], 0)], "session must be one that was opened and not closed, got 0"),
        ([Cancel(A[0].key)], "command must name a call that was submitted, got A0/propose/0"),
        ([Close(7)], "session must be one that was opened, got 7"),
        ([Submit(A[0], "A")], r"calls wait for sessions of \['A'\], and none is open"),
        ([OPENED, Submit(A[0], 0), Submit(A[0], 0)], "call A0/propose/0 (was submitted and has not ended|must be new)"),
        (
            [OPENED, Submit(A[0], 0), Move(A[0].key, 1)],
            "A0/propose/0: session must be one that was opened and not closed, got 1",
        ),
        ([OPENED, Submit(A[0], 0), Open(open_ended(1, "B", 1)), Move(A[0].key, 1)], "A0/propose/0 is for 'A'"),
    ],
)
def test_commands_that_cannot_be_carried_out_are_refused(backend, commands, message):
    with pytest.raises(BackendError, match=message):
        answer(backend, {"started": commands})

"""What is particular to the simulated backend; what every backend promises is in tests/contracts."""

import gc
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import simpy
from hypothesis import example, given
from hypothesis import strategies as st

from mosaic.core.commands import Cancel, Open, Submit
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.errors import BackendError
from mosaic.core.kv_memory import activation_bytes, kv_capacity_tokens
from mosaic.core.plan import Session, unpriced_plan
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.core.workload import Prefix
from mosaic.planning.problem import Request
from mosaic.runtime.loop import drive
from mosaic.runtime.static_plan import execute
from sim.cluster.backend import SimBackend
from sim.cluster.clock import wait_until
from sim.cluster.session_times import SimulatedSessions
from tests.controllers import Answers, cancel_on
from tests.factories import (
    make_call,
    make_cluster,
    make_expert,
    make_gpu,
    make_mixed_cluster,
    make_plan,
    make_session,
    some_calls,
)
from tests.run_records import make_record
from tests.sim.cluster_runs import LinearHardware, by_key, linear_times, make_backend
from tests.sim.oracle import LinearTime
from tests.sim.random_runs import committed_hardware
from tests.sim.test_moe_time import make_sparse_shape, sparse_hardware

ONE_SECOND = LinearHardware(
    load=10.0,
    time=LinearTime(base_s=1.0, per_seq_s=0.0, per_kv_token_s=0.0, per_prefill_token_s=0.0, per_prefill_pair_s=0.0),
)


def lengths(table):
    return lambda call, inputs: Outcome(table[call.key.question], "B", 1)


def run(table, *sessions, calls, controllers=(), unload_s=0.0, **changes):
    backend = make_backend(lengths(table), hardware=replace(ONE_SECOND, unload_s=unload_s), **changes)
    result = execute(make_plan(*sessions), calls, backend, controllers)
    return result, {record.key.question: record for record in result.calls}


@given(st.floats(0, 1e6), st.floats(0, 1e6))
@example(0.9410000000000001, 3.040999999999999)  # now + (ts - now) is a tie that rounds to another float
def test_the_clock_shows_exactly_the_instant_that_was_waited_for(start, ts):
    start, ts = sorted([start, ts])
    env = simpy.Environment(initial_time=start)
    env.run(until=env.process(wait_until(env, ts)))
    assert env.now == ts


def test_loads_sessions_and_calls_are_where_they_should_be_on_the_clock():
    first, second = some_calls("A", 2), some_calls("B", 1)
    result, records = run(
        {"A0": 3, "A1": 5, "B0": 2}, make_session(0, first), make_session(1, second), calls=[*first, *second]
    )
    one, two = result.sessions
    assert (one.load_start_ts, one.load_s, one.start_ts, one.end_ts) == (0.0, 10.0, 10.0, 15.0)
    assert (two.load_start_ts, two.load_s, two.start_ts, two.end_ts) == (15.0, 10.0, 25.0, 27.0)
    assert (one.num_calls, one.output_tokens) == (2, 8)
    assert [record.key.question for record in result.calls] == ["A0", "A1", "B0"]
    assert (records["A0"].queued_ts, records["A0"].first_token_ts, records["A0"].finished_ts) == (10.0, 11.0, 13.0)


@pytest.mark.parametrize(("settings", "cached_tokens"), [({}, 64), ({"enable_prefix_caching": False}, 0)])
def test_calls_find_what_their_prompts_share(settings, cached_tokens):
    options = EngineOptions(order=Order.MIXED, **settings)
    calls = [make_call(name, prefix=Prefix(("a", "b"), 32)) for name in ("q0", "q1")]
    _, by_name = run({"q0": 3, "q1": 3}, make_session(0, calls), calls=calls, settings=options)
    assert [by_name[name].cached_tokens for name in ("q0", "q1")] == [0, cached_tokens]


def test_a_gang_loads_when_its_last_worker_is_free():
    short, long, gang = some_calls("A", 1), some_calls("B", 1), some_calls("T", 1)
    result, _ = run(
        {"A0": 2, "B0": 20, "T0": 4},
        make_session(0, short, workers=(0,)),
        make_session(1, long, workers=(1,)),
        make_session(2, gang, workers=(0, 1)),
        calls=[*short, *long, *gang],
    )
    assert (result.sessions[2].load_start_ts, result.sessions[2].load_s) == (30.0, 5.0)


def test_another_expert_is_unloaded_first_the_same_one_stays_and_on_other_workers_it_loads_again():
    shards = [some_calls(*shard, start=start) for *shard, start in (("A", 1, 0), ("B", 1, 0), ("B", 1, 1), ("B", 1, 2))]
    workers, after = [(0,), (0,), (0,), (1,)], [(), (), (), (2,)]
    result, _ = run(
        dict.fromkeys(("A0", "B0", "B1", "B2"), 2),
        *(make_session(i, shard, workers=workers[i], after=after[i]) for i, shard in enumerate(shards)),
        calls=[call for shard in shards for call in shard],
        unload_s=7.0,
    )
    assert [(one.load_start_ts, one.load_s, one.end_ts) for one in result.sessions] == [
        (0.0, 10.0, 12.0), (19.0, 10.0, 31.0), (31.0, 0.0, 33.0), (33.0, 10.0, 45.0)
    ]  # fmt: skip


def test_what_served_the_calls_before_is_unloaded_first():
    calls = some_calls("A", 1)
    key = some_calls("B", 1)[0].key
    for earlier, load_start_ts in (({}, 0.0), ({key: make_record("B0")}, 7.0)):
        result, _ = run({"A0": 2}, make_session(0, calls), calls=calls, unload_s=7.0, earlier=earlier)
        assert result.sessions[0].load_start_ts == load_start_ts


def cut_at_50(outcome, prompt_tokens=20):
    """The record of one call to an expert that may write 50 tokens in a context of 120."""
    expert = make_expert("A", max_output_tokens=50, context_tokens=120)
    calls = [make_call("q0", prompt_tokens=prompt_tokens)]
    backend = make_backend(lambda call, inputs: outcome, experts=[expert])
    (record,) = execute(make_plan(make_session(0, calls)), calls, backend).calls
    assert record.status is CallStatus.FINISHED
    return record


@pytest.mark.parametrize(
    ("output_tokens", "visible_tokens", "expected"),
    [
        (49, None, (49, "B", None)),
        (49, 12, (49, "B", 12)),
        (50, None, (50, None, None)),
        (50, 12, (50, None, 0)),
        (9000, 12, (50, None, 0)),
        (9000, 0, (50, None, 0)),
    ],
)
def test_a_response_cut_off_at_the_limit_has_no_answer_and_nothing_visible_but_its_thinking(
    output_tokens, visible_tokens, expected
):
    record = cut_at_50(Outcome(output_tokens, "B", visible_tokens))
    assert (record.output_tokens, record.answer, record.visible_tokens) == expected


@pytest.mark.parametrize(("prompt_tokens", "answer"), [(79, "B"), (80, None), (119, None)])
def test_the_end_of_the_context_cuts_off_too(prompt_tokens, answer):
    record = cut_at_50(Outcome(40, "B", 5), prompt_tokens)
    assert record.output_tokens == min(40, 120 - prompt_tokens)
    assert (record.answer, record.visible_tokens) == (answer, 5 if answer else 0)


def run_cancelled(table, *sessions, victims, when="A0", **changes):
    """Run sessions in which some calls, by question, are cancelled once another has finished."""
    calls = {call.key.question: call for _, shard in sessions for call in shard}
    cancels = cancel_on(calls[when].key, *(calls[victim].key for victim in victims))
    planned = [make_session(number, shard, workers=(worker,)) for number, (worker, shard) in enumerate(sessions)]
    return run(table, *planned, calls=list(calls.values()), controllers=[cancels], **changes)


class TestCancelling:
    def test_a_running_call_on_another_worker_frees_it_at_once(self):
        sessions = (0, some_calls("A", 1)), (1, some_calls("B", 1))
        result, records = run_cancelled({"A0": 4, "B0": 100}, *sessions, victims=["B0"])
        record = records["B0"]
        assert (record.status, record.finished_ts, record.output_tokens) == (CallStatus.CANCELLED, 14.0, 4)
        assert record.wasted_tokens > 0
        assert (record.answer, record.visible_tokens) == (None, None)
        assert (records["A0"].answer, records["A0"].visible_tokens) == ("B", 1)
        assert [session.end_ts for session in result.sessions] == [14.0, 14.0]
        assert (result.sessions[1].num_calls, result.sessions[1].output_tokens) == (0, 0)
        assert result.actions[-1] == (14.0, f"finished {records['A0'].key}", Cancel(record.key))

    def test_the_iteration_under_way_on_another_worker_ends_first(self):
        late = [*some_calls("B", 1, ready_s=10.5), *some_calls("B", 1, start=1, ready_s=12.0)]
        table, one = {"A0": 4, "B0": 100, "B1": 2}, EngineOptions(max_num_seqs=1)
        result, records = run_cancelled(table, (0, some_calls("A", 1)), (1, late), victims=["B0"], settings=one)
        assert records["B0"].finished_ts == 14.0
        assert (records["B1"].queued_ts, records["B1"].admitted_ts, records["B1"].finished_ts) == (12.0, 14.5, 16.5)
        assert result.sessions[1].end_ts == 16.5

    def test_a_call_that_waits_in_the_engine_has_cost_nothing(self):
        one = EngineOptions(max_num_seqs=1)
        result, records = run_cancelled({"A0": 4, "A1": 100}, (0, some_calls("A", 2)), victims=["A1"], settings=one)
        record = records["A1"]
        assert (record.queued_ts, record.admitted_ts, record.finished_ts) == (10.0, None, 14.0)
        assert (record.output_tokens, record.wasted_tokens) == (0, 0)
        assert result.sessions[0].end_ts == 14.0

    def test_a_session_that_loses_its_calls_while_it_loads_ends_with_the_load(self):
        sessions = (
            (0, some_calls("A", 1)), (0, some_calls("B", 1)), (1, some_calls("A", 1, start=1)),
            (0, some_calls("B", 1, start=1)),
        )  # fmt: skip
        table = {"A0": 3, "A1": 15, "B0": 4, "B1": 5}
        result, records = run_cancelled(table, *sessions, victims=["B1"], when="A1")
        # Worker 0: A until 13, B from 23 to 27, and B1 at once; worker 1: A until 25.
        assert [session.session for session in result.sessions] == [0, 1, 2]
        assert records["B1"].finished_ts == 25.0

    def test_two_at_the_same_instant_from_two_workers(self):
        calls = [*some_calls("A", 2), *some_calls("B", 2)]
        both = Answers(
            {f"finished {calls[0].key}": [Cancel(calls[3].key)], f"finished {calls[2].key}": [Cancel(calls[1].key)]}
        )
        result, records = run(
            {"A0": 4, "A1": 50, "B0": 4, "B1": 50}, make_session(0, calls[:2]),
            make_session(1, calls[2:], workers=(1,)), calls=calls, controllers=[both],
        )  # fmt: skip
        # Both are heard before either worker begins its next iteration.
        assert [session.end_ts for session in result.sessions] == [14.0, 14.0]
        assert records["A1"].finished_ts == records["B1"].finished_ts == 14.0


SMALL = make_cluster(2, gpu=make_gpu("small", memory_gib=16))
UNLIKE = make_mixed_cluster(make_gpu("old"), make_gpu("new"))
REFUSED = {
    "context": (8192, 5, {}, "prompt_tokens must be below A's context of 8192, got 8192"),
    "KV cache": (
        100, 5, {"settings": EngineOptions(kv_cache_tokens=64)},
        r"session 0 of 'A', call q0/propose/0: prompt_tokens .* at most 64 .*backend\.kv_cache_tokens",
    ),
    "model": (100, 5, {"cluster": SMALL}, r"session 0 of 'A': A must fit into 1 x small, KV tokens left: -"),
    "gang": (
        100, 5, {"experts": [make_expert("A", tp_degree=2)], "cluster": UNLIKE},
        r"workers must be of one kind, got \['old', 'new'\]",
    ),
    "no tokens": (100, 0, {}, "output_tokens must be at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize(("prompt_tokens", "length", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused(prompt_tokens, length, changes, message):
    calls = [make_call("q0", prompt_tokens=prompt_tokens)]
    workers = (0,) if "experts" not in changes else (0, 1)
    with pytest.raises(BackendError, match=message):
        execute(make_plan(make_session(0, calls, workers=workers)), calls, make_backend(by_key(length), **changes))


def test_a_session_that_is_never_closed_is_refused():
    backend = make_backend(by_key(5))
    events = backend.events(reacts=True)
    next(events)
    backend.apply(Open(Session(id=0, expert="A", workers=(0,))))
    with pytest.raises(BackendError, match=r"sessions \[0\] were never closed"):
        list(events)


def test_a_pool_and_hardware_that_do_not_fit_the_cluster_are_refused():
    with pytest.raises(ValueError, match=r"GPU of a worker must be one of \['other'\], got 'gpu'"):
        SimBackend(experts=[], hardware={"other": ONE_SECOND}, cluster=make_cluster(1), outcomes=by_key(1))
    with pytest.raises(ValueError, match="expert name must be unique, got 'A' twice"):
        make_backend(by_key(1), experts=[make_expert("A"), make_expert("A")])


def test_an_error_of_a_controller_reaches_the_caller():
    class Broken:
        reacts = True

        def on(self, event, view):
            raise RuntimeError("out of ink")

    calls = some_calls("A", 1)
    with pytest.raises(RuntimeError, match="out of ink"):
        run({"A0": 3}, make_session(0, calls), calls=calls, controllers=[Broken()])


def unlike_workers(kinds, hardware, *, length, expert="A", tp_degree=1, times=linear_times):
    """Make a backend with a worker of each kind named, for one expert whose calls are of one length."""
    return SimBackend(
        experts=[make_expert(expert, tp_degree=tp_degree)],
        hardware=hardware,
        cluster=make_mixed_cluster(*map(make_gpu, kinds)),
        outcomes=by_key(length),
        iteration_times=times,
    )


def test_each_kind_of_worker_keeps_its_own_time():
    calls = some_calls("A", 2)
    slow, fast = LinearHardware(20.0, LinearTime(base_s=0.1)), LinearHardware(5.0, LinearTime(base_s=0.01))
    backend = unlike_workers(["slow", "fast"], {"slow": slow, "fast": fast}, length=100)
    plan = make_plan(make_session(0, calls[:1]), make_session(1, calls[1:], workers=(1,)))
    result = execute(plan, calls, backend)
    assert [session.load_s for session in result.sessions] == [20.0, 5.0]
    assert result.sessions[0].end_ts > 30.0 > 6.1 > result.sessions[1].end_ts
    assert 6.0 < backend.lower_bound_s() < 6.1, "a plan could have put both on the fast one"


def test_the_bound_leaves_out_kinds_where_an_expert_cannot_run():
    def times(hardware, shape, tp_degree):
        if hardware.load > 10:
            raise ValueError("not measured")
        return hardware.time

    calls = some_calls("A", 1)
    hardware = {"known": LinearHardware(10.0), "unknown": LinearHardware(11.0)}
    backend, other = (unlike_workers(["known", "unknown"], hardware, length=50, times=times) for _ in range(2))
    result = execute(make_plan(make_session(0, calls)), calls, backend)
    assert backend.lower_bound_s() == pytest.approx(result.sessions[0].end_ts)
    with pytest.raises(BackendError, match="session 0 of 'A': not measured"):
        execute(make_plan(make_session(0, calls, workers=(1,))), calls, other)


def test_the_bound_leaves_out_kinds_with_too_few_workers_for_a_gang():
    calls = some_calls("T", 1)
    hardware = {"old": LinearHardware(10.0), "new": LinearHardware(1.0)}
    backend = unlike_workers(["old", "old", "new"], hardware, length=50, expert="T", tp_degree=2)
    result = execute(make_plan(make_session(0, calls, workers=(0, 1)), num_workers=3), calls, backend)
    assert backend.lower_bound_s() == pytest.approx(result.sessions[0].end_ts)


def test_a_session_takes_as_long_as_on_the_simulated_cluster() -> None:
    hardware = committed_hardware("a100_80gb")
    cluster = make_cluster(2, gpu=hardware.gpu)
    expert = make_expert("A", context_tokens=32768)
    requests = [Request(100 + 7 * i, 20 + 13 * (i * i % 101)) for i in range(60)]
    settings = EngineOptions(max_num_seqs=16)
    sessions = SimulatedSessions({hardware.gpu.name: hardware}, cluster, settings)
    seconds = sessions.serve_s(expert, requests, cluster.workers[:1])
    calls = [make_call(f"q{i}", expert="A", prompt_tokens=request.prompt_tokens) for i, request in enumerate(requests)]
    lengths = {call.key: request.output_tokens for call, request in zip(calls, requests, strict=True)}
    backend = SimBackend(
        experts=[expert], cluster=cluster, hardware={hardware.gpu.name: hardware}, settings=settings,
        outcomes=lambda call, inputs: Outcome(lengths[call.key]),
    )  # fmt: skip
    session = Session(id=0, expert="A", workers=(0,), shard=tuple(call.key for call in calls))
    result = execute(unpriced_plan([session], num_workers=2), calls, backend)
    last_ts = max(record.finished_ts or 0.0 for record in result.calls)
    assert abs(result.sessions[0].start_ts + seconds - last_ts) < 1e-6


@pytest.mark.parametrize("to", [0, "A"], ids=["a shard", "the expert's queue"])
def test_ranks_share_a_session_and_each_takes_as_many_calls_as_an_engine(to: int | str) -> None:
    hardware = sparse_hardware()
    expert = make_expert("A", tp_degree=2, shape=make_sparse_shape(), dp_attention=True)
    cluster, settings = make_cluster(2, gpu=hardware.gpu), EngineOptions(max_num_seqs=3)
    backend = SimBackend(
        experts=[expert], cluster=cluster, hardware={hardware.gpu.name: hardware}, settings=settings,
        outcomes=by_key(50),
    )  # fmt: skip
    submits = [Submit(make_call(f"q{i}", expert="A"), to) for i in range(9)]
    opens = Open(Session(id=0, expert="A", workers=(0, 1)))
    records = drive(backend, [Answers({"started": [opens, *submits]})], num_workers=2).calls
    first = {record.finished_ts for record in records[:6]}
    assert len(first) == 1, "six run at once"
    assert {record.admitted_ts for record in records[6:]} == first
    assert backend.lower_bound_s() is None
    (held,) = {holding.num_bytes for holding in backend.holdings}
    kv_bytes = kv_capacity_tokens(expert, cluster.workers, settings) * expert.shape.kv_bytes_per_token(1)
    assert held == expert.weight_bytes_on_worker(2) + activation_bytes(expert, settings, 2) + kv_bytes
    assert 0 <= hardware.gpu.usable_bytes - held < expert.shape.kv_bytes_per_token(1)


def test_ranks_take_calls_of_a_queue_beside_a_full_engine() -> None:
    hardware = sparse_hardware()
    expert = make_expert("A", tp_degree=2, shape=make_sparse_shape(), dp_attention=True)
    backend = SimBackend(
        experts=[expert], cluster=make_cluster(3, gpu=hardware.gpu), hardware={hardware.gpu.name: hardware},
        settings=EngineOptions(max_num_seqs=3), outcomes=by_key(50),
    )  # fmt: skip
    opens = [Open(Session(id=number, expert="A", workers=workers)) for number, workers in enumerate([(0, 1), (2,)])]
    submits = [Submit(make_call(f"q{i}", expert="A"), "A") for i in range(18)]
    records = drive(backend, [Answers({"started": [*opens, *submits]})], num_workers=3).calls
    admitted = Counter(record.admitted_ts for record in records if record.session == 0)
    assert list(admitted.values()) == [6, 6], "a session of two ranks has room for six, and has it again"


def test_engines_that_keep_prefixes_are_stepped_without() -> None:
    hardware = committed_hardware("a100_80gb")
    cluster = make_cluster(1, gpu=hardware.gpu)
    requests = [Request(100, 20)] * 3
    served = [
        SimulatedSessions({hardware.gpu.name: hardware}, cluster, EngineOptions(enable_prefix_caching=is_kept)).serve_s(
            make_expert("A"), requests, cluster.workers
        )
        for is_kept in (True, False)
    ]  # in prefill-first order a simulated engine keeps none, and a real one that does has to be planned for
    assert served[0] == served[1]


def test_what_a_run_leaves_goes_with_its_backend_and_waits_for_no_garbage_collector() -> None:
    calls = some_calls("A", 2)
    backend = make_backend(lengths({"A0": 3, "A1": 5}), hardware=ONE_SECOND)
    known = weakref.ref(backend)
    gc.disable()
    try:
        execute(make_plan(make_session(0, calls)), calls, backend)
        del backend
        assert known() is None, "it would hold all records while the report is written"
    finally:
        gc.enable()

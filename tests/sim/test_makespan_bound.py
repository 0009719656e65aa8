import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.realization import Outcome
from sim.engine_settings import EngineSettings, Order
from tests.factories import make_call, make_cluster, make_expert
from tests.sim.cluster_runs import LinearHardware, by_key, make_backend, make_plan, make_session, some_calls
from tests.sim.oracle import LinearTime

seconds = st.floats(0.0, 0.001)


@st.composite
def iteration_times(draw):
    return LinearTime(
        base_s=draw(st.floats(0.001, 0.05)),
        per_seq_s=draw(seconds),
        per_kv_token_s=draw(st.floats(0.0, 1e-5)),
        per_prefill_token_s=draw(seconds),
        per_prefill_pair_s=draw(st.floats(0.0, 1e-6)),
    )


@st.composite
def runs(draw):
    """A pool, calls with lengths and arrivals, and any plan that serves each call once."""
    num_workers = draw(st.integers(1, 4))
    engine_settings = EngineSettings(
        order=draw(st.sampled_from(list(Order))), max_num_seqs=draw(st.sampled_from([1, 3, 20])), kv_tokens=1500
    )
    experts, sessions, lengths, calls = [], [], {}, []
    for name in "ABC"[: draw(st.integers(1, 3))]:
        tp_degree = draw(st.integers(1, min(2, num_workers)))
        experts.append(make_expert(name, tp_degree=tp_degree, max_output_tokens=900, max_replicas=1))
        for _ in range(draw(st.integers(1, 2))):
            start = draw(st.integers(0, num_workers - tp_degree))
            shard = []
            for _ in range(draw(st.integers(1, 30))):
                call = make_call(
                    f"q{len(calls)}",
                    expert=name,
                    prompt_tokens=draw(st.integers(1, 500)),
                    ready_s=draw(st.sampled_from([0.0, 0.0, 3.0, 40.0])),
                )
                lengths[call.key] = draw(st.sampled_from([1, 2, 40, 300, 900]))
                calls.append(call)
                shard.append(call)
            sessions.append(make_session(len(sessions), shard, workers=range(start, start + tp_degree)))
    backend = make_backend(
        by_key(lengths),
        experts=experts,
        cluster=make_cluster(num_workers),
        settings=engine_settings,
        hardware=LinearHardware(draw(st.floats(0.0, 10.0)), draw(iteration_times())),
    )
    order = draw(st.permutations(sessions))
    return backend, make_plan(*order, num_workers=num_workers), calls


@settings(max_examples=250, deadline=None)
@given(runs())
def test_no_plan_beats_the_bound(run):
    backend, plan, calls = run
    result = backend.execute(plan, calls)
    makespan_s = max(session.end_ts for session in result.sessions)
    assert 0 < result.lower_bound_s <= makespan_s * (1 + 1e-9)


def bound_and_makespan(backend, *sessions, calls, num_workers=2):
    result = backend.execute(make_plan(*sessions, num_workers=num_workers), calls)
    return result.lower_bound_s, max(session.end_ts for session in result.sessions)


@pytest.mark.parametrize("order", list(Order))
def test_it_is_met_by_a_call_alone(order):
    calls = [make_call("q0", prompt_tokens=3000, ready_s=2.0)]
    backend = make_backend(by_key(500), settings=EngineSettings(order=order))
    bound_s, makespan_s = bound_and_makespan(backend, make_session(0, calls), calls=calls)
    assert bound_s == pytest.approx(makespan_s)


def test_it_waits_for_the_call_that_arrives_last():
    calls = [make_call("q0"), make_call("q1", ready_s=1000.0)]
    bound_s, makespan_s = bound_and_makespan(make_backend(by_key(50)), make_session(0, calls), calls=calls)
    assert bound_s == pytest.approx(makespan_s)


def test_it_is_close_where_batches_are_full_and_even():
    groups = [some_calls("A", 512), some_calls("A", 512, start=512)]
    backend = make_backend(by_key(600))
    sessions = [make_session(i, group, workers=(i,)) for i, group in enumerate(groups)]
    bound_s, makespan_s = bound_and_makespan(backend, *sessions, calls=groups[0] + groups[1])
    assert 0.9 * makespan_s < bound_s < makespan_s


def test_a_gang_counts_for_all_its_workers():
    calls = some_calls("T", 1024)
    bound_s, makespan_s = bound_and_makespan(
        make_backend(by_key(600)), make_session(0, calls, workers=(0, 1)), calls=calls
    )
    assert 0.9 * makespan_s < bound_s < makespan_s


def test_calls_that_were_cancelled_are_not_counted():
    class CancelAll:
        def on_finish(self, record):
            from mosaic.results import Cancel

            return [Cancel(call.key) for call in calls]

    calls = [make_call("short"), make_call("long")]
    backend = make_backend(lambda call: Outcome(10 if call.key.question == "short" else 4000))
    plan = make_plan(make_session(0, calls))
    full, cut = backend.execute(plan, calls), backend.execute(plan, calls, CancelAll())
    assert cut.lower_bound_s < max(session.end_ts for session in cut.sessions) < full.lower_bound_s

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.realization import Outcome
from mosaic.results import Cancel
from sim.engine_settings import EngineSettings, Order
from tests.factories import make_call, make_expert
from tests.sim.cluster_runs import by_key, make_backend, make_plan, make_session, some_calls
from tests.sim.random_runs import committed_times, runs


@settings(max_examples=250, deadline=None)
@given(runs())
def test_no_plan_beats_the_bound(run):
    backend, plan, calls = run
    result = backend.execute(plan, calls)
    makespan_s = max(session.end_ts for session in result.sessions)
    assert 0 < result.lower_bound_s <= makespan_s * (1 + 1e-9)


@pytest.mark.parametrize(("name", "time"), committed_times())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_plan_beats_the_bound_on_measured_tables(name, time, data):
    backend, plan, calls = data.draw(runs(times=st.just(time)))
    result = backend.execute(plan, calls)
    assert 0 < result.lower_bound_s <= max(session.end_ts for session in result.sessions) * (1 + 1e-9)


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
    groups = [some_calls("T", 512), some_calls("U", 512)]
    backend = make_backend(by_key(600), experts=[make_expert("T", tp_degree=2), make_expert("U", tp_degree=2)])
    sessions = [make_session(i, group, workers=(0, 1)) for i, group in enumerate(groups)]
    bound_s, makespan_s = bound_and_makespan(backend, *sessions, calls=groups[0] + groups[1])
    assert 0.9 * makespan_s < bound_s < makespan_s


def test_calls_that_were_cancelled_are_not_counted():
    class CancelAll:
        def on_finish(self, record):
            return [Cancel(call.key) for call in calls]

    calls = [make_call("short"), make_call("long")]
    backend = make_backend(lambda call: Outcome(10 if call.key.question == "short" else 4000))
    plan = make_plan(make_session(0, calls))
    full, cut = backend.execute(plan, calls), backend.execute(plan, calls, CancelAll())
    assert cut.lower_bound_s < max(session.end_ts for session in cut.sessions) < full.lower_bound_s

"""The bound below every simulated run."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.commands import Cut
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.realization import Outcome
from mosaic.core.workload import Prefix, SparseKv
from mosaic.runtime.static_plan import execute
from sim.cluster.backend import SimBackend
from tests.controllers import Answers, cancel_on
from tests.factories import make_call, make_cluster, make_expert, make_plan, make_session, make_shape, some_calls
from tests.sim.cluster_runs import LinearHardware, by_key, make_backend
from tests.sim.oracle import LinearTime
from tests.sim.random_runs import committed_hardware, committed_time, committed_times, runs


def bound_and_makespan(backend, *sessions, calls, num_workers=2, controllers=()):
    """The bound that a summary has, and the end of a run."""
    result = execute(make_plan(*sessions, num_workers=num_workers), calls, backend, controllers)
    bound_s, makespan_s = backend.lower_bound_s(), max(session.end_ts for session in result.sessions)
    assert 0 < bound_s <= makespan_s * (1 + 1e-9)
    return bound_s, makespan_s


SPARSE = st.builds(
    SparseKv,
    budget_pages=st.sampled_from([1, 4, 64]),
    rerank_every=st.sampled_from([1, 16]),
    unstable_frac=st.sampled_from([0.0, 0.25, 1.0]),
    promoted_frac=st.sampled_from([0.0, None]),
)
TIMES = [pytest.param(None, id="linear"), *(pytest.param(p.values[1], id=p.id) for p in committed_times())]


@pytest.mark.parametrize("kv", [st.none(), SPARSE], ids=["full", "sparse"])
@pytest.mark.parametrize("time", TIMES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_plan_beats_a_bound(kv, time, data):
    make, plan, calls = data.draw(runs(times=None if time is None else st.just(time), kv=data.draw(kv)))
    bound_and_makespan(make(), *plan.sessions, calls=calls, num_workers=plan.num_workers)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(runs())
def test_no_plan_beats_a_bound_at_length(run):
    make, plan, calls = run
    bound_and_makespan(make(), *plan.sessions, calls=calls, num_workers=plan.num_workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturating(LinearTime):
    """From so many tokens on, a step that reads more takes no longer."""

    most_tokens: float = 8.8

    def decode_span_s(self, num_seqs, kv_tokens, num_steps, longest=0):
        return num_steps * LinearTime.decode_span_s(self, num_seqs, min(kv_tokens, self.most_tokens), 1)


def test_what_prompts_share_is_read_once():
    calls = [make_call(f"q{i}", prompt_tokens=1000, prefix=Prefix(("a",), 960)) for i in range(20)]
    time = LinearTime(base_s=1e-3, per_seq_s=0.0, per_kv_token_s=0.0, per_prefill_token_s=1e-3, per_prefill_pair_s=0.0)
    backend = make_backend(
        by_key({call.key: 2 for call in calls}),
        hardware=LinearHardware(0.0, time),
        settings=EngineOptions(order=Order.MIXED),
    )
    _, makespan_s = bound_and_makespan(backend, make_session(0, calls), calls=calls)
    assert makespan_s < 2.0, "20 prompts of 1,000 tokens take 20 s where nothing is shared"


SHORT_STEPS = {"base_s": 1e-6, "per_seq_s": 0.0, "per_kv_token_s": 1e-3}


@pytest.mark.parametrize(
    ("kv", "num_calls", "time"),
    [
        pytest.param(
            SparseKv(budget_pages=4), 1, LinearTime(base_s=0.03125, per_kv_token_s=8e-6), id="reads grow in part only"
        ),
        pytest.param(
            SparseKv(budget_pages=1, unstable_frac=0.0), 20, Saturating(**SHORT_STEPS), id="most tokens are on the host"
        ),
    ],
)
def test_a_sparse_kv_cache_is_bounded_by_what_is_read_of_it(kv, num_calls, time):
    calls = some_calls("A", num_calls)
    backend = make_backend(
        by_key(900),
        experts=[make_expert("A", kv=kv)],
        settings=EngineOptions(max_num_seqs=num_calls, kv_cache_tokens=1500),
        hardware=LinearHardware(0.0, time),
    )
    bound_and_makespan(backend, make_session(0, calls), calls=calls)


GEMMA = {"num_layers": 42, "num_query_heads": 16, "num_kv_heads": 8, "head_dim": 256}
SHAPES = {"Llama": make_shape(), "Gemma": make_shape(**GEMMA)}
PLACES = [("a100_80gb", 1), ("a100_80gb", 4), ("rtxpro6000", 1), ("h100_80gb", 1)]


def prefill_run(stem, tp_degree, engine_settings, prompts, *, shape=SHAPES["Llama"]):
    """Calls that write one token each, on measured tables."""
    calls = [make_call(f"q{i}", prompt_tokens=tokens) for i, tokens in enumerate(prompts)]
    backend = make_backend(
        by_key(1),
        experts=[make_expert(shape=shape, tp_degree=tp_degree)],
        cluster=make_cluster(tp_degree),
        settings=engine_settings,
        hardware=LinearHardware(0.0, committed_time(stem, shape, tp_degree)),
    )
    session = make_session(0, calls, workers=range(tp_degree))
    return bound_and_makespan(backend, session, calls=calls, num_workers=tp_degree)


def test_the_prefill_rate_is_taken_where_measured_times_dip():
    # Iterations of a size that runs faster per token than powers of two and the budget do.
    one_by_one = EngineOptions(order=Order.MIXED, max_num_seqs=1)
    bound_s, makespan_s = prefill_run("a100_80gb", 4, one_by_one, [1888] * 300)
    assert 0.95 * makespan_s < bound_s <= makespan_s


@pytest.mark.parametrize(("stem", "tp_degree"), PLACES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_prefill_beats_the_bound(stem, tp_degree, data):
    engine_settings = EngineOptions(
        order=data.draw(st.sampled_from(list(Order))), max_num_seqs=data.draw(st.sampled_from([1, 7, 37, 256]))
    )
    sizes = st.sampled_from(data.draw(st.lists(st.integers(1, 4000), min_size=1, max_size=3)))
    prompts = data.draw(st.lists(sizes, min_size=10, max_size=60))
    shape = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))]
    prefill_run(stem, tp_degree, engine_settings, prompts, shape=shape)


@pytest.mark.parametrize("order", list(Order))
def test_it_is_met_by_a_call_alone(order):
    calls = [make_call("q0", prompt_tokens=3000, ready_s=2.0)]
    backend = make_backend(by_key(500), settings=EngineOptions(order=order))
    bound_s, makespan_s = bound_and_makespan(backend, make_session(0, calls), calls=calls)
    assert bound_s == pytest.approx(makespan_s)


def test_it_waits_for_the_call_that_arrives_last():
    calls = [make_call("q0"), make_call("q1", ready_s=1000.0)]
    bound_s, makespan_s = bound_and_makespan(make_backend(by_key(50)), make_session(0, calls), calls=calls)
    assert bound_s == pytest.approx(makespan_s)


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_it_is_close_where_batches_are_full_and_even(tp_degree):
    """A gang counts for all its workers."""
    groups = [some_calls("A", 512), some_calls("B", 512)]
    backend = make_backend(by_key(600), experts=[make_expert(name, tp_degree=tp_degree) for name in "AB"])
    workers = [(0,), (1,)] if tp_degree == 1 else [(0, 1), (0, 1)]
    sessions = [make_session(i, group, workers=workers[i]) for i, group in enumerate(groups)]
    bound_s, makespan_s = bound_and_makespan(backend, *sessions, calls=groups[0] + groups[1])
    assert 0.9 * makespan_s < bound_s < makespan_s


def test_calls_that_were_cancelled_are_not_counted():
    short, long = calls = [make_call("short"), make_call("long")]
    (full_s, _), (bound_s, makespan_s) = (
        bound_and_makespan(
            make_backend(lambda call, inputs: Outcome(10 if call == short else 4000)),
            make_session(0, calls),
            calls=calls,
            controllers=controllers,
        )
        for controllers in ([], [cancel_on(short.key, long.key)])
    )
    assert bound_s < makespan_s < full_s


def test_a_call_that_is_cut_counts_with_what_it_writes():
    calls = [make_call("q0")]
    cut = Answers({"started": [Cut(calls[0].key, 40)]})
    bound_s, makespan_s = bound_and_makespan(
        make_backend(by_key(4000)), make_session(0, calls), calls=calls, controllers=[cut]
    )
    assert bound_s == pytest.approx(makespan_s)


def test_there_is_none_where_a_plan_may_choose_a_degree():
    hardware = committed_hardware("a100_80gb")
    expert = make_expert("A", shape=hardware.tables[0].shape)
    calls, workers = [make_call("q0")], (0, 1, 2, 3)
    alone, choosing = (
        SimBackend(
            experts=[one],
            cluster=make_cluster(4, gpu=hardware.gpu),
            hardware={hardware.gpu.name: hardware},
            outcomes=by_key(4000),
        )
        for one in (expert, replace(expert, tp_degrees=(4,)))
    )
    execute(make_plan(make_session(0, calls), num_workers=4), calls, alone)
    result = execute(make_plan(make_session(0, calls, workers=workers), num_workers=4), calls, choosing)
    assert alone.lower_bound_s() > result.sessions[0].end_ts, "one GPU takes longer than four"
    assert choosing.lower_bound_s() is None

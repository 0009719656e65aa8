"""The tighter bound: below every simulated run, never below the plain one, and above it where it should be."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.realization import Outcome
from mosaic.core.workload import CallKey, SparseKv
from mosaic.runtime.job import Reaction
from mosaic.runtime.run import run
from mosaic.runtime.static_plan import execute
from sim.cluster.expert_on_gpu import ExpertsOnGpus
from sim.cluster.lower_bound import demands_of
from sim.cluster.tight_bound import decode_planes, run_bounds
from sim.hardware.iteration_time import iteration_time
from tests.factories import make_call, make_cluster, make_expert, make_plan, make_session, some_calls
from tests.runtime.jobs import HARDWARE, Told, make_job, make_questions
from tests.sim.cluster_runs import by_key, make_backend
from tests.sim.random_runs import committed_times, runs


def bounds_and_makespan(backend, sessions, calls, num_workers):
    result = execute(make_plan(*sessions, num_workers=num_workers), calls, backend)
    num_workers = backend._num_workers  # a plan may leave some alone
    bounds = run_bounds(result, backend._models, num_workers)
    assert bounds.plain_s <= backend.lower_bound_s() * (1 + 1e-12), "which also knows when calls arrive"
    return bounds, max(session.end_ts for session in result.sessions)


@pytest.mark.parametrize("kv", [None, SparseKv(budget_pages=4)], ids=["full", "sparse"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_plan_beats_the_tight_bound(kv, data):
    make, plan, calls = data.draw(runs(kv=kv))
    bounds, makespan_s = bounds_and_makespan(make(), plan.sessions, calls, plan.num_workers)
    assert bounds.plain_s <= bounds.expert_s <= makespan_s * (1 + 1e-9)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(runs())
def test_no_plan_beats_the_tight_bound_at_length(run):
    make, plan, calls = run
    bounds, makespan_s = bounds_and_makespan(make(), plan.sessions, calls, plan.num_workers)
    assert bounds.expert_s <= makespan_s * (1 + 1e-9)


@pytest.mark.parametrize(("name", "time"), committed_times())
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_plan_beats_the_tight_bound_on_measured_tables(name, time, data):
    make, plan, calls = data.draw(runs(times=st.just(time)))
    bounds, makespan_s = bounds_and_makespan(make(), plan.sessions, calls, plan.num_workers)
    assert bounds.plain_s <= bounds.expert_s <= makespan_s * (1 + 1e-9)


def tail_run(long_tokens, options=EngineOptions(order=Order.PREFILL_FIRST, max_num_seqs=64)):  # noqa: B008
    """Many short calls and a long one, which decodes alone in the end."""
    calls = some_calls("A", 200)
    lengths = {call.key: 100 for call in calls} | {calls[0].key: long_tokens}
    backend = make_backend(
        lambda call, inputs: Outcome(lengths[call.key]),
        experts=[make_expert("A")],
        cluster=make_cluster(1),
        settings=options,
    )
    return bounds_and_makespan(backend, [make_session(0, calls, workers=(0,))], calls, 1)


def test_a_drain_tail_counts_whatever_the_batches_were():
    bounds, makespan_s = tail_run(600)
    assert bounds.plain_s < 0.9 * bounds.expert_s
    assert 0.9 * makespan_s < bounds.expert_s <= makespan_s


def test_calls_of_one_length_have_no_tail():
    bounds, makespan_s = tail_run(100)
    assert bounds.expert_s <= makespan_s
    assert bounds.expert_s < 1.2 * bounds.plain_s


def test_what_the_cache_cannot_hold_does_not_lower_the_rate():
    """Long contexts and a small cache: batches are small, and a token costs what it costs in a small batch."""
    calls = [make_call(f"q{i}", prompt_tokens=1000) for i in range(40)]
    wide, narrow = (
        bounds_and_makespan(
            make_backend(
                by_key(1000),
                experts=[make_expert("A")],
                cluster=make_cluster(1),
                settings=EngineOptions(order=Order.PREFILL_FIRST, max_num_seqs=40, kv_cache_tokens=tokens),
            ),
            [make_session(0, calls, workers=(0,))],
            calls,
            1,
        )
        for tokens in (100_000, 8_000)
    )
    assert narrow[0].expert_s > 1.3 * wide[0].expert_s
    assert narrow[0].expert_s <= narrow[1]
    assert narrow[0].plain_s == pytest.approx(wide[0].plain_s, rel=0.05), "the plain bound hardly sees the cache"


def test_planes_lie_below_every_step_that_the_cache_can_hold():
    job = make_job()
    models = ExpertsOnGpus(job.experts, {HARDWARE.gpu.name: HARDWARE}, job.cluster, EngineOptions(), iteration_time)
    (place,) = models.everywhere("A")
    planes = list(decode_planes(place, EngineOptions(), place.expert.context_tokens))
    assert len(planes) > 10
    for num_seqs in (1, 3, 8, 13, 100, 256):
        for tokens in (1, 77, 1000, 5000, 8192):
            kv = num_seqs * tokens
            if kv <= place.kv_tokens:
                step_s = place.time.decode_span_s(num_seqs, kv, 1)
                for plane in planes:
                    below_s = plane.step_s + plane.decode_s * num_seqs + plane.kv_read_s * kv
                    assert below_s <= step_s * (1 + 1e-9)
    assert not list(decode_planes(place, EngineOptions(order=Order.MIXED), place.expert.context_tokens))


@pytest.mark.parametrize("reactions", [set(), {Reaction.NO_BARRIER}], ids=["barrier", "no barrier"])
@pytest.mark.parametrize("num_questions", [3, 40])
def test_a_run_of_two_layers_takes_as_long_as_its_chains_and_its_work(reactions, num_questions):
    if num_questions == 3:
        job = make_job(reactions=reactions)
    else:
        questions = tuple(
            replace(question, id=f"{question.id}{i}") for i in range(num_questions) for question in make_questions()
        )
        votes = {question.id: "ABC" for question in questions}
        world = Told(votes=votes, said=dict.fromkeys(votes, "B"), output_tokens=400)
        job = make_job(questions=questions, world=world, reactions=reactions)
    outcome = run(job)
    pool = {expert.name: expert for made in outcome.planned for expert in made.problem.experts}
    models = ExpertsOnGpus(
        tuple(pool.values()), {HARDWARE.gpu.name: HARDWARE}, job.cluster, EngineOptions(), iteration_time
    )
    aggregator = replace(next(e for node in job.graph.upper_nodes for e in node.experts), tp_degree=4)
    bounds = run_bounds(outcome.result, models, 4, aggregator)
    end_s = max(session.end_ts for session in outcome.result.sessions)
    assert bounds.end_to_end_s is not None
    assert bounds.expert_s < bounds.end_to_end_s <= end_s * (1 + 1e-9)


def test_demands_are_grouped_by_expert():
    job = make_job()
    models = ExpertsOnGpus(job.experts, {HARDWARE.gpu.name: HARDWARE}, job.cluster, EngineOptions(), iteration_time)
    demands = demands_of([(call, 10) for call in job.workload.calls], models)
    assert [len(demand.jobs) for demand in demands] == [3, 3, 3]
    assert demands[0].jobs[0][0].key == CallKey("agreed", "propose", 0)

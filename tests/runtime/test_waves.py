"""What the aggregator costs: waves of replicas, each as long as its longest."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.realization import Outcome
from mosaic.core.results import Inputs
from mosaic.core.workload import AGGREGATE, Call, Expert
from mosaic.pipelines.call_graph import mixture_of_agents
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.rules.rule import Never
from mosaic.planning.profiles import ProfileEntry
from mosaic.runtime.backend import Backend
from mosaic.runtime.planner import Planner
from mosaic.runtime.profiling import fit_entry, in_waves_of
from mosaic.runtime.rehearsal import Rehearsal, price_by_rehearsal
from mosaic.runtime.sweep import MAX_REPEATS, NUM_SWEPT_CALLS
from mosaic.runtime.unpriced import gangs_of, sessions_in_waves
from tests.factories import make_cluster, make_expert
from tests.run_records import make_record, make_session
from tests.runtime.jobs import MeasuringSite, make_job, measured_on, merge_calls
from tests.runtime.scripted import Scripted
from tests.sim.cluster_runs import make_backend
from tests.sim.oracle import LinearTime


def stopwatch(seconds: Callable[[int, int], float] = lambda worker, num_calls: 1.0 + num_calls, **changes) -> Scripted:
    """Serves in what a formula of the first worker and the number of calls says, and loads in 7 s and the worker's."""
    return Scripted(
        load_s=lambda session, num_before: 0.0 if session.after else 7.0 + session.workers[0],
        serve_s=lambda session, num_calls: seconds(session.workers[0], num_calls),
        tokens=lambda call, number: 10 + number,
        **changes,
    )


def run_waves(expert: Expert, calls: tuple[Call, ...], num_workers: int, backend: Backend) -> ProfileEntry:
    """Price the aggregator by calls that a rehearsal left to it."""
    graph = mixture_of_agents(expert, rule=Never(), compare=comparisons())
    job = replace(make_job(graph, placements={}), cluster=make_cluster(num_workers))
    job = replace(job, site=MeasuringSite(lambda: backend, num_workers))
    planner = Planner(
        experts=(expert,), cluster=job.cluster, scheduler=job.scheduler, costs=job.costs, profiles={},
    )  # fmt: skip
    rehearsal = Rehearsal(calls={AGGREGATE: calls}, needed_frac={AGGREGATE: 1.0})
    node = graph.node(AGGREGATE)
    (entry,) = measured_on(job, price_by_rehearsal(job, node, planner, rehearsal, "here", lambda line: None)).entries
    return entry


def sweep(number: int, tp_degree: int, *, seconds=lambda worker, num_calls: 1.0 + num_calls, num_workers=4):
    backend = stopwatch(seconds)
    return backend, run_waves(make_expert("W", tp_degree=tp_degree), merge_calls(number), num_workers, backend)


@pytest.mark.parametrize(
    ("num_workers", "tp_degree", "cap", "places"),
    [
        (4, 4, None, [(0, 1, 2, 3)]),
        (4, 1, None, [(0,), (1,), (2,), (3,)]),
        (4, 1, 2, [(0,), (1,)]),
        (6, 4, 1, [(0, 1, 2, 3)]),
        (8, 4, None, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (8, 4, 1, [(0, 1, 2, 3)]),
    ],
)
def test_replicas_stand_on_aligned_gangs_up_to_the_cap(num_workers, tp_degree, cap, places) -> None:
    assert gangs_of(make_expert("W", tp_degree=tp_degree, max_replicas=cap), num_workers) == places


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_aggregator_without_a_place_is_refused(num_workers: int) -> None:
    message = rf"aggregator W: tp_degree must be at most num_workers={num_workers}, got 4"
    with pytest.raises(ValueError, match=message):
        sweep(5, 4, num_workers=num_workers)


@pytest.mark.parametrize("tp_degree", [1, 4])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 17, 130, 600])
def test_every_wave_serves_what_it_should(number: int, tp_degree: int) -> None:
    backend, entry = sweep(number, tp_degree)
    num_places = 4 if tp_degree == 1 else 1
    waves = in_waves_of(backend.sessions)
    assert waves[0][0].after == ()
    for before, behind in pairwise(waves):  # one comes after the other
        assert {session.after for session in behind} == {tuple(session.id for session in before)}
    assert [session.id for session in backend.sessions] == list(range(len(backend.sessions)))
    served = [Counter(key.question for session in wave for key in session.shard) for wave in waves]
    sizes = [sum(questions.values()) for questions in served]
    # A repeat is a wave of all calls, two of a half and four of a quarter; few calls are copied first.
    assert len(waves) % 7 == 0
    num_copies = max(1, -(-4 * num_places // number))
    for start in range(0, len(waves), 7):
        everything, halves, quarters = served[start], served[start + 1 : start + 3], served[start + 3 : start + 7]
        assert everything == Counter({f"q{i}": num_copies for i in range(number)})
        assert sum(halves, Counter()) == sum(quarters, Counter()) == everything
        assert max(map(Counter.total, halves)) - min(map(Counter.total, halves)) <= 1
        assert max(map(Counter.total, quarters)) - min(map(Counter.total, quarters)) <= 1
    assert min(sizes) >= num_places, "every replica of every wave has something to do"
    for wave in waves:
        assert [session.workers[0] for session in wave] == list(range(num_places))
        assert {len(session.workers) for session in wave} == {tp_degree}
        shards = [len(session.shard) for session in wave]
        assert max(shards) - min(shards) <= 1
    num_repeats = len(waves) // 7
    assert num_repeats == min(MAX_REPEATS, -(-NUM_SWEPT_CALLS // (num_copies * number)))
    assert len(entry.points) == len(waves)
    assert len(entry.output_tokens) == sum(sizes)


@pytest.mark.slow
@given(number=st.integers(1, 40), tp_degree=st.sampled_from([1, 2, 4]))
def test_each_call_is_served_under_a_key_and_so_with_luck_of_its_own(number: int, tp_degree: int) -> None:
    backend, _ = sweep(number, tp_degree)
    keys = [call.key for call in backend.calls]
    assert len(set(keys)) == len(keys)
    assert sorted(keys) == sorted(key for session in backend.sessions for key in session.shard)
    prepared = {call.key.question: call for call in merge_calls(number)}
    for call in backend.calls:
        # It reads what the call it copies reads.
        assert call.after == prepared[call.key.question].after
        assert (call.key.node, call.prompt_tokens) == (AGGREGATE, 100)


@pytest.mark.parametrize("tp_degree", [1, 4])
@pytest.mark.parametrize("number", [1, 2, 3, 50])
def test_an_affine_session_is_measured_exactly(number: int, tp_degree: int) -> None:
    _, entry = sweep(number, tp_degree, seconds=lambda worker, num_calls: 30.0 + 2.5 * num_calls)
    assert entry.fit.fixed_s == pytest.approx(30.0)
    assert entry.fit.per_call_s == pytest.approx(2.5)
    assert entry.fit.residual_std_frac == pytest.approx(0.0, abs=1e-9)
    assert entry.fit.min_num_calls < entry.fit.max_num_calls
    assert (entry.expert, entry.gpu, entry.tp_degree) == ("W", "gpu", tp_degree)


def test_the_price_of_a_replica_is_that_of_its_wave_the_longest_of_all() -> None:
    # Worker 2 takes three times as long; a call more on worker 0 than on the others.
    _, entry = sweep(17, 1, seconds=lambda worker, num_calls: (30.0 if worker == 2 else 10.0) + num_calls)
    first = entry.points[0]
    assert (first.num_calls, first.session_s) == (5, 34.0), "17 calls on four: 5, 4, 4, 4"
    assert entry.fit.fixed_s > 29.0
    assert entry.load_s == 10.0, "the longest load, on worker 3"


def test_tokens_of_a_wave_are_those_of_all_its_replicas() -> None:
    backend, entry = sweep(17, 1)
    sizes = [sum(len(session.shard) for session in wave) for wave in in_waves_of(backend.sessions)]
    starts = [10 + sum(sizes[:number]) for number in range(len(sizes))]
    assert [point.output_tokens for point in entry.points] == [
        sum(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)
    ]
    sample = entry.output_tokens
    assert sample == tuple(sorted(sample))
    assert entry.lengths.mean == pytest.approx(sum(sample) / len(sample))
    assert entry.lengths.max == max(sample)


@pytest.mark.parametrize("num_lost", [1, 30])
def test_part_of_a_sweep_is_no_price(num_lost: int) -> None:
    backend = stopwatch(num_failed=num_lost)
    with pytest.raises(BackendError, match=r"profiling aggregate: \d+ of \d+ calls finished .*: call q0 of W failed"):
        run_waves(make_expert("W"), merge_calls(9), 4, backend)


@pytest.mark.parametrize("tp_degree", [1, 4])
def test_in_the_simulator_the_longest_call_bounds_its_wave_however_few_share_it(tp_degree: int) -> None:
    def outcome(call: Call, inputs: Inputs) -> Outcome:
        return Outcome(3000 if call.key.question == "q0" else 30, "A")

    expert = make_expert("W", tp_degree=tp_degree)
    entry = run_waves(expert, merge_calls(40), 4, make_backend(outcome, experts=[expert], cluster=make_cluster(4)))
    assert entry.load_s == pytest.approx(10.0 / tp_degree)
    assert entry.lengths.max == 3000
    # The first call of all is the long one, alone in a whole wave, in a half and in a quarter.
    long = {point.num_calls for point in entry.points if point.session_s >= 3000 * LinearTime().base_s}
    assert long == {40 // (4 // tp_degree), 20 // (4 // tp_degree), -(-10 // (4 // tp_degree))}


def test_waves_that_were_interrupted_are_left_out() -> None:
    expert, calls = make_expert("W"), merge_calls(40)
    whole, partly = (run_waves(expert, calls, 2, stopwatch(disturbed=frozenset(sessions))) for sessions in ((), {0}))
    assert len(partly.points) == len(whole.points) - 1
    assert partly.output_tokens == whole.output_tokens, "lengths are what they are"
    with pytest.raises(DisturbedSweepError, match="waves of two sizes must run undisturbed"):
        run_waves(expert, calls, 2, stopwatch(disturbed=frozenset(range(1000))))


def test_waves_whose_workers_were_lost_are_left_out() -> None:
    expert, cluster = make_expert("W"), make_cluster(2)
    sessions = sessions_in_waves([merge_calls(2), merge_calls(4), merge_calls(8)], [(0,), (1,)])
    waves = in_waves_of(sessions)
    calls = [make_record(key=key, expert="W", session=session.id) for session in sessions for key in session.shard]
    records = [
        replace(make_session(session.id, expert="W", end_ts=20.0 + len(session.shard)), num_calls=len(session.shard))
        for session in sessions
    ]
    assert [point.num_calls for point in fit_entry(expert, cluster, calls, records, waves).points] == [1, 2, 4]
    assert [point.num_calls for point in fit_entry(expert, cluster, calls, records[:-1], waves).points] == [1, 2]
    with pytest.raises(DisturbedSweepError, match="waves of two sizes must run undisturbed"):
        fit_entry(expert, cluster, calls, records[:2], waves)

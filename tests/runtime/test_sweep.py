"""The sweep behind a profile: what it measures of a batch, which sessions it runs, and what it reads off them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from mosaic.core.cluster import Cluster, Worker
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.events import Finished
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, Response
from mosaic.core.view import View
from mosaic.core.workload import PROPOSE, Expert
from mosaic.planning import Flexible
from mosaic.runtime.job import ProfileSource
from mosaic.runtime.preparing import measure_and_plan
from mosaic.runtime.run import measure, plan, run
from mosaic.runtime.stages import StopWhenFailing
from mosaic.runtime.sweep import (
    MIN_CALLS,
    Sweep,
    measured_calls,
    rows_of,
    sweep_calls,
)
from tests.factories import make_call, make_cluster, make_expert, make_gpu, make_mixed_cluster
from tests.run_records import make_failed, make_record
from tests.runtime.jobs import MeasuringSite, make_job, measured_on, measuring_job
from tests.runtime.scripted import Scripted
from tests.sim.cluster_runs import make_backend

SWEEP = Sweep(shard_sizes=(2, 5), num_repeats=2)
POOL = make_expert("A"), make_expert("B")
DEFAULT = Sweep(shard_sizes=(128, 384, 768), num_repeats=2)


def affine(**changes) -> Scripted:
    """Serves n calls in 20 + 3 n seconds; loads in 7 s, 9 s twice and 30 s."""
    return Scripted(
        load_s=lambda session, num_before: (7.0, 9.0, 9.0, 30.0)[num_before],
        serve_s=lambda session, num_calls: 20.0 + 3.0 * num_calls,
        tokens=lambda call, number: call.prompt_tokens + 1,
        **changes,
    )


def profile_of(backend, pool=POOL):
    site = MeasuringSite(backend if callable(backend) else lambda: backend, 2)
    site.swept_places = lambda expert: [tuple(range(expert.tp_degree))]  # type: ignore[method-assign]
    num_calls = dict.fromkeys((expert.name for expert in pool), 1)
    return measure(measuring_job(site, num_calls, experts=tuple(pool), sweep=SWEEP))[PROPOSE]


@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4, unique=True), num_repeats=st.integers(1, 3))
def test_every_calibration_call_is_one_of_its_own(sizes: list[int], num_repeats: int) -> None:
    sweep = Sweep(shard_sizes=tuple(sizes), num_repeats=num_repeats)
    shards = list(sweep_calls(sweep, "A", range(100, 200)))
    assert [len(shard) for shard in shards] == [size for size in sizes for _ in range(num_repeats)]
    calls = [call for shard in shards for call in shard]
    assert not {call.key for call in calls} & {call.key for shard in sweep_calls(sweep, "B", [9]) for call in shard}
    assert len({call.key for call in calls}) == len(calls) == sum(sizes) * num_repeats
    assert [call.prompt_tokens for call in calls] == [100 + i % 100 for i in range(len(calls))]


def test_a_sweep_measures_the_law_behind_the_sessions() -> None:
    backend = affine()
    profile = profile_of(backend)
    assert profile.source == "measured sweep of test by hand"
    assert [entry.expert for entry in profile.entries] == ["A", "B"]
    entry = profile.entry("A", "gpu", 1)
    assert entry.fit.fixed_s == pytest.approx(20.0)
    assert entry.fit.per_call_s == pytest.approx(3.0)
    assert (entry.fit.min_num_calls, entry.fit.max_num_calls) == (2, 5)
    assert [(point.num_calls, point.session_s) for point in entry.points] == [(2, 26), (2, 26), (5, 35), (5, 35)]
    assert entry.output_tokens == tuple(range(101, 115))
    assert entry.lengths.mean == pytest.approx(107.5)
    assert entry.lengths.max == 114
    assert profile.entry("B", "gpu", 1).load_s == 9.0, "the median"
    assert [session.expert for session in backend.sessions] == list("ABABABAB"), "in turns, so that each session loads"


def test_a_wide_expert_is_measured_at_its_own_degree() -> None:
    backend = affine()
    profile = profile_of(backend, pool=[make_expert("T", tp_degree=2)])
    assert profile.entry("T", "gpu", 2).fit.per_call_s == pytest.approx(3.0)
    assert {session.workers for session in backend.sessions} == {(0, 1)}


def test_the_simulator_runs_a_sweep() -> None:
    profile, again = (
        profile_of(make_backend(lambda call, inputs: Outcome(50 + call.prompt_tokens % 7))) for _ in range(2)
    )
    assert profile == again
    for entry in profile.entries:
        assert entry.load_s == 10.0
        assert entry.output_tokens == tuple(sorted(50 + (100 + i) % 7 for i in range(14)))
        assert entry.fit.residual_std_frac < 0.1


def test_a_sweep_that_cannot_finish_stops_and_tells_the_first_cause() -> None:
    backend = affine(num_failed=3)
    with pytest.raises(BackendError) as raised:
        profile_of(backend)
    assert str(raised.value) == (
        "profiling: 0 of 28 calls finished before it stopped: call calibration-A-0 of A failed: no reason is "
        "known. Correct this, or give a profile (profile.path, profile.aggregator_path)"
    )


def test_a_sweep_whose_worker_is_lost_is_measured_again_and_stops_with_the_cause() -> None:
    """What others served in its place would be of another shape."""
    with pytest.raises(DisturbedSweepError, match="2 of 28 calls finished .*: worker 0 is lost: its server is gone"):
        profile_of(lambda: affine(losses={0: (1, "its server is gone")}))
    backends = iter([affine(losses={0: (1, "its server is gone")}), affine()])
    assert profile_of(lambda: next(backends)) == profile_of(affine())


def test_a_sweep_loads_an_expert_on_as_many_places_as_it_may_have_replicas() -> None:
    backend = affine()
    site = MeasuringSite(lambda: backend, 2)
    site.swept_places = lambda expert: [(0,), (1,)][: expert.max_replicas]
    capped = make_expert("A", max_replicas=1)
    measure(measuring_job(site, {"A": 1}, experts=(capped,), sweep=SWEEP))
    assert {session.workers for session in backend.sessions} == {(0,)}


def test_a_worker_that_is_lost_when_it_has_nothing_left_stops_no_sweep() -> None:
    backend = affine(losses={1: (0, "gone")})
    assert profile_of(backend) == profile_of(affine())


def test_sessions_that_were_interrupted_price_nothing_and_their_lengths_count() -> None:
    whole, partly = profile_of(affine()), profile_of(affine(disturbed=frozenset({0, 4})))
    before, behind = (profile.entry("A", "gpu", 1) for profile in (whole, partly))
    assert behind.points == before.points[1::2]
    assert behind.output_tokens == before.output_tokens
    with pytest.raises(DisturbedSweepError, match="profile of A: sessions of two sizes must run undisturbed, 1 did"):
        profile_of(lambda: affine(disturbed=frozenset({0, 2})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_sizes": 128}, "profile.sweep.shard_sizes must be a list of whole numbers, got 128"),
        ({"shard_sizes": "12"}, "profile.sweep.shard_sizes must be a list of whole numbers, got '12'"),
        ({"shard_sizes": (128,)}, r"profile.sweep.shard_sizes must be at least two sizes, got \(128,\)"),
        ({"shard_sizes": (0, 128)}, "profile.sweep.shard_sizes must be at least 1, got 0"),
        ({"shard_sizes": (8, 8)}, "profile.sweep.shard_sizes must be unique, got 8 twice"),
        ({"shard_sizes": (8, 9.5)}, "profile.sweep.shard_sizes must be a whole number, got 9.5"),
        ({"num_repeats": 0}, "profile.sweep.num_repeats must be at least 1, got 0"),
    ],
)
def test_a_sweep_refuses_bad_sizes(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        replace(SWEEP, **change)  # type: ignore[arg-type]


def test_a_pilot_in_which_calls_only_fail_stops_with_the_first_words() -> None:
    stop, view = StopWhenFailing(name="pilot", num_calls=9, for_answers=True), View(1)
    failed = structs.replace(make_failed("q1"), response=Response(error="no such model"))
    for _ in range(3):
        assert stop.on(Finished(1.0, failed), view) == ()
    with pytest.raises(BackendError, match="pilot: 0 of 9 calls .*: no such model, the first of 4 in a row"):
        stop.on(Finished(1.0, failed), view)


def test_a_pilot_goes_on_past_single_failures() -> None:
    stop, view = StopWhenFailing(name="pilot", num_calls=9, for_answers=True), View(1)
    for number in range(20):
        record = make_record(f"q{number}")
        stop.on(Finished(1.0, structs.replace(record, status=CallStatus.FAILED) if number % 3 == 0 else record), view)


@given(
    sizes=st.lists(st.integers(1, 900), min_size=2, max_size=5, unique=True),
    num_repeats=st.integers(1, 4),
    num_calls=st.integers(0, 50_000),
    frac=st.floats(0.01, 2.0),
)
def test_no_sweep_is_larger_than_its_share_and_every_one_can_be_fitted(sizes, num_repeats, num_calls, frac) -> None:
    sweep = Sweep(shard_sizes=tuple(sizes), num_repeats=num_repeats)
    most = measured_calls(num_calls, frac)
    shrunk = sweep.within(most)
    assert shrunk.num_calls <= min(sweep.num_calls, max(MIN_CALLS, frac * num_calls))
    assert len(shrunk.shard_sizes) >= 2
    assert sweep.within(None) == sweep


@pytest.mark.parametrize(
    ("num_calls", "sizes", "num_repeats"),
    [
        (20, (1, 2, 5), 1),
        (300, (4, 8, 18), 1),
        (12_799, (182, 365, 732), 1),
        (12_800, (128, 384, 768), 1),
        (25_600, (128, 384, 768), 2),
    ],
)
def test_an_experts_sweep_goes_by_its_calls_in_the_batch(num_calls, sizes, num_repeats) -> None:
    calls = [make_call(f"q{i}", expert="A") for i in range(num_calls)]
    assert DEFAULT.by_expert(calls, 0.1) == {"A": Sweep(shard_sizes=sizes, num_repeats=num_repeats)}
    assert DEFAULT.by_expert(calls, None) == {"A": DEFAULT}


def test_a_large_pool_is_measured_in_smaller_sessions() -> None:
    for num_experts, num_calls in ((19, 2560), (20, 1280), (200, 250)):
        calls = [make_call(f"q{n}", expert=f"E{n}") for n in range(num_experts)]
        assert {sweep.num_calls for sweep in DEFAULT.by_expert(calls, None).values()} == {num_calls}


def test_experts_with_few_calls_are_measured_less_than_others_and_announced() -> None:
    backend, logged = Scripted(), []

    def show(name, predicted):
        assert len(logged) == 1, "before anything is sent"
        return nullcontext(())

    job = measuring_job(
        MeasuringSite(lambda: backend, 2), {"A": 180, "B": 20}, max_batch_frac=0.1,
        sweep=Sweep(shard_sizes=(2, 4, 9)), profile_source=ProfileSource.CALIBRATION,
    )  # fmt: skip
    plan(job, show=show, log=logged.append)
    assert [(session.expert, len(session.shard)) for session in backend.sessions] == [
        ("A", 2), ("B", 1), ("A", 4), ("B", 2), ("A", 9), ("B", 5),
    ]  # fmt: skip
    assert logged == [
        "profiling: 23 calls that are not the batch (A 15, B 8), to price sessions; profile.path=FILE spares them"
    ]


def test_simulations_measure_what_the_sweep_says_and_so_does_who_asks_for_a_profile() -> None:
    job = make_job()
    assert job.site.kind == "simulated"
    assert plan(replace(job, max_batch_frac=0.01)) == plan(job)
    assert measure(replace(job, max_batch_frac=0.01)) == measure(job)


OLD, NEW = make_gpu("old"), make_gpu("new")


def fits(expert: Expert, workers: Sequence[Worker]) -> bool:
    """B has no room on one old GPU."""
    return expert.name != "B" or len(workers) > 1 or workers[0].gpu == NEW


def measured(experts: Sequence[Expert], cluster: Cluster) -> set[tuple[object, ...]]:
    """The gang and the shapes of each row, on a site where experts that have one shape run on the last worker."""
    rows = rows_of(experts, cluster, lambda expert: [(9,)], fits)
    return {(*row.places(row.experts[0]), tuple((e.name, e.tp_degree) for e in row.experts)) for row in rows}


def test_each_degree_is_measured_on_each_kind_that_holds_it() -> None:
    wide, narrow = replace(make_expert("A"), tp_degrees=(2,)), make_expert("B")
    assert measured([wide, narrow], make_mixed_cluster(OLD, OLD, NEW, OLD, NEW, NEW)) == {
        ((0,), (("A", 1),)),
        ((2,), (("A", 1), ("B", 1))),
        ((0, 1), (("A", 2),)),
        ((4, 5), (("A", 2),)),
    }


def test_one_degree_on_one_kind_is_measured_where_the_site_says() -> None:
    assert measured([make_expert("A")], make_cluster(2)) == {((9,), (("A", 1),))}
    assert len(measured([make_expert("A")], make_mixed_cluster(OLD, NEW))) == 2


def test_a_job_is_planned_and_run_at_a_degree_that_the_program_chose() -> None:
    job = make_job(scheduler=Flexible(max_replicas=1))
    job = replace(
        job,
        experts=tuple(replace(expert, tp_degrees=(2,)) for expert in job.experts),
        workload=job.workload,
    )
    begun = measured_on(job, measure_and_plan(job, lambda name: nullcontext(), lambda line: None))
    entries = begun.planner.profiles["propose"].entries
    assert {(entry.expert, entry.tp_degree) for entry in entries} == {(name, n) for name in "ABC" for n in (1, 2)}
    by_degree = {n: next(e for e in entries if e.expert == "A" and e.tp_degree == n) for n in (1, 2)}
    assert by_degree[1].output_tokens == by_degree[2].output_tokens, "the same calls"
    chosen = plan(job)
    outcome = run(job)
    widths = [session.workers for session in outcome.result.sessions if session.node == "propose"]
    assert sorted(widths) == sorted(session.workers for session in chosen.plan.sessions)

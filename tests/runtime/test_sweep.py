"""The sweep behind a profile: which sessions it runs, and what it reads off them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.realization import Outcome
from mosaic.runtime.sweep import Sweep, run_sweep, sweep_calls
from tests.factories import make_cluster, make_expert
from tests.runtime.scripted import Scripted
from tests.sim.cluster_runs import make_backend

SWEEP = Sweep(shard_sizes=(2, 5), num_repeats=2)


def affine(**changes) -> Scripted:
    """Serves n calls in 20 + 3 n seconds; loads in 7 s, 9 s twice and 30 s."""
    return Scripted(
        load_s=lambda session, num_before: (7.0, 9.0, 9.0, 30.0)[num_before],
        serve_s=lambda session, num_calls: 20.0 + 3.0 * num_calls,
        tokens=lambda call, number: call.prompt_tokens + 1,
        **changes,
    )


def profile_of(backend, *, sweep: Sweep = SWEEP, experts=("A", "B")):
    return run_sweep(
        dict.fromkeys(experts, sweep),
        [make_expert(name) for name in experts],
        make_cluster(2),
        backend,
        lambda i: 100 + i,
        "by hand",
    )


@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4, unique=True), num_repeats=st.integers(1, 3))
def test_every_calibration_call_is_one_of_its_own(sizes: list[int], num_repeats: int) -> None:
    sweep = Sweep(shard_sizes=tuple(sizes), num_repeats=num_repeats)
    shards = list(sweep_calls(sweep, "A", lambda i: 100 + i))
    assert [len(shard) for shard in shards] == [size for size in sizes for _ in range(num_repeats)]
    calls = [call for shard in shards for call in shard]
    assert len({call.key for call in calls}) == len(calls) == sum(sizes) * num_repeats
    assert [call.prompt_tokens for call in calls] == [100 + i for i in range(len(calls))]


def test_experts_do_not_share_calibration_calls() -> None:
    keys = [{call.key for shard in sweep_calls(SWEEP, name, lambda i: 9) for call in shard} for name in "AB"]
    assert keys[0].isdisjoint(keys[1])


def test_a_sweep_measures_the_law_behind_the_sessions() -> None:
    backend = affine()
    profile = profile_of(backend)
    assert profile.source == "by hand"
    assert [entry.expert for entry in profile.entries] == ["A", "B"]
    entry = profile.entry("A", "gpu", 1)
    assert entry.fit.fixed_s == pytest.approx(20.0)
    assert entry.fit.per_call_s == pytest.approx(3.0)
    assert (entry.fit.min_num_calls, entry.fit.max_num_calls) == (2, 5)
    assert [(point.num_calls, point.session_s) for point in entry.points] == [(2, 26), (2, 26), (5, 35), (5, 35)]
    assert entry.output_tokens == tuple(range(101, 115))
    assert entry.lengths.mean == pytest.approx(107.5)
    assert entry.lengths.max == 114


def test_the_median_load_is_the_price_of_one() -> None:
    assert profile_of(affine()).entry("B", "gpu", 1).load_s == 9.0


def test_experts_take_turns_so_that_each_session_loads() -> None:
    backend = affine()
    profile_of(backend)
    assert [session.expert for session in backend.sessions] == list("ABABABAB")


def test_a_wide_expert_is_measured_at_its_own_degree() -> None:
    backend = affine()
    profile = run_sweep({"T": SWEEP}, [make_expert("T", tp_degree=2)], make_cluster(2), backend, lambda i: 9, "wide")
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
        "profile sweep: every call must finish, 0 of 28 did before it stopped: call calibration-A-0 failed: no reason "
        "is known. Correct this, or give a profile (profile.path, profile.aggregator_path)"
    )
    lost = affine(losses={0: (1, "its server is gone")})
    with pytest.raises(DisturbedSweepError, match="2 of 28 did .*: worker 0 is lost: its server is gone"):
        profile_of(lost)


def test_a_worker_that_is_lost_when_it_has_nothing_left_stops_no_sweep() -> None:
    backend = affine(losses={1: (0, "gone")})
    assert profile_of(backend) == profile_of(affine())


def test_sessions_that_were_interrupted_price_nothing_and_their_lengths_count() -> None:
    whole, partly = profile_of(affine()), profile_of(affine(disturbed=frozenset({0, 4})))
    before, behind = (profile.entry("A", "gpu", 1) for profile in (whole, partly))
    assert behind.points == before.points[1::2]
    assert behind.output_tokens == before.output_tokens
    with pytest.raises(DisturbedSweepError, match="sessions of two shard sizes must run undisturbed, 1 did"):
        profile_of(affine(disturbed=frozenset({0, 2})))


def test_what_the_backend_lacks_ends_the_sweep() -> None:
    with pytest.raises(BackendError, match=r"expert must be one of \['A', 'B', 'T'\], got 'C'"):
        profile_of(make_backend(lambda call, inputs: Outcome(5)), experts=("C",))


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


def test_sizes_may_come_as_a_list() -> None:
    assert Sweep(shard_sizes=[1, 2]) == Sweep(shard_sizes=(1, 2))  # type: ignore[arg-type]

"""The sweep behind a profile: which sessions it runs, and what it reads off them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import BackendError
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord, CallStatus, Listener, RunResult, SessionRecord
from mosaic.core.workload import Call
from mosaic.runtime.sweep import Sweep, run_sweep, sweep_calls
from tests.factories import make_cluster, make_expert
from tests.sim.cluster_runs import make_backend

SWEEP = Sweep(shard_sizes=(2, 5), num_repeats=2)


@dataclass
class AffineBackend:
    """Serves a session of n calls in ``fixed_s + per_call_s n``, loads in 7 s the first time and 9 s after that."""

    fixed_s: float = 20.0
    per_call_s: float = 3.0
    unfinished: int = 0
    name: str = "affine"
    plan: Plan | None = None

    dead_workers: ClassVar[dict[int, str]] = {}

    def execute(self, plan: Plan, calls: Sequence[Call], listener: Listener | None = None) -> RunResult:
        self.plan = plan
        by_key = {call.key: call for call in calls}
        records, sessions, clock = [], [], 0.0
        for session in plan.sessions:
            load_s = 9.0 if any(earlier.expert == session.expert for earlier in sessions) else 7.0
            start_ts = clock + load_s
            end_ts = start_ts + self.fixed_s + self.per_call_s * len(session.shard)
            for key in session.shard:
                records.append(
                    CallRecord(
                        key, session.expert, session.id, session.workers, by_key[key].prompt_tokens,
                        by_key[key].prompt_tokens + 1, 0.0, start_ts, start_ts, end_ts,
                    )
                )  # fmt: skip
            sessions.append(
                SessionRecord(
                    session=session.id,
                    expert=session.expert,
                    node=session.node,
                    workers=session.workers,
                    load_start_ts=clock,
                    load_s=load_s,
                    start_ts=start_ts,
                    end_ts=end_ts,
                    num_calls=len(session.shard),
                    output_tokens=sum(by_key[key].prompt_tokens + 1 for key in session.shard),
                )
            )
            clock = end_ts
        lost = [record._replace(status=CallStatus.FAILED) for record in records[: self.unfinished]]
        return RunResult(
            calls=(*lost, *records[self.unfinished :]), sessions=tuple(sessions), num_workers=plan.num_workers
        )


def profile_of(backend, *, sweep: Sweep = SWEEP, experts=("A", "B")):
    return run_sweep(
        sweep, [make_expert(name) for name in experts], make_cluster(2), backend, lambda i: 100 + i, "by hand"
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
    backend = AffineBackend()
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


def test_the_longest_load_is_the_price_of_one() -> None:
    assert profile_of(AffineBackend()).entry("B", "gpu", 1).load_s == 9.0


def test_experts_take_turns_so_that_each_session_loads() -> None:
    backend = AffineBackend()
    profile_of(backend)
    assert backend.plan is not None
    assert [session.expert for session in backend.plan.sessions] == list("ABABABAB")


def test_a_wide_expert_is_measured_at_its_own_degree() -> None:
    backend = AffineBackend()
    profile = run_sweep(SWEEP, [make_expert("T", tp_degree=2)], make_cluster(2), backend, lambda i: 9, "wide")
    assert profile.entry("T", "gpu", 2).fit.per_call_s == pytest.approx(3.0)
    assert backend.plan is not None
    assert {session.workers for session in backend.plan.sessions} == {(0, 1)}


def test_the_simulator_runs_a_sweep() -> None:
    backend = make_backend(lambda call: Outcome(50 + call.prompt_tokens % 7))
    profile = profile_of(backend)
    assert profile == profile_of(backend)
    for entry in profile.entries:
        assert entry.load_s == 10.0
        assert entry.output_tokens == tuple(sorted(50 + (100 + i) % 7 for i in range(14)))
        assert entry.fit.residual_std_frac < 0.1


def test_a_sweep_that_did_not_finish_prices_nothing() -> None:
    with pytest.raises(BackendError, match="profile sweep: every call must finish, 25 of 28 did"):
        profile_of(AffineBackend(unfinished=3))


def test_what_the_backend_lacks_ends_the_sweep() -> None:
    with pytest.raises(BackendError, match=r"expert must be one of \['A', 'B', 'T'\], got 'C'"):
        profile_of(make_backend(lambda call: Outcome(5)), experts=("C",))


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

"""Loads that hide and experts beside each other: by hand, and in memory at every instant."""

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from mosaic.core.errors import BackendError
from mosaic.runtime.static_plan import execute
from sim.cluster.expert_on_gpu import GpuUse, Keep
from sim.hardware.hardware import Host
from tests.controllers import Watcher
from tests.factories import make_cluster, make_expert, make_plan, make_session, make_shape, some_calls
from tests.sim.cluster_runs import LinearHardware, by_key, make_backend
from tests.sim.oracle import LinearTime
from tests.sim.random_runs import runs

WEIGHTS = make_shape().weight_bytes
LINK = 8e9


def make_host(memory_gib=1000.0, **changes):
    numbers = {"load_fixed_s": 3.0, "load_bytes_per_s": 1e18, "sleep_fixed_s": 1.0, "asleep_gpu_gib": 0.5}
    return Host(memory_gib=memory_gib, source="assumed", **{**numbers, **changes})


STEP = LinearTime(base_s=0.01, per_seq_s=0.0, per_kv_token_s=0.0, per_prefill_token_s=0.0, per_prefill_pair_s=0.0)
MACHINE = LinearHardware(10.0, STEP, unload_s=5.0, host_link_bytes_per_s=WEIGHTS / 2.0, host=make_host())
"""Loads: 10 s cold, 3 s from the host; 3 s to sleep or wake (2 s for the copy); 5 s to end. Steps: 10 ms."""


def run_shards(*shards, lengths=None, workers=None, num_workers=1, **changes):
    """Run a session a shard; give the sessions in this order, and what was held."""
    calls = [call for shard in shards for call in shard]
    places = workers or [(0,)] * len(shards)
    sessions = [make_session(number, shard, workers=places[number]) for number, shard in enumerate(shards)]
    given = {"hardware": MACHINE, "cluster": make_cluster(num_workers), **changes}
    backend = make_backend(by_key(lengths or 100), **given)
    result = execute(make_plan(*sessions, num_workers=num_workers), calls, backend)
    return sorted(result.sessions, key=lambda session: session.session), backend.holdings


def timed(*experts, host=None, **changes):
    """Serve two calls of 100 tokens an expert, in this order, and give each session's load start, load and end."""
    shards = [some_calls(name, 2, start=10 * number) for number, name in enumerate(experts)]
    machine = MACHINE if host is None else replace(MACHINE, host=host)
    sessions, _ = run_shards(*shards, hardware=machine, **changes)
    return [(round(s.load_start_ts, 6), round(s.load_s, 6), round(s.end_ts, 2)) for s in sessions]


COLD = [(0, 10, 11.0), (16, 10, 27.0), (32, 10, 43.0)]
"""Every load of three sessions is cold, and an engine has ended before the next one loads."""
ASLEEP = [(0, 10, 11.0), (14, 10, 25.0)]
"""An engine has gone to sleep before the next one loads."""
WEIGHTS_KEPT, ENGINES_KEPT, AHEAD = GpuUse(keep=Keep.WEIGHTS), GpuUse(keep=Keep.ENGINES), GpuUse(load_ahead_gib=20.0)
ROOM_FOR_ONE = make_host(1.5 * WEIGHTS / 2**30)


ON_TWO = {"num_workers": 2}
LOADED = {
    "nothing is kept": ("ABA", {"use": GpuUse()}, COLD),
    "weights that were loaded come from the host": ("ABA", {"use": WEIGHTS_KEPT}, [*COLD[:2], (32, 3, 36.0)]),
    "engines sleep instead of ending and wake": ("ABA", {"use": ENGINES_KEPT}, [*ASLEEP, (28, 3, 32.0)]),
    "loaded beside the first, from the same read of the disk": (
        "ABA", {"use": ENGINES_KEPT, "workers": [(0,), (0,), (1,)], **ON_TWO}, [*ASLEEP, (0, 10, 11.0)],
    ),
    "who loads while the weights are read has them when the first has": (
        "BAA", {"use": WEIGHTS_KEPT, "workers": [(0,), (1,), (0,)], **ON_TWO}, [COLD[0], (0, 10, 11.0), (16, 3, 20.0)],
    ),
    "what does not fit into the host is not kept": ("ABA", {"use": ENGINES_KEPT, "host": make_host(1.0)}, COLD),
    "weights of B take the place of A asleep": (
        "ABA", {"use": ENGINES_KEPT, "host": ROOM_FOR_ONE}, [*ASLEEP, (28, 10, 39.0)],
    ),
    "an engine asleep needs memory that the running one leaves": (  # of 80 GiB, engines leave 8
        "ABA", {"use": ENGINES_KEPT, "host": make_host(asleep_gpu_gib=9.0)}, [*COLD[:2], (32, 3, 36.0)],
    ),
    "B is there when A has ended, and waits for its memory": ("AB", {"use": AHEAD}, [COLD[0], (0, 10, 17.0)]),
    "too little is kept free": ("AB", {"use": GpuUse(load_ahead_gib=10.0)}, COLD[:2]),
    "one expert twice is loaded once, also where loads go ahead": ("AA", {"use": AHEAD}, [COLD[0], (11, 0, 12.0)]),
    "experts on one GPU take turns": ("AB", {"use": GpuUse(experts_per_gpu=2)}, [(0, 10, 12.0)] * 2),
}  # fmt: skip


@pytest.mark.parametrize(("experts", "options", "expected"), LOADED.values(), ids=LOADED)
def test_sessions_load_and_end_when_they_should(experts, options, expected):
    assert timed(*experts, **options) == expected


def test_who_is_alone_again_is_as_fast_as_before():
    short, long = some_calls("A", 1), some_calls("B", 1)
    lengths = {short[0].key: 100, long[0].key: 300}
    sessions, _ = run_shards(short, long, lengths=lengths, use=GpuUse(experts_per_gpu=2))
    assert [session.end_ts for session in sessions] == pytest.approx([12.0, 14.0], abs=0.05)


def test_of_two_copies_of_an_engine_the_one_in_use_stays_when_the_other_makes_room():
    shards = [some_calls("A", 1), some_calls("A", 1, start=5), some_calls("B", 1)]
    lengths = {shard[0].key: 900 if number else 10 for number, shard in enumerate(shards)}
    (_, long, _), holdings = run_shards(*shards, lengths=lengths, use=GpuUse(experts_per_gpu=2))
    assert [held.end_ts >= long.end_ts for held in holdings if held.expert == "A"] == [False, True]


def test_an_expert_that_a_share_does_not_hold_has_the_gpu_for_itself():
    experts = [make_expert("L", shape=make_shape(num_parameters=20_000_000_000)), make_expert("A")]
    shards = [some_calls("L", 1), some_calls("A", 1)]
    (first, second), _ = run_shards(*shards, experts=experts, use=GpuUse(experts_per_gpu=2))
    assert second.load_start_ts >= first.end_ts


def test_hardware_without_a_host_keeps_nothing():
    with pytest.raises(BackendError, match="backend.keep"):
        run_shards(some_calls("A", 1), hardware=LinearHardware(), use=WEIGHTS_KEPT)


USES = st.builds(GpuUse, keep=st.sampled_from(Keep)) | st.builds(
    lambda keep, ahead, shares: GpuUse(keep=keep, load_ahead_gib=ahead, experts_per_gpu=shares if ahead is None else 1),
    st.sampled_from(Keep),
    st.sampled_from([None, None, 10.0, 20.0]),
    st.sampled_from([2, 3]),
)


def most_held(holdings, place, whats):
    """The most that was held at once; what ends at an instant is gone when something else begins."""
    changes: dict[float, int] = defaultdict(int)
    for holding in holdings:
        if holding.place == place and holding.what in whats:
            changes[holding.start_ts] += holding.num_bytes
            changes[holding.end_ts] -= holding.num_bytes
    most = held = 0
    for instant in sorted(changes):
        held += changes[instant]
        most = max(most, held)
    return most


def covers(holdings, expert, place, whats, start_ts, end_ts):
    """Whether something of an expert was held all the time."""
    mine = [h for h in holdings if (h.expert, h.place) == (expert, place) and h.what in whats]
    reached = start_ts
    for holding in sorted(mine, key=lambda holding: holding.start_ts):
        if holding.start_ts <= reached + 1e-9:
            reached = max(reached, holding.end_ts)
    return reached >= end_ts - 1e-9


@pytest.mark.slow
@settings(max_examples=75, deadline=None)
@given(runs(), USES, st.sampled_from([10.0, 20.0, 40.0, 1000.0]), st.booleans())
def test_memory_is_respected_at_every_instant(run, use, host_gib, watched):
    make, plan, calls = run
    options = replace(make.keywords["settings"], kv_cache_tokens=None)
    machine = replace(make.keywords["hardware"], host=make_host(host_gib), unload_s=4.0, host_link_bytes_per_s=LINK)
    backend = make(settings=options, use=use, hardware=machine)
    result = execute(plan, calls, backend, [Watcher()] if watched else [])
    assert sorted(record.key for record in result.calls) == sorted(call.key for call in calls)
    holdings, gpu = backend.holdings, make.keywords["cluster"].workers[0].gpu
    for worker in range(plan.num_workers):
        assert most_held(holdings, worker, {"engine"}) <= gpu.usable_bytes
        assert most_held(holdings, worker, {"engine", "asleep"}) <= gpu.memory_bytes
    assert most_held(holdings, None, {"weights", "asleep"}) <= host_gib * 2**30
    for session in result.sessions:
        for worker in session.workers:
            assert covers(holdings, session.expert, worker, {"engine"}, session.load_start_ts, session.end_ts)
        cold_s = machine.load / len(session.workers)
        if 0 < session.load_s < cold_s - 1e-9:  # it came from somewhere
            until_ts = session.load_start_ts + session.load_s
            assert use.keep is not Keep.NOTHING
            kept = {"weights"} if use.keep is Keep.WEIGHTS else {"weights", "asleep"}
            assert covers(holdings, session.expert, None, kept, session.load_start_ts, until_ts)


@settings(max_examples=60, deadline=None)
@given(runs(), st.sampled_from([2, 3]))
def test_taking_turns_neither_loses_nor_makes_time(run, shares):
    """A GPU works off its sessions' calls no faster beside each other than alone, and is not idle between."""
    make, plan, calls = run
    options = replace(make.keywords["settings"], kv_cache_tokens=4000)
    calls = [structs.replace(call, ready_s=0.0) for call in calls]
    machine = replace(make.keywords["hardware"], load=0.0)
    kept = tuple(session for session in plan.sessions if len(session.workers) == 1)
    plan = replace(plan, sessions=kept, predicted=plan.predicted[: len(kept)])
    served = {key for session in plan.sessions for key in session.shard}
    calls = [call for call in calls if call.key in served]
    if not calls:
        return

    shared = GpuUse(experts_per_gpu=shares)
    alone, beside = (
        execute(plan, calls, make(settings=options, hardware=machine, use=use))
        for use in (shared.one_at_a_time, shared)
    )
    for worker in range(plan.num_workers):
        ends = [
            max((s.end_ts for s in result.sessions if worker in s.workers), default=0.0) for result in (alone, beside)
        ]
        assert ends[1] == pytest.approx(ends[0], rel=1e-6, abs=shares * 1.0)

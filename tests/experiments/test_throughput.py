from dataclasses import replace

import pytest

from experiments.studies.throughput import (
    Relaxed,
    ThroughputPoint,
    size_means,
    throughput_point,
    throughput_points,
    throughput_rows,
)
from experiments.studies.throughput_reasons import explain_curve, gain
from mosaic.core.errors import BackendError
from tests.run_records import make_failed, make_record, make_session

QWEN = ("workload=mmlu_pro", "pool=hybrid")


def measure(*overrides: str, sizes=(32, 256), repeats: int = 3, expert: str = "Qwen") -> tuple[ThroughputPoint, ...]:
    return throughput_points([*QWEN, *overrides], expert, shard_sizes=sizes, num_repeats=repeats, min_calls=1)


def make_point(shard_size: int = 256, rate: float = 100.0, **changes: object) -> ThroughputPoint:
    fields: dict = {
        "expert": "A", "shard_size": shard_size, "repeat": 0, "relaxed": Relaxed.NOTHING, "session_s": 10.0,
        "output_tok_per_s": rate, "mean_in_flight": 20.0, "mean_held_tokens": 500.0, "tail_frac": 0.25,
        "num_preemptions": 0, "kv_capacity_tokens": 128_000, "max_num_seqs": 256,
    }  # fmt: skip
    return ThroughputPoint(**{**fields, **changes})


def make_curve(rates: dict[int, float], gains: dict[Relaxed, float]) -> list[ThroughputPoint]:
    """One session a size, and relaxed ones whose throughput is higher by their gain at the last size."""
    points = [make_point(size, rate) for size, rate in rates.items()]
    for size in (128, max(rates)):
        points += [
            make_point(size, rates[size] * (1 + gains.get(limit, 0.0)), relaxed=limit)
            for limit in Relaxed
            if limit is not Relaxed.NOTHING
        ]
    return points


def test_point_of_a_session_is_what_hand_computation_gives():
    # Loaded at 10; two calls of 100 prompt tokens run from 10 to 30 and from 20 to 60, 40 and 80 tokens.
    session = make_session(load=(0.0, 10.0), end_ts=60.0, output_tokens=120)
    calls = [
        make_record("q0", admitted_ts=10.0, finished_ts=30.0, output_tokens=40, num_preemptions=2),
        make_record("q1", admitted_ts=20.0, finished_ts=60.0, output_tokens=80, num_preemptions=1),
    ]
    point = throughput_point(session, calls, repeat=3, relaxed=Relaxed.NOTHING, kv_capacity_tokens=1000, max_num_seqs=8)
    assert (point.session_s, point.output_tok_per_s) == (50.0, 2.4)
    assert point.mean_in_flight == pytest.approx((20 + 40) / 50)
    assert point.mean_held_tokens == pytest.approx((120 * 20 + 140 * 40) / 60)
    assert (point.num_preemptions, point.shard_size, point.tail_frac) == (3, 2, 0.0)


def test_tail_starts_when_fewer_than_a_tenth_of_the_calls_is_left():
    calls = [make_record(f"q{i}", admitted_ts=0.0, finished_ts=float(i)) for i in range(1, 21)]
    session = make_session(load=(0.0, 0.0), end_ts=20.0)
    point = throughput_point(session, calls, repeat=0, relaxed=Relaxed.NOTHING, kv_capacity_tokens=1000, max_num_seqs=8)
    assert point.tail_frac == pytest.approx(1 / 20), "at 19 one of 20 is left, at 18 still two, a tenth"


def test_an_unfinished_call_is_refused():
    with pytest.raises(BackendError, match="every call must finish"):
        throughput_point(
            make_session(), [make_failed("q0")], repeat=0, relaxed=Relaxed.NOTHING, kv_capacity_tokens=1, max_num_seqs=1
        )


def test_sizes_are_averaged_without_the_relaxed_sessions():
    points = [make_point(8, 100.0), make_point(8, 120.0, repeat=1), make_point(8, 900.0, relaxed=Relaxed.BOTH)]
    (mean,) = size_means(points)
    assert (mean.rate.mean, mean.rate.num) == (110.0, 2)
    assert mean.rate.low == pytest.approx(110 - 12.706 * 10, rel=1e-3), "t of one degree of freedom"
    assert size_means(points[:1])[0].rate.low is None


def test_gain_is_paired_by_session():
    points = [make_point(rate=100.0), make_point(rate=200.0, repeat=1)]
    points += [replace(point, relaxed=Relaxed.BOTH, output_tok_per_s=1.1 * point.output_tok_per_s) for point in points]
    found = gain(points, Relaxed.BOTH, 256)
    assert found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1), "the spread between sessions does not enter"
    with pytest.raises(ValueError, match="no session of 8 calls"):
        gain(points, Relaxed.BOTH, 8)


@pytest.mark.parametrize(
    ("gains", "reason"),
    [
        ({Relaxed.KV_CACHE: 0.1, Relaxed.BOTH: 0.1}, "the KV cache of 128k tokens, 500 for a call in flight, bounds"),
        ({Relaxed.SEQUENCES: 0.1, Relaxed.BOTH: 0.1}, "the limit of 256 sequences bounds the batch before the KV"),
        ({Relaxed.BOTH: 0.1}, "bound the batch together, as so many calls take 100% of it"),
        ({Relaxed.KV_CACHE: 0.001}, "neither the limit of 256 sequences nor the KV cache of 128k tokens"),
    ],
)
def test_reason_names_the_limit_whose_relaxation_gains(gains, reason):
    sentence = explain_curve(make_curve({128: 100.0, 256: 200.0}, gains))
    assert reason in sentence
    assert (sentence.count("."), sentence[-1]) == (1, "."), "one sentence"


def test_reason_says_where_the_curve_levels_off_and_what_lengths_and_small_shards_cost():
    rates = {128: 50.0, 512: 96.0, 1024: 100.0}
    sentence = explain_curve(make_curve(rates, {Relaxed.LENGTHS: 0.4, Relaxed.BOTH: 0.1}))
    assert "levels off at shards of 512 calls (100 tok/s at 1,024)" in sentence
    assert (
        "lengths cost more (calls of equal length: +40%): fewer than a tenth of the calls is left for 25%" in sentence
    )
    assert "a shard of 128 gets 50% of the peak" in sentence
    growing = explain_curve(make_curve(rates | {1024: 192.0}, {}))
    assert "still grows at shards of 1,024 calls (192 tok/s, +100% from 512)" in growing
    assert "lengths cost less" in growing


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("backend.max_num_seqs=16",), "the limit of 16 sequences bounds the batch before the KV cache"),
        (("backend.kv_cache_tokens=10000",), "the KV cache of 10k tokens"),
    ],
)
def test_the_bound_moves_with_the_limit_that_is_tightened(overrides, reason):
    points = measure(*overrides)
    assert reason in explain_curve(points)
    (key, other) = (
        (Relaxed.SEQUENCES, Relaxed.KV_CACHE) if "seqs" in overrides[0] else (Relaxed.KV_CACHE, Relaxed.SEQUENCES)
    )
    assert gain(points, key, 256).mean > 0.1 > gain(points, other, 256).mean


def test_lengths_and_not_limits_bound_a_shard_that_is_admitted_at_once():
    points = measure(sizes=(8, 128))
    plain = [point for point in points if point.shard_size == 128 and point.relaxed is Relaxed.NOTHING]
    assert all(point.max_num_seqs >= 128 and point.num_preemptions == 0 for point in plain)
    assert gain(points, Relaxed.BOTH, 128).mean == 0
    assert gain(points, Relaxed.LENGTHS, 128).mean > 0.5
    equal = [point for point in points if point.relaxed is Relaxed.LENGTHS]
    assert max(point.tail_frac for point in equal) < 0.1 < min(point.tail_frac for point in plain)


def test_throughput_grows_with_the_shard_and_sessions_share_no_luck():
    points = measure(sizes=(8, 256))
    small, large = size_means(points)
    assert large.rate.mean > 2 * small.rate.mean
    plain = [point.output_tok_per_s for point in points if point.relaxed is Relaxed.NOTHING]
    assert len(set(plain)) == len(plain) == 6
    assert measure(sizes=(8, 256)) == points


def test_small_shards_are_repeated_until_they_have_enough_calls():
    points = throughput_points(QWEN, "Qwen", shard_sizes=(8, 16), num_repeats=1, min_calls=24)
    assert [(point.shard_size, point.repeat) for point in points if point.relaxed is Relaxed.NOTHING] == [
        (8, 0), (8, 1), (8, 2), (16, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expert": "Nobody"}, "throughput: expert must be one of"),
        ({"shard_sizes": ()}, "throughput: shard_sizes must be at least one size"),
        ({"shard_sizes": (0,)}, "throughput: shard_sizes must be"),
        ({"num_repeats": 0}, "throughput: num_repeats must be"),
        ({"overrides": ("backend=none",)}, "a simulated backend"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        throughput_points(**{"overrides": QWEN, "expert": "Qwen", "shard_sizes": (8,), **arguments})


def test_rows_hold_every_session_those_with_a_limit_relaxed_among_them() -> None:
    points = make_curve({8: 90.0, 128: 310.0}, {Relaxed.BOTH: 0.1})
    head, *rows = throughput_rows({"hybrid": {"A": points}, "instruct": {"A": points[:1]}})
    assert head[:3] == ("pool", "expert", "shard_size")
    assert len(rows) == len(points) + 1
    assert {row[0] for row in rows} == {"hybrid", "instruct"}
    assert {row[4] for row in rows} == set(Relaxed)

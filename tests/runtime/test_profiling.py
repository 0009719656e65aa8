"""The speed of an engine, from records of calls that an engine of known speed has served."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from mosaic.core.workload import PROPOSE
from mosaic.planning.length_forecast import Speed
from mosaic.runtime.profiling import fit_run, fit_speed
from tests.factories import make_cluster, make_expert
from tests.run_records import make_record, make_result, make_session

READ_S = 1e-4


def serve(lengths, prompts, speed: Speed, session: int = 0, start_ts: float = 0.0):
    """Let an engine of a speed read all prompts, and then decode, and record it."""
    now = first_ts = start_ts + READ_S * sum(prompts)
    written, records = 1, []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        left = [n for n in range(len(lengths)) if lengths[n] >= lengths[number]]
        while written < lengths[number]:
            now += speed.step_s(len(left), sum(prompts[n] + written + 0.5 for n in left))
            written += 1
        records.append(
            make_record(
                f"q{number}",
                session=session,
                prompt_tokens=prompts[number],
                output_tokens=lengths[number],
                queued_ts=start_ts,
                admitted_ts=start_ts,
                first_token_ts=first_ts,
                finished_ts=now,
            )
        )
    return records


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 2e-2), st.floats(1e-5, 1e-3), st.floats(1e-8, 1e-6))
def test_a_known_speed_is_found_again(seed: int, base_s: float, per_seq_s: float, per_kv_s: float) -> None:
    speed = Speed(base_s=base_s, per_seq_s=per_seq_s, per_kv_s=per_kv_s, read_s=READ_S)
    rng, records = Random(seed), []
    for session, number in enumerate((4, 10, 25)):
        lengths = [int(rng.lognormvariate(4, 0.8)) + 2 for _ in range(number)]
        records += serve(lengths, [rng.randint(20, 400) for _ in range(number)], speed, session)
    found = fit_speed(records)
    assert found is not None
    for num_seqs in (1, 10, 50):
        kv_tokens = 300 * num_seqs
        assert found.step_s(num_seqs, kv_tokens) == pytest.approx(speed.step_s(num_seqs, kv_tokens), rel=0.15)
    assert found.read_s == pytest.approx(READ_S, rel=0.01)


def test_where_no_first_token_is_reported_reading_is_not_priced_and_one_token_says_nothing() -> None:
    speed = Speed(base_s=0.01, per_seq_s=0.0, per_kv_s=0.0, read_s=0.0)
    timed = serve([20, 30, 40], [10, 10, 10], speed)
    silent = fit_speed([structs.replace(record, first_token_ts=None) for record in timed])
    assert silent is not None
    assert silent.read_s == 0
    assert silent.step_s(1) == pytest.approx(0.01, rel=0.2)
    assert fit_speed([structs.replace(record, output_tokens=1) for record in timed]) is None
    assert fit_speed([structs.replace(record, admitted_ts=None) for record in timed]) is None
    at_once = [structs.replace(record, first_token_ts=None, finished_ts=record.admitted_ts) for record in timed]
    assert fit_speed(at_once) is None


def test_a_session_of_one_call_says_nothing_of_others_and_one_of_two_stands_for_one_too() -> None:
    speed = Speed(base_s=0.01, per_seq_s=0.0, per_kv_s=0.0, read_s=READ_S)

    def num_points(lengths: list[int]) -> list[int]:
        calls = tuple(serve(lengths, [10] * len(lengths), speed))
        session = replace(make_session(), num_calls=len(calls), start_ts=0.0, end_ts=99.0)
        result = make_result(session, calls=calls, num_workers=1)
        profile = fit_run([make_expert()], make_cluster(1), result, "run", [PROPOSE], in_waves=False)
        return [len(entry.points) for entry in profile.entries]

    assert num_points([20]) == []
    assert num_points([20, 30]) == [2]


def test_seconds_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match=r"speed: per_kv_s must be .*, got -1"):
        Speed(base_s=0.0, per_seq_s=0.0, per_kv_s=-1.0, read_s=0.0)

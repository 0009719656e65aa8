"""What is left of calls under way, against lengths and sessions played through by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.planning.length_forecast import Lengths, Speed, Underway, drain_s

SPEED = Speed(base_s=0.01, per_seq_s=0.002, per_kv_s=1e-6, read_s=0.0)


def played(lengths, prompts, written, speed: Speed = SPEED) -> float:
    """Play a session through, one iteration after the other."""
    seconds, done = 0.0, list(written)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        on = [i for i in range(len(done)) if done[i] < lengths[i]]
        seconds += speed.step_s(len(on), sum(prompts[i] + done[i] + 0.5 for i in on))
        for i in on:
            done[i] += 1
    return seconds


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 50), st.integers(0, 59)), min_size=1, max_size=8))
def test_a_session_whose_lengths_are_known_takes_what_it_takes_step_by_step(calls) -> None:
    calls = [(length, prompt, min(written, length - 1)) for length, prompt, written in calls]
    lengths, prompts, written = zip(*calls, strict=True)
    samples = [Lengths((length,)) for length in lengths]
    known = Underway(samples, np.arange(len(samples)), np.array(written, dtype=float), np.array(prompts, dtype=float))
    assert drain_s(known, SPEED) == pytest.approx(played(*zip(*calls, strict=True)), rel=1e-9)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), st.integers(0, 6000))
def test_what_is_left_is_that_of_the_longer_ones(sample, written: int) -> None:
    lengths = Lengths(tuple(sample))
    longer = [length - written for length in sample if length > written]
    left = lengths.left(np.full(40, float(written)), (np.arange(40) + 0.5) / 40)
    if longer:
        assert set(left) <= set(longer)
        assert left.mean() == pytest.approx(np.mean(longer), rel=0.2, abs=max(longer) / 10)
    else:
        assert set(left) == {0.1 * max(sample)}, "beyond the sample"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.integers(0, 3000))
def test_another_call_never_ends_a_session_earlier_and_a_head_start_never_later(length: int, written, more) -> None:
    def underway(*written: int) -> Underway:
        sample_of = np.zeros(len(written), dtype=np.int64)
        return Underway([Lengths((length,))], sample_of, np.array(written, dtype=float), np.full(len(written), 100.0))

    alone = drain_s(underway(*written), SPEED)
    assert drain_s(underway(*written, more), SPEED) >= alone * (1 - 1e-9)
    assert drain_s(underway(*written), SPEED, head_start_s=1.0) <= alone
    assert drain_s(underway(), SPEED) == 0


def test_a_sample_must_hold_a_length() -> None:
    with pytest.raises(ValueError, match="sample must hold at least one length"):
        Lengths(())

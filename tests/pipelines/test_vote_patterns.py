"""Whether a batch votes as its calibration questions do: p-values by hand, false alarms and power with fixed draws."""

from collections import Counter

import numpy as np
import pytest

from mosaic.pipelines.vote_patterns import LEVEL, compare_patterns, vote_pattern
from tests.calibration_questions import make_ballot_of

PATTERNS = ("3:0", "2:1", "1:1:1", "2:0, 1 missing")
SHARES = (0.45, 0.35, 0.15, 0.05)
SHIFTED = (0.20, 0.35, 0.35, 0.10)
NUM_CALIBRATION, NUM_BATCH = 200, 100


def draw(rng: np.random.Generator, number: int, shares: tuple[float, ...]) -> list[str]:
    return list(rng.choice(PATTERNS, size=number, p=shares))


def share_of_alarms(shares: tuple[float, ...], *, num_batches: int, seed: int) -> float:
    """Draw calibration questions and a batch many times; the batch has these shares of patterns."""
    rng = np.random.default_rng(seed)
    tests = [
        compare_patterns(draw(rng, NUM_CALIBRATION, SHARES), draw(rng, NUM_BATCH, shares)) for _ in range(num_batches)
    ]
    return sum(test.differs for test in tests) / num_batches


@pytest.mark.parametrize(
    ("votes", "pattern"),
    [
        ("AAA", "3:0"), ("BAB", "2:1"), ("ABC", "1:1:1"), ("AA-", "2:0, 1 missing"), ("A-B", "1:1, 1 missing"),
        ("A--", "1:0, 2 missing"), ("---", "3 missing"), ("A", "1:0"), ("ABBAB", "3:2"),
    ],
)  # fmt: skip
def test_a_pattern_says_how_the_votes_split(votes: str, pattern: str) -> None:
    assert vote_pattern(make_ballot_of(votes, experts="VWXYZ")) == pattern


@pytest.mark.parametrize(
    ("calibration", "batch", "p_value"),
    [
        ("xxx", "yyy", 2 / 20),  # two of the 20 ways to deal six questions
        ("xxxx", "yyyy", 2 / 70),
        ("xxxxx", "xy", 2 / 7),  # whoever gets the y: in the batch it is furthest from what is expected
        ("xy", "xy", 1.0),
        ("xxx", "x", 1.0),
        ("", "xyz", 1.0),
    ],
)
def test_p_values_by_hand(calibration: str, batch: str, p_value: float) -> None:
    assert compare_patterns(calibration, batch).p_value == pytest.approx(p_value, abs=0.015)


def test_the_same_counts_have_the_same_p_value_in_any_order() -> None:
    one = compare_patterns(["a"] * 40 + ["b"] * 30, ["a"] * 12 + ["b"] * 18)
    other = compare_patterns(["b"] * 30 + ["a"] * 40, ["b"] * 18 + ["a"] * 12)
    assert one == other
    assert 0 < one.p_value < 1


def test_questions_that_are_drawn_alike_raise_a_false_alarm_in_about_one_batch_of_a_hundred() -> None:
    num_batches = 200
    deviation = (LEVEL * (1 - LEVEL) / num_batches) ** 0.5
    assert share_of_alarms(SHARES, num_batches=num_batches, seed=1) <= LEVEL + 3 * deviation


def test_a_world_that_is_shifted_is_found_out() -> None:
    assert share_of_alarms(SHIFTED, num_batches=40, seed=2) >= 0.9


def test_the_largest_differences_are_named_with_both_shares() -> None:
    test = compare_patterns(["3:0"] * 60 + ["2:1"] * 40, ["3:0"] * 10 + ["2:1"] * 30 + ["1:1:1"] * 10)
    assert test.largest_differences(2) == "3:0 20.0% (was 60.0%); 1:1:1 20.0% (was 0.0%)"
    assert test.batch == Counter({"2:1": 30, "3:0": 10, "1:1:1": 10})

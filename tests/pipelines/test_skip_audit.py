"""The audit's bound: its promise by simulation with known truth, and by theory where it is known."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.pipelines.skip_audit import SkipAudit, audit_order, log_likelihood, num_to_reach, upper_bound

NUM_SKIPPED = 1400
LOOKS = (300, 600, 1000)
PROTOTYPE = {0.0: (1.24, 0.57, 0.24), 0.01: (2.86, 1.90, 1.52)}
"""Points, by share that would change: what a prototype gave; of how many skipped questions it did not say."""
TOLERANCE = 0.1
"""Points."""
NUM_AUDITS = 2000


def bounds_by_look(num_skipped: int, most_seen: int, most_changed: int) -> np.ndarray:
    """Bounds by number audited and changed, shape (most_seen + 1, most_changed + 1)."""
    table = np.full((most_seen + 1, most_changed + 1), num_skipped)
    for seen in range(1, most_seen + 1):
        for count in range(min(seen, most_changed) + 1):
            table[seen, count] = upper_bound(num_skipped, seen, count, 0.05)
    return table


def audits(num_skipped: int, num_changed: int, most_seen: int, number: int, seed: int) -> np.ndarray:
    """Changes seen so far in simulated audits, shape (number, most_seen)."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(num_skipped, dtype=np.int64)
    truth[:num_changed] = 1
    return np.stack([np.cumsum(rng.permutation(truth)[:most_seen]) for _ in range(number)])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.01])
def test_bounds_are_as_tight_as_the_prototype_s(share: float) -> None:
    num_changed = round(share * NUM_SKIPPED)
    seen = audits(NUM_SKIPPED, num_changed, max(LOOKS), 300, seed=0)
    table = bounds_by_look(NUM_SKIPPED, max(LOOKS), int(seen.max()))
    running = np.minimum.accumulate(table[np.arange(1, max(LOOKS) + 1), seen], axis=1)
    means = [100 * float(running[:, look - 1].mean()) / NUM_SKIPPED for look in LOOKS]
    print(share, [round(mean, 2) for mean in means], "prototype", PROTOTYPE[share])
    assert all(mean <= before + TOLERANCE for mean, before in zip(means, PROTOTYPE[share], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("num_skipped", "num_changed"), [(400, 0), (400, 2), (400, 8), (400, 40), (400, 200), (60, 3)])
def test_the_promise_holds_at_every_moment_at_once(num_skipped: int, num_changed: int) -> None:
    """Of 2,000 audits that are watched after every question, no more break it than 5% and three standard errors."""
    seen = audits(num_skipped, num_changed, num_skipped, NUM_AUDITS, seed=num_changed)
    table = bounds_by_look(num_skipped, num_skipped, num_changed)
    lowest = table[np.arange(1, num_skipped + 1), seen].min(axis=1)
    num_broken = int((lowest < num_changed).sum())
    print(num_skipped, num_changed, num_broken / NUM_AUDITS)
    assert num_broken <= NUM_AUDITS * 0.05 + 3 * (NUM_AUDITS * 0.05 * 0.95) ** 0.5


def test_the_likelihood_is_the_hypergeometric_one() -> None:
    logs = log_likelihood(12, 5, 2)
    exact = [
        Fraction(comb(changes, 2) * comb(12 - changes, 3), comb(12, 5)) if 2 <= changes <= 9 else Fraction(0)
        for changes in range(13)
    ]
    ratio = np.exp(logs[2:10]) / np.array([float(value) for value in exact[2:10]])
    assert ratio == pytest.approx(np.full(8, ratio[0])), "equal but for what the order decides"
    assert np.isneginf(logs[[0, 1, 10, 11, 12]]).all()


@given(st.integers(1, 60), st.data())
def test_a_bound_is_possible_and_rises_with_what_changed(num_skipped: int, data: st.DataObject) -> None:
    seen = data.draw(st.integers(1, num_skipped))
    bounds = [upper_bound(num_skipped, seen, changed, 0.05) for changed in range(seen + 1)]
    assert bounds == sorted(bounds)
    assert all(changed <= bound <= num_skipped - (seen - changed) for changed, bound in enumerate(bounds))
    assert upper_bound(num_skipped, num_skipped, seen, 0.05) == seen, "all are known"


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 40))
def test_an_audit_in_parts_is_the_audit_in_one(changes: list[bool], cut: int) -> None:
    whole, parts = SkipAudit(num_skipped=50), SkipAudit(num_skipped=50)
    whole.see(changes)
    before = parts.see(changes[:cut])
    assert parts.see(changes[cut:]) == whole.bound <= before
    assert (parts.num_audited, parts.num_changed) == (len(changes), sum(changes))


def test_a_smaller_risk_promises_less() -> None:
    assert upper_bound(1000, 200, 1, 0.01) > upper_bound(1000, 200, 1, 0.05)


def test_what_it_takes_is_what_it_took() -> None:
    audit = SkipAudit(num_skipped=1000)
    audit.see([False] * 50)
    number = num_to_reach(audit, 0.01)
    assert number is not None
    assert upper_bound(1000, number, 0, 0.05) <= 10 < upper_bound(1000, number - 1, 0, 0.05)
    audit.see([True] * 100)
    assert num_to_reach(audit, 0.05) is None, "more than that have changed"


def test_the_order_is_a_permutation_that_the_seed_and_the_ids_decide() -> None:
    names = [f"q{number}" for number in range(500)]
    order = audit_order(names, "seed")
    assert sorted(order) == sorted(names)
    assert order == audit_order(list(reversed(names)), "seed") != audit_order(names, "other")
    early = np.mean([order.index(f"q{number}") for number in range(100)])
    assert abs(early - 249.5) < 4 * 500 / (12 * 100) ** 0.5, "the first are nowhere in particular"


@pytest.mark.parametrize("change", [{"num_skipped": 0}, {"risk": 0.0}, {"risk": 1.0}])
def test_bad_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises((ValueError, TypeError)):
        SkipAudit(**{"num_skipped": 10, **change})
    with pytest.raises(ValueError, match="changes must be of 2 questions, got 'more'"):
        SkipAudit(num_skipped=2).see([False] * 3)

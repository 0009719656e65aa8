"""The simulated world: every policy meets the same luck."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.lengths import ClippedLognormal, Empirical
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE, Call, CallKey
from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin
from mosaic.runtime.static_plan import execute
from sim.world.world import World
from tests.controllers import cancel_on
from tests.factories import make_call, make_problem
from tests.sim.cluster_runs import make_backend

LENGTHS = {
    "A": ClippedLognormal(mean=300, sigma=0.8, clip_tokens=4096),
    "B": Empirical(sample=tuple(range(10, 500, 7))),
}
WORLD = World(lengths=LENGTHS, root_seed=0)
PROBLEM = make_problem({"A": 40, "B": 25})
POLICIES = (RoundRobin(), Fifo(window_questions=16), LeastLoaded(), DataParallel())


def length(call: Call, world: World = WORLD) -> int:
    return world.outcome(call, {}).output_tokens


def run_policy(scheduler, *controllers):
    backend = make_backend(WORLD.outcome, experts=PROBLEM.experts, cluster=PROBLEM.cluster)
    return execute(scheduler.plan(PROBLEM), PROBLEM.calls, backend, controllers).calls


def test_every_policy_meets_the_same_lengths() -> None:
    expected = {call.key: length(call) for call in PROBLEM.calls}
    assert len(set(expected.values())) > 30
    for scheduler in POLICIES:
        assert {record.key: record.output_tokens for record in run_policy(scheduler)} == expected


def test_cancelled_calls_leave_the_luck_of_all_others() -> None:
    records = run_policy(RoundRobin())
    undisturbed = {record.key: record.output_tokens for record in records}
    first = min(records, key=lambda record: record.finished_ts).key
    longest = sorted(undisturbed, key=undisturbed.__getitem__)[-2:]
    records = run_policy(RoundRobin(), cancel_on(first, *longest))
    assert {record.key for record in records if record.status is CallStatus.CANCELLED} == set(longest)
    for record in records:
        if record.status is CallStatus.FINISHED:
            assert record.output_tokens == undisturbed[record.key]


@given(order=st.randoms(), added=st.integers(0, 5))
def test_luck_does_not_depend_on_order_or_on_other_calls(order: random.Random, added: int) -> None:
    calls = [make_call(f"q{i}", expert="AB"[i % 2]) for i in range(12)]
    expected = {call.key: WORLD.outcome(call, {}) for call in calls}
    mixed = [*calls, *(make_call(f"extra{i}") for i in range(added))]
    order.shuffle(mixed)
    drawn = {call.key: WORLD.outcome(call, {}) for call in mixed}
    assert {key: drawn[key] for key in expected} == expected


@given(question=st.text(min_size=1, max_size=5), slot=st.integers(0, 3))
def test_another_expert_meets_the_same_quantile(question: str, slot: int) -> None:
    # Re-routed, a call that was long for its expert is long for the other one.
    world = World(lengths={"A": Empirical(sample=tuple(range(1, 101))), "B": LENGTHS["A"]}, root_seed=7)
    percent = length(make_call(question, expert="A", slot=slot), world)
    other = length(make_call(question, expert="B", slot=slot), world)
    low, high = max(percent - 1, 1e-9), min(percent, 100 - 1e-9)
    assert LENGTHS["A"].quantile(low / 100) <= other <= LENGTHS["A"].quantile(high / 100)


def test_an_expert_that_answers_twice_has_luck_for_each_answer() -> None:
    slots = [[length(make_call(f"q{i}", slot=slot)) for slot in range(3)] for i in range(20)]
    assert sum(len(set(lengths)) == 3 for lengths in slots) > 15


@pytest.mark.parametrize("change", [{"root_seed": 1}, {"stream": "calibration"}])
def test_seeds_and_streams_are_different_worlds(change: dict[str, object]) -> None:
    other = replace(WORLD, **change)  # type: ignore[arg-type]
    changed = sum(other.outcome(call, {}) != WORLD.outcome(call, {}) for call in PROBLEM.calls)
    assert changed > 0.9 * len(PROBLEM.calls)


def test_recorded_lengths_take_precedence() -> None:
    call, other = PROBLEM.calls[:2]
    world = replace(WORLD, recorded={call.key: 7, CallKey("elsewhere", PROPOSE, 0): 8})
    assert world.outcome(call, {}) == Outcome(7)
    assert world.outcome(other, {}) == WORLD.outcome(other, {})


def test_recorded_lengths_need_no_distribution() -> None:
    call = make_call(expert="C")
    assert World(lengths={}, root_seed=0, recorded={call.key: 7}).outcome(call, {}) == Outcome(7)


def test_a_length_from_nowhere_is_refused() -> None:
    message = r"length distribution for expert 'C', got \['A', 'B'\]: add world.output_tokens.C"
    with pytest.raises(ValueError, match=message):
        WORLD.outcome(make_call(expert="C"), {})

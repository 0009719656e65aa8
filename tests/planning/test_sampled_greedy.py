from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import ProfileError
from mosaic.core.plan import Plan
from mosaic.planning.sampled_greedy import SampledGreedy, sample_requests
from tests.factories import SlottedSessions, assert_plan_valid, make_call, make_problem


def shards(plan: Plan) -> dict[tuple[str, int], int]:
    return {(session.expert, session.workers[0]): len(session.shard) for session in plan.sessions}


def test_the_longest_expert_is_split_where_workers_would_be_idle() -> None:
    # One slot and a second a call: alone A takes 8 s. Both workers are idle at 0, and loads are free.
    problem = replace(
        make_problem({"A": 8}, load_s=0.0, max_replicas=2),
        length_samples={"A": (1000,)},
        session_model=SlottedSessions(num_slots=1),
    )
    plan = SampledGreedy().plan(problem)
    assert shards(plan) == {("A", 0): 4, ("A", 1): 4}
    assert "simulated iterations: 4.0 s in 1 stages" in plan.notes[0]


def test_a_worker_that_falls_idle_takes_what_has_not_begun_elsewhere() -> None:
    # B ends at 2 s; of A's eight calls two have begun then and the third begins, so six are left to share.
    problem = replace(
        make_problem({"A": 8, "B": 2}, load_s=0.0, max_replicas={"A": 2, "B": 1}),
        length_samples={"A": (1000,), "B": (1000,)},
        session_model=SlottedSessions(num_slots=1),
    )
    plan = SampledGreedy().plan(problem)
    assert sorted(shards(plan).values()) == [2, 3, 5]
    assert plan.sessions[-1].expert == "A"
    assert "simulated iterations: 5.0 s in 2 stages" in plan.notes[0]


def test_a_replica_whose_load_does_not_pay_is_not_opened() -> None:
    problem = replace(
        make_problem({"A": 8}, load_s=5.0, max_replicas=2),
        length_samples={"A": (1000,)},
        session_model=SlottedSessions(num_slots=1),
    )
    assert len(SampledGreedy().plan(problem).sessions) == 2, "5 + 4 s instead of 5 + 8"
    short = replace(problem, length_samples={"A": (1,)})
    assert len(SampledGreedy().plan(short).sessions) == 2, "at 0 s both loads are paid at once"
    late = replace(
        make_problem({"A": 8, "B": 6}, load_s={"A": 5.0, "B": 0.0}, max_replicas={"A": 2, "B": 1}),
        length_samples={"A": (1000,), "B": (1000,)},
        session_model=SlottedSessions(num_slots=1),
    )
    # At 6 s one of A's calls has begun; a replica would be up at 11 s, when two are left.
    plan = SampledGreedy().plan(late)
    ends = [session for session in plan.sessions if session.expert == "A"]
    assert len(ends) == 2
    assert len(ends[1].shard) == 1


def test_what_adds_most_work_per_second_comes_first() -> None:
    problem = replace(
        make_problem({"A": 4, "B": 4}, num_workers=1, load_s={"A": 10.0, "B": 0.0}),
        length_samples={"A": (1000,), "B": (1000,)},
        session_model=SlottedSessions(num_slots=1),
    )
    assert [session.expert for session in SampledGreedy().plan(problem).sessions] == ["B", "A"]


def test_sampled_lengths_are_calibration_lengths_within_the_limit() -> None:
    problem = make_problem({"A": 50, "B": 50})
    problem = replace(problem, length_samples={"A": (7, 9), "B": (10_000,)})
    drawn = sample_requests(problem, seed=0)
    assert {request.output_tokens for request in drawn[0]} == {7, 9}
    assert {request.output_tokens for request in drawn[1]} == {4096}
    assert drawn != sample_requests(problem, seed=1)
    assert drawn == sample_requests(problem, seed=0)


def test_without_iterations_or_lengths_it_says_so() -> None:
    with pytest.raises(ValueError, match="session model must be one that steps iterations, got None"):
        SampledGreedy().plan(replace(make_problem(), session_model=None))
    with pytest.raises(ProfileError, match="must keep output_tokens of 'A', got none"):
        SampledGreedy().plan(replace(make_problem(), length_samples={}))
    with pytest.raises(ValueError, match=r"scheduler\.seed must be"):
        SampledGreedy(seed=-1)


def test_true_lengths_are_not_asked_for() -> None:
    """Two problems that differ in nothing a scheduler may know have one plan, whatever the calls are named."""
    calls = [make_call(f"q{i}", expert="A") for i in range(9)]
    renamed = [make_call(f"r{i}", expert="A") for i in range(9)]
    plans = [SampledGreedy().plan(make_problem({"A": 1}, calls=some, num_workers=3)) for some in (calls, renamed)]
    assert shards(plans[0]) == shards(plans[1])


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    num_workers=st.integers(1, 4),
    num_slots=st.integers(1, 4),
    load_s=st.sampled_from([0.0, 0.1, 2.0]),
    seed=st.integers(0, 3),
)
def test_every_plan_is_valid_and_within_the_caps(
    counts: list[int], num_workers: int, num_slots: int, load_s: float, seed: int
) -> None:
    names = [f"E{i}" for i in range(len(counts))]
    caps = {name: 1 + i % 3 for i, name in enumerate(names)}
    problem = make_problem(
        dict(zip(names, counts, strict=True)), num_workers=num_workers, load_s=load_s, max_replicas=caps
    )
    problem = replace(problem, session_model=SlottedSessions(num_slots=num_slots))
    plan = SampledGreedy(seed=seed).plan(problem)
    assert_plan_valid(plan, problem)
    for name, cap in caps.items():
        assert len({session.workers for session in plan.sessions if session.expert == name}) <= cap

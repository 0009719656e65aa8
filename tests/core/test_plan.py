"""The plan value and its check against a problem."""

from dataclasses import replace

import pytest

from mosaic.core.errors import PlanError
from mosaic.core.plan import Plan, PredictedTimes, Session
from mosaic.core.workload import CallKey, PROPOSE
from mosaic.planning.plan_check import check_plan
from mosaic.planning.schedulers.round_robin import RoundRobin
from tests.factories import make_problem

PROBLEM = make_problem({"A": 3, "B": 2})
PLAN = RoundRobin().plan(PROBLEM)


def changed(number: int, **changes: object) -> Plan:
    """Change one session of the plan."""
    sessions = list(PLAN.sessions)
    sessions[number] = replace(sessions[number], **changes)  # type: ignore[arg-type]
    return replace(PLAN, sessions=tuple(sessions))


def test_plan_fits_its_own_problem() -> None:
    check_plan(PLAN, PROBLEM)


def test_queue_keeps_the_total_order() -> None:
    plan = RoundRobin().plan(make_problem(dict.fromkeys("ABCDE", 1)))
    assert [session.expert for session in plan.worker_queue(0)] == ["A", "C", "E"]


def test_makespan_is_the_last_end() -> None:
    assert PLAN.predicted_makespan_s == 13.0
    assert replace(PLAN, sessions=(), predicted=()).predicted_makespan_s == 0.0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(PLAN, num_workers=3), "plan is for 3 workers, the cluster has 2"),
        (changed(0, expert="C"), r"session 0: expert must be one of \['A', 'B'\], got 'C'"),
        (changed(0, workers=(0, 1)), r"session 0: A spans 1 workers, got \(0, 1\)"),
        (changed(0, workers=(2,)), r"session 0: workers must be in 0 \.\. 1, got 2"),
        (changed(0, after=(1,)), "session 0: after must name earlier sessions, got 1"),
        (changed(0, shard=PLAN.sessions[0].shard[1:]), "plan drops call q0/propose/0"),
        (changed(1, shard=PLAN.sessions[0].shard), "call q0/propose/0 is for expert 'A', got 'B'"),
        (changed(0, shard=PLAN.sessions[0].shard + PLAN.sessions[0].shard[:1]), "q0/propose/0 must be served once"),
        (changed(0, shard=(CallKey("q9", PROPOSE, 0),)), "q9/propose/0 is not a call of this problem"),
        (replace(PLAN, problem_fingerprint="0"), "made for another problem: fingerprint must be [0-9a-f]{16}, got 0"),
    ],
)
def test_misfit_names_session_and_rule(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(plan, PROBLEM)


def test_plan_for_other_prompts_is_refused() -> None:
    other = make_problem({"A": 3, "B": 2}, calls=[replace(call, prompt_tokens=7) for call in PROBLEM.calls])
    with pytest.raises(PlanError, match="another problem"):
        check_plan(PLAN, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": ()}, "session 0 of 'A': workers must be at least one worker"),
        ({"workers": (1, 1)}, "session 0 of 'A': workers must be unique, got 1 twice"),
        ({"shard": ()}, "session 0 of 'A': shard must be at least one call"),
    ],
)
def test_session_checks_itself(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN.sessions[0], **changes)  # type: ignore[arg-type]


def test_session_ids_are_unique() -> None:
    with pytest.raises(ValueError, match="session id must be unique, got 0 twice"):
        changed(1, id=0)


def test_every_session_has_a_prediction() -> None:
    with pytest.raises(ValueError, match="one entry for each of 2 sessions, got 1"):
        replace(PLAN, predicted=(PredictedTimes(0.0, 1.0, 2.0),))


def test_session_is_a_value() -> None:
    session = PLAN.sessions[0]
    assert session == Session(id=0, expert="A", node=PROPOSE, workers=(0,), shard=session.shard)

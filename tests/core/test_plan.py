"""The plan value."""

from dataclasses import replace

import pytest

from mosaic.core.plan import Plan, PredictedTimes
from mosaic.planning.schedulers.round_robin import RoundRobin
from tests.factories import make_problem

PROBLEM = make_problem({"A": 3, "B": 2})
PLAN = RoundRobin().plan(PROBLEM)


def changed(number: int, **changes: object) -> Plan:
    """Change one session of the plan."""
    sessions = list(PLAN.sessions)
    sessions[number] = replace(sessions[number], **changes)  # type: ignore[arg-type]
    return replace(PLAN, sessions=tuple(sessions))


def test_queue_keeps_the_total_order() -> None:
    plan = RoundRobin().plan(make_problem(dict.fromkeys("ABCDE", 1)))
    assert [session.expert for session in plan.worker_queue(0)] == ["A", "C", "E"]


def test_makespan_is_the_last_end() -> None:
    assert PLAN.predicted_makespan_s == 13.0
    assert replace(PLAN, sessions=(), predicted=()).predicted_makespan_s == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": ()}, "session 0 of 'A': workers must be at least one worker"),
        ({"workers": (1, 1)}, "session 0 of 'A': workers must be unique, got 1 twice"),
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

"""Which plans can be run."""

from dataclasses import replace

import pytest

from mosaic.core.errors import PlanError
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey
from mosaic.planning.baselines import RoundRobin
from mosaic.planning.plan_check import check_plan, check_sessions
from tests.factories import make_call, make_cluster, make_expert, make_gpu, make_mixed_cluster, make_problem

PROBLEM = make_problem({"A": 3, "B": 2})
PLAN = RoundRobin().plan(PROBLEM)


def changed(number: int, **changes: object) -> Plan:
    """Change one session of the plan."""
    sessions = list(PLAN.sessions)
    sessions[number] = replace(sessions[number], **changes)  # type: ignore[arg-type]
    return replace(PLAN, sessions=tuple(sessions))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(PLAN, num_workers=3), "plan is for 3 workers, the cluster has 2"),
        (changed(0, expert="C"), r"session 0: expert must be one of \['A', 'B'\], got 'C'"),
        (changed(0, workers=(0, 1)), r"session 0: A spans 1 workers, got \(0, 1\)"),
        (changed(0, workers=(-1,)), r"session 0: workers must be in 0 \.\. 1, got -1"),
        (changed(0, workers=(2,)), r"session 0: workers must be in 0 \.\. 1, got 2"),
        (changed(0, after=(1,)), "session 0: after must name earlier sessions, got 1"),
        (changed(0, after=(0,)), "session 0: after must name earlier sessions, got 0"),
        (changed(0, shard=()), r"session 0: shard must be at least one call, got \(\)"),
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


def test_an_expert_that_does_not_fit_is_refused() -> None:
    small = make_problem({"A": 3, "B": 2}, misfits=[("B", "gpu")])
    with pytest.raises(PlanError, match=r"^plan session 1: B does not fit on workers \(1,\)$"):
        check_plan(PLAN, small)


# Sessions without a problem, such as those of a sweep.

EXPERTS = {"A": make_expert("A"), "B": make_expert("B"), "T": make_expert("T", tp_degree=2)}
ASK, TELL = CallKey("q0", PROPOSE, 0), CallKey("q0", AGGREGATE, 0)


def session(number: int, expert: str, *keys: CallKey, workers: tuple[int, ...] = (0,), **changes: object) -> Session:
    return Session(id=number, expert=expert, workers=workers, shard=keys, **changes)  # type: ignore[arg-type]


def test_a_key_that_two_calls_have_is_refused() -> None:
    with pytest.raises(PlanError, match="calls: key must be unique, 2 calls have 1 keys"):
        check_sessions([session(0, "A", ASK)], [make_call(), make_call()], EXPERTS, make_cluster(1))


def test_a_session_over_two_kinds_of_worker_is_refused() -> None:
    call = make_call(expert="T")
    gang = [session(0, "T", ASK, workers=(0, 1))]
    check_sessions(gang, [call], EXPERTS, make_cluster(2))
    with pytest.raises(
        PlanError, match=r"workers must be of one kind and in one machine, got \['a in machine 0', 'b in"
    ):
        check_sessions(gang, [call], EXPERTS, make_mixed_cluster(make_gpu("a"), make_gpu("b")))


def test_a_call_may_need_one_that_was_served_before_the_plan_and_none_of_the_plan() -> None:
    told = make_call(expert="B", node=AGGREGATE, after=(ASK,))
    check_sessions([session(0, "B", TELL)], [told], EXPERTS, make_cluster(1))
    rule = "^plan: call .*q0/aggregate/0 comes after .*q0/propose/0, which must have ended before the plan starts$"
    with pytest.raises(PlanError, match=rule):
        check_sessions([session(0, "A", ASK), session(1, "B", TELL)], [make_call(), told], EXPERTS, make_cluster(1))

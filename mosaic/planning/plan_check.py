"""Checks that a plan can be run: each call is served once, on existing workers, and no session waits forever."""

from collections.abc import Mapping, Sequence

from mosaic.core.cluster import GANG_RULE, Cluster, may_be_gang
from mosaic.core.errors import PlanError
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.planning.problem import Problem


def check_plan(plan: Plan, problem: Problem) -> None:
    """Check that a plan serves exactly the problem's calls on the problem's cluster.

    Raises
    ------
    PlanError
        Naming the session or call and the rule that it breaks.
    """
    if plan.num_workers != problem.cluster.num_workers:
        raise PlanError(f"plan is for {plan.num_workers} workers, the cluster has {problem.cluster.num_workers}")
    experts = {expert.name: expert for expert in problem.experts}
    check_sessions(plan.sessions, problem.calls, experts, problem.cluster)
    if plan.problem_fingerprint != problem.fingerprint:
        raise PlanError(
            f"plan was made for another problem: fingerprint must be {problem.fingerprint}, "
            f"got {plan.problem_fingerprint} (prompts, experts or cluster differ)"
        )
    for session in plan.sessions:
        if not problem.costs.fits(experts[session.expert], problem.cluster.select(session.workers)):
            raise PlanError(f"plan session {session.id}: {session.expert} does not fit on workers {session.workers}")


def check_sessions(
    sessions: Sequence[Session], calls: Sequence[Call], experts: Mapping[ExpertName, Expert], cluster: Cluster
) -> None:
    """Check sessions without a problem, such as those of a profile sweep.

    Raises
    ------
    PlanError
        Naming the session or call and the rule that it breaks.
    """
    left = {call.key: call for call in calls}
    if len(left) != len(calls):
        raise PlanError(f"calls: key must be unique, {len(calls)} calls have {len(left)} keys")
    earlier: set[int] = set()
    for session in sessions:
        _check_place(session, experts, cluster)
        for needed in session.after:
            if needed not in earlier:
                raise PlanError(f"plan session {session.id}: after must name earlier sessions, got {needed}")
        earlier.add(session.id)
        _check_shard(session, left, calls)
    for key in left:
        raise PlanError(f"plan drops call {key}: each call must be served once")
    keys = {call.key for call in calls} if any(call.after for call in calls) else set()
    for call in calls:
        for read in call.after:
            if read in keys:
                raise PlanError(
                    f"plan: call {call.key} comes after {read}, which must have ended before the plan starts"
                )


def _check_place(session: Session, experts: Mapping[ExpertName, Expert], cluster: Cluster) -> None:
    label = f"plan session {session.id}"
    if session.expert not in experts:
        raise PlanError(f"{label}: expert must be one of {sorted(experts)}, got {session.expert!r}")
    degrees = experts[session.expert].possible_degrees
    if len(session.workers) not in degrees:
        spans = " or ".join(str(degree) for degree in degrees)
        raise PlanError(f"{label}: {session.expert} spans {spans} workers, got {session.workers}")
    for worker in session.workers:
        if not 0 <= worker < cluster.num_workers:
            raise PlanError(f"{label}: workers must be in 0 .. {cluster.num_workers - 1}, got {worker}")
    gang = cluster.select(session.workers)
    if not may_be_gang(gang):
        raise PlanError(f"{label}: workers must be {GANG_RULE}, got {[worker.place for worker in gang]}")


def _check_shard(session: Session, left: dict[CallKey, Call], calls: Sequence[Call]) -> None:
    """Take the calls of a session out of those that are left to serve."""
    label = f"plan session {session.id}"
    if not session.shard:
        raise PlanError(f"{label}: shard must be at least one call, got {session.shard}")
    for key in session.shard:
        call = left.pop(key, None)
        is_served = call is None
        if call is None:
            call = next((one for one in calls if one.key == key), None)
        if call is None:
            raise PlanError(f"{label}: call {key} is not a call of this problem; was the plan made for another?")
        if call.expert != session.expert:
            raise PlanError(f"{label}: call {key} is for expert {call.expert!r}, got {session.expert!r}")
        if is_served:
            raise PlanError(f"{label}: call {key} must be served once, it is served twice")

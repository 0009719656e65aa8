"""Checks that a plan serves exactly the calls of its problem, on its cluster."""

from mosaic.core.errors import PlanError
from mosaic.core.plan import Plan
from mosaic.core.workload import Call, CallKey
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
    expert_of: dict[CallKey, Call] = {call.key: call for call in problem.calls}
    served: set[CallKey] = set()
    earlier: set[int] = set()
    for session in plan.sessions:
        label = f"plan session {session.id}"
        if session.expert not in experts:
            raise PlanError(f"{label}: expert must be one of {sorted(experts)}, got {session.expert!r}")
        tp_degree = experts[session.expert].tp_degree
        if len(session.workers) != tp_degree:
            raise PlanError(f"{label}: {session.expert} spans {tp_degree} workers, got {session.workers}")
        for worker in session.workers:
            if not 0 <= worker < plan.num_workers:
                raise PlanError(f"{label}: workers must be in 0 .. {plan.num_workers - 1}, got {worker}")
        for needed in session.after:
            if needed not in earlier:
                raise PlanError(f"{label}: after must name earlier sessions, got {needed}")
        earlier.add(session.id)
        for key in session.shard:
            call = expert_of.get(key)
            if call is None:
                raise PlanError(f"{label}: call {key} is not a call of this problem; was the plan made for another?")
            if call.expert != session.expert:
                raise PlanError(f"{label}: call {key} is for expert {call.expert!r}, got {session.expert!r}")
            if key in served:
                raise PlanError(f"{label}: call {key} must be served once, it is served twice")
            served.add(key)
    for call in problem.calls:
        if call.key not in served:
            raise PlanError(f"plan drops call {call.key}: each call must be served once")
    if plan.problem_fingerprint != problem.fingerprint():
        raise PlanError(
            f"plan was made for another problem: fingerprint must be {problem.fingerprint()}, "
            f"got {plan.problem_fingerprint} (prompts, experts or cluster differ)"
        )

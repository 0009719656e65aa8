"""Checks that a plan can be run over some calls, and gives each session its calls."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from mosaic.core.cluster import Cluster
from mosaic.core.errors import BackendError
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import Call, CallKey, Expert, ExpertName


class SessionCalls(NamedTuple):
    """A session with its expert and its calls, in the plan's order."""

    session: Session
    expert: Expert
    calls: tuple[Call, ...]


def calls_of_sessions(
    plan: Plan, calls: Sequence[Call], experts: Mapping[ExpertName, Expert], cluster: Cluster
) -> tuple[SessionCalls, ...]:
    """Give each session of a plan its calls.

    Raises
    ------
    BackendError
        If the plan names what does not exist, or does not serve each call exactly once.
    """
    left = _by_key(calls)
    known = {session.id for session in plan.sessions}
    found = []
    for session in plan.sessions:
        for needed in session.after:
            if needed not in known:
                raise BackendError(f"plan session {session.id}: after must name sessions of the plan, got {needed}")
        expert = _expert(session, experts, cluster)
        found.append(SessionCalls(session, expert, tuple(_call(left, key, session) for key in session.shard)))
    if left:
        raise BackendError(f"plan drops {len(left)} calls, the first of them {next(iter(left))}")
    _check_order(plan)
    return tuple(found)


def can_start(sessions: Iterable[Session], over: Set[int]) -> list[Session]:
    """List the sessions that may run once some are over: none before them is on their workers, none is to precede."""
    held: set[int] = set()
    ready = []
    for session in (session for session in sessions if session.id not in over):
        if held.isdisjoint(session.workers) and over >= set(session.after):
            ready.append(session)
        held.update(session.workers)
    return ready


def _by_key(calls: Sequence[Call]) -> dict[CallKey, Call]:
    found = {call.key: call for call in calls}
    if len(found) != len(calls):
        raise BackendError(f"calls: key must be unique, {len(calls)} calls have {len(found)} keys")
    for call in calls:
        for key in call.after:
            if key in found:
                raise BackendError(f"call {call.key}: after must name calls of an earlier run, got {key} of this one")
    return found


def _expert(session: Session, experts: Mapping[ExpertName, Expert], cluster: Cluster) -> Expert:
    label = f"plan session {session.id} of {session.expert!r}"
    expert = experts.get(session.expert)
    if expert is None:
        raise BackendError(
            f"plan session {session.id}: expert must be one of {sorted(experts)}, got {session.expert!r}"
        )
    if len(session.workers) != expert.tp_degree:
        raise BackendError(f"{label}: workers must be as many as tp_degree {expert.tp_degree}, got {session.workers}")
    try:
        workers = cluster.select(session.workers)
    except ValueError as error:
        raise BackendError(f"{label}: {error}") from error
    if len({worker.gpu for worker in workers}) > 1:
        raise BackendError(f"{label}: workers must be of one kind, got {[worker.gpu.name for worker in workers]}")
    return expert


def _call(left: dict[CallKey, Call], key: CallKey, session: Session) -> Call:
    call = left.pop(key, None)
    if call is None:
        raise BackendError(f"plan session {session.id}: call {key} is not one of the calls, or is served twice")
    if call.expert != session.expert:
        raise BackendError(f"plan session {session.id} of {session.expert!r}: call {key} is for {call.expert!r}")
    return call


def _check_order(plan: Plan) -> None:
    """Check that every session can start at some time: a session waits for its workers' earlier ones too."""
    over: set[int] = set()
    while len(over) < len(plan.sessions):
        ready = can_start(plan.sessions, over)
        if not ready:
            stuck = [session.id for session in plan.sessions if session.id not in over]
            raise BackendError(f"plan: sessions {stuck} wait for each other and can never start")
        over.update(session.id for session in ready)

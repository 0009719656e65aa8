"""Which session may start when, by the order in which they were opened; and why none ever will."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, inf

from mosaic.core.workload import ExpertName
from mosaic.engines.call_queue import CallQueue
from mosaic.engines.session_state import Phase, SessionState, Stage, WorkerProcess


def may_start(opened: Sequence[SessionState], sessions: Mapping[int, SessionState], now: float) -> list[SessionState]:
    """List the waiting sessions that have no other before them on their workers, and whose predecessors have ended.

    Parameters
    ----------
    opened
        Those that have not ended, in the order in which they were opened.
    sessions
        All, by number.
    now
        The instant, on the run's clock: servers that serve nothing are left alone for a while.
    """
    held: set[int] = set()
    found = []
    for state in opened:
        session = state.session
        is_followed = all(sessions[number].has_ended for number in session.after)
        is_due = state.stage is Stage.WAITING and not state.is_paused(now)
        if is_due and is_followed and held.isdisjoint(session.workers):
            found.append(state)
        held.update(session.workers)
    return found


def is_wanted(process: WorkerProcess, opened: Sequence[SessionState]) -> bool:
    """Whether what comes next on all workers of a process is one session of its expert."""
    following = [
        next((state for state in opened if worker in state.session.workers), None) for worker in process.workers
    ]
    first = following[0]
    same = first is not None and first.session.workers == process.workers and first.spec == process.spec
    return same and all(state is first for state in following)


def can_move(
    opened: Sequence[SessionState],
    processes: Iterable[WorkerProcess],
    queue_of: Callable[[ExpertName], CallQueue],
    now: float,
) -> bool:
    """Whether anything can happen by itself."""
    if any(process.phase in (Phase.LOADING, Phase.CLOSING) for process in processes):
        return True
    return any(
        state.has_all or state.has_calls or (not state.is_closing and queue_of(state.session.expert))
        for state in opened
        if state.stage is Stage.RUNNING or state.is_paused(now)
    )


def fair_share(state: SessionState, opened: Sequence[SessionState], queue: CallQueue, now: float) -> float:
    """Say how many calls a server may have, so that those of its expert are as loaded as each other."""
    if not state.spec.is_remote:
        return inf
    others = [one for one in opened if one.session.expert == state.session.expert and not one.is_paused(now)]
    return ceil((len(queue) + sum(len(one.hands) for one in others)) / len(others))


def next_changes(opened: Sequence[SessionState], queues: Iterable[CallQueue], now: float) -> list[float]:
    """List instants at which a call is ready, of a session or in a queue, or a session may be tried again."""
    waited_for = (*queues, *(state.queue for state in opened))
    ready = [ready_s for queue in waited_for if (ready_s := queue.next_ready_s(now)) is not None]
    return ready + [state.resume_ts for state in opened if state.is_paused(now)]


def why_stuck(opened: Sequence[SessionState], experts: Sequence[str]) -> str:
    """Say why nothing can happen any more, where calls wait in the queues of some experts."""
    waiting = [state.session.id for state in opened if state.stage is Stage.WAITING]
    idle = [state.session.id for state in opened if state.stage is Stage.RUNNING]
    if waiting:
        return (
            f"sessions {waiting} wait for sessions {idle}, which have no calls and are not closed, and can never start"
        )
    if experts:
        return f"calls wait for sessions of {list(experts)}, and none is open"
    return f"sessions {idle} have no calls and are not closed"

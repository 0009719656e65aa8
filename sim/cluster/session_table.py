"""Finds sessions of the simulated cluster by the numbers that commands name, and refuses those that cannot be."""

from collections.abc import Collection, Mapping

from mosaic.core.errors import BackendError
from mosaic.core.workload import Call, ExpertName
from sim.cluster.session import PendingCall, SimSession


def session_named(sessions: Mapping[int, SimSession], number: int, what: str) -> SimSession:
    """Find a session that was opened."""
    live = sessions.get(number)
    if live is None:
        raise BackendError(f"{what}: session must be one that was opened, got {number}")
    return live


def session_of(sessions: Mapping[int, SimSession], number: int, call: Call, *, is_open: bool = False) -> SimSession:
    """Find a session of a call's expert; ``is_open``: it must still get calls."""
    live = sessions.get(number)
    if live is None or (is_open and live.is_closing):
        rule = "one that was opened and not closed" if is_open else "one that was opened"
        raise BackendError(f"call {call.key}: session must be {rule}, got {number}")
    if live.session.expert != call.expert:
        raise BackendError(f"session {number} of {live.session.expert!r}: call {call.key} is for {call.expert!r}")
    return live


def sessions_of(sessions: Mapping[int, SimSession], expert: ExpertName) -> list[SimSession]:
    """List the sessions of an expert."""
    return [live for live in sessions.values() if live.session.expert == expert]


def check_all_ended(pending: Collection[PendingCall], sessions: Mapping[int, SimSession]) -> None:
    """Refuse the end of a run where calls or sessions have not ended."""
    if pending:
        names = sorted({one.call.expert for one in pending})
        raise BackendError(f"calls wait for sessions of {names}, and none is open")
    if left := [number for number, live in sessions.items() if not live.over.triggered]:
        raise BackendError(f"sessions {left} were never closed")

"""When a server that serves nothing is tried again, and when it is given up."""

from mosaic.engines.messages import Failure
from mosaic.engines.session_state import MAX_ISOLATED, Patience, SessionState

NUM_TIMES = 3
"""A call fails alone when its server has failed so often in a row, the last time with this call alone."""


def note_outage(state: SessionState, failure: Failure, patience: Patience, now: float) -> bool:
    """Let a session wait before its server is tried again; False: it is not waited for any longer.

    Pauses grow from try to try. A server that never served a call is not waited for, unless it asked for time, nor one
    whose refusal no waiting heals.
    """
    state.ill_ts = now if state.ill_ts is None else state.ill_ts
    is_awaited = (state.spec.has_served or failure.wait_s > 0) and not failure.is_fatal
    if not is_awaited or now + failure.wait_s - state.ill_ts > patience.outage_timeout_s:
        return False
    pause_s = min(patience.max_pause_s, patience.first_pause_s * 2.0 ** min(state.num_failures, 60))
    state.resume_ts = now + max(pause_s, failure.wait_s)
    state.num_failures += 1
    return True


def is_by_a_call(state: SessionState, failure: Failure, num_held: int) -> bool:
    """Say whether the only call that a server had is why it failed, as it did before.

    After some such calls in a row it is not the calls.
    """
    if failure.is_worker or num_held != 1 or state.num_failures < NUM_TIMES or state.num_isolated >= MAX_ISOLATED:
        return False
    state.num_isolated += 1
    return True

"""The journal's entries for a session that is served to order, whoever serves it."""

from typing import Any

from mosaic.core.results import CallStatus
from mosaic.engines.orders import Job, ServeOrder
from mosaic.runtime.journal_records import EndedCall, OpenedSession


def opened_session(order: ServeOrder, start_ts: float) -> OpenedSession:
    """Write down that a session's engine is ready."""
    return OpenedSession(
        plan=order.plan,
        session=order.session,
        attempt=order.attempt,
        expert=order.expert,
        node=order.node,
        workers=order.workers,
        load_start_ts=order.load_start_ts,
        load_s=start_ts - order.load_start_ts,
        start_ts=start_ts,
    )


def ended_call(
    order: ServeOrder, job: Job, start_ts: float, status: CallStatus, finished_ts: float, **values: Any
) -> EndedCall:
    """Write down how a call of a session ended.

    Parameters
    ----------
    order, job
        The session and the call.
    start_ts
        Start of the session: a call is queued then, or when it is ready.
    status, finished_ts
        How and when it ended.
    **values
        What is known beside it, see `EndedCall`.
    """
    known = {"prompt_tokens": job.prompt_tokens, "attempt": order.attempt} | values
    return EndedCall(
        fingerprint=job.fingerprint,
        key=job.key,
        expert=order.expert,
        plan=order.plan,
        session=order.session,
        workers=order.workers,
        status=status,
        queued_ts=min(max(job.ready_s, start_ts), finished_ts),
        finished_ts=finished_ts,
        **known,
    )

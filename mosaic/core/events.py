"""Events of a backend to controllers, which reply with commands."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from mosaic.core.results import CallRecord, PrefillRecord, SessionRecord
from mosaic.core.workload import CallKey, ExpertName


class Started(NamedTuple):
    """The run begins. The first event."""

    ts: float
    resumes_ts: float = 0.0
    """When the run goes on that was interrupted: events up to then are sent again."""


class Ready(NamedTuple):
    """A session has loaded its expert and serves."""

    ts: float
    session: int


class Redone(NamedTuple):
    """The run goes on after an interruption, and does again some of what it had done."""

    ts: float
    num_damaged: int
    """Lines that cannot be read of what was kept."""
    num_changed: Mapping[ExpertName, int]
    """Calls that had ended, of experts that are not what they were."""
    num_outdated: Mapping[ExpertName, int]
    """Calls that had ended and read something else now."""


class Finished(NamedTuple):
    """A call has ended, one way or another."""

    ts: float
    record: CallRecord


class Prefilled(NamedTuple):
    """The beginning of a prompt was prefilled ahead of its call, or was to be and is not any more."""

    ts: float
    record: PrefillRecord


class Progress(NamedTuple):
    """How far the running calls of a session are."""

    ts: float
    session: int
    tokens: Mapping[CallKey, int]
    """Written so far; empty where the engine does not know."""


class Closed(NamedTuple):
    """A session has ended and left its workers."""

    ts: float
    record: SessionRecord


class Unused(NamedTuple):
    """A session has ended whose expert was never loaded: nothing was left for it to serve."""

    ts: float
    session: int


class Idle(NamedTuple):
    """A worker holds no session, and none waits for it."""

    ts: float
    worker: int


class Lost(NamedTuple):
    """A worker is gone, for good unless it joins again.

    What its sessions had not ended is nowhere until it is submitted again.
    """

    ts: float
    worker: int
    cause: str
    num_more: int = 0
    """Workers that are lost at the same instant and reported next: what all of them leave is planned anew at once."""


class Joined(NamedTuple):
    """A worker is there, again or for the first time."""

    ts: float
    worker: int


class Tick(NamedTuple):
    """Time has passed: for controllers that ask for it."""

    ts: float


Event: TypeAlias = (
    Started | Redone | Ready | Finished | Prefilled | Progress | Closed | Unused | Idle | Lost | Joined | Tick
)


def cause_of(event: Event) -> str:
    """Name an event so that the same event of another run of the same plan has the same name.

    Examples
    --------
    >>> cause_of(Started(0.0)), cause_of(Idle(3.5, 1))
    ('started', 'idle 1')
    """
    kind = type(event).__name__.lower()
    match event:
        case Finished(record=record) | Prefilled(record=record):
            return f"{kind} {record.key}"
        case Closed(record=record):
            return f"{kind} {record.session}"
        case Ready(session=number) | Progress(session=number) | Unused(session=number):
            return f"{kind} {number}"
        case Idle(worker=number) | Lost(worker=number) | Joined(worker=number):
            return f"{kind} {number}"
        case _:
            return kind

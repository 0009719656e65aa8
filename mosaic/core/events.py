"""Events that a backend sends to controllers, which reply with commands."""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from mosaic.core.results import CallRecord, PrefillRecord, SessionRecord
from mosaic.core.workload import CallKey, ExpertName


class Started(msgspec.Struct, frozen=True, gc=False):
    """The run begins. The first event."""

    ts: float
    resumes_ts: float = 0.0
    """When the interrupted run continues: events up to then are sent again."""


class Ready(msgspec.Struct, frozen=True, gc=False):
    """A session has loaded its expert and serves calls."""

    ts: float
    session: int


class Redone(msgspec.Struct, frozen=True, gc=False):
    """The run continues after an interruption, and repeats some of its work."""

    ts: float
    num_damaged: int
    """Lines of the journal that cannot be read."""
    num_changed: Mapping[ExpertName, int]
    """Ended calls of experts that have changed since, by expert."""
    num_outdated: Mapping[ExpertName, int]
    """Ended calls whose inputs have changed since, by expert."""


class Finished(msgspec.Struct, frozen=True, gc=False):
    """A call has ended, with any status."""

    ts: float
    record: CallRecord


class Prefilled(msgspec.Struct, frozen=True, gc=False):
    """The beginning of a prompt was prefilled ahead of its call, or its prefill was dropped."""

    ts: float
    record: PrefillRecord


class Progress(msgspec.Struct, frozen=True, gc=False):
    """The progress of a session's running calls."""

    ts: float
    session: int
    tokens: Mapping[CallKey, int]
    """Tokens written so far; empty if the engine does not know."""


class Closed(msgspec.Struct, frozen=True, gc=False):
    """A session has ended and left its workers."""

    ts: float
    record: SessionRecord


class Unused(msgspec.Struct, frozen=True, gc=False):
    """A session has ended without loading its expert: it had no calls left to serve."""

    ts: float
    session: int


class Idle(msgspec.Struct, frozen=True, gc=False):
    """A worker holds no session, and none waits for it."""

    ts: float
    worker: int


class Lost(msgspec.Struct, frozen=True, gc=False):
    """A worker is lost, unless it joins again.

    Unended calls of its sessions must be submitted again.
    """

    ts: float
    worker: int
    cause: str
    num_more: int = 0
    """Workers that are lost at the same instant and reported next: all their calls are planned anew together."""


class Joined(msgspec.Struct, frozen=True, gc=False):
    """A worker is available, again or for the first time."""

    ts: float
    worker: int


class Stopped(msgspec.Struct, frozen=True, gc=False):
    """Nothing more is sent: a cap on what the run may spend is reached. Calls that have not ended fail next."""

    ts: float
    cause: str


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has passed: for controllers that request it."""

    ts: float


Event: TypeAlias = (
    Started | Redone | Ready | Finished | Prefilled | Progress | Closed | Unused | Idle | Lost | Joined | Stopped | Tick
)


def cause_of(event: Event) -> str:
    """Name an event; the same event has the same name in other runs of the same plan.

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

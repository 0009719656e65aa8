"""What controllers tell a backend, and what a backend tells controllers: a run is an exchange of the two.

All of them are plain values, so that the log of commands can be written down and replayed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from mosaic.core.plan import Session
from mosaic.core.workload import Call, CallKey, ExpertName

if TYPE_CHECKING:
    from mosaic.core.results import CallRecord, SessionRecord


@dataclass(frozen=True, slots=True)
class Open:
    """Load an expert on its workers and serve calls until the session is closed.

    It waits for the sessions before it on its workers, and for those that it follows.
    """

    session: Session


@dataclass(frozen=True, slots=True)
class Submit:
    """Serve a call; all that it comes after has ended."""

    call: Call
    to: int | ExpertName
    """A session, which must have been opened and not closed, or an expert: then whichever of its sessions has room."""
    priority: int = 0
    """In the expert's queue the lower goes first, and of equal ones the one submitted first."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a call wherever it waits or runs; one that has ended stays as it is."""

    key: CallKey


@dataclass(frozen=True, slots=True)
class Cut:
    """Let a call write at most so many tokens in all; it then finishes with what it has."""

    key: CallKey
    tokens: int


@dataclass(frozen=True, slots=True)
class Move:
    """Go on with a call in another session of its expert, with what it has written where the engine can tell."""

    key: CallKey
    session: int


@dataclass(frozen=True, slots=True)
class Close:
    """End a session when its calls have ended; it gets no more."""

    session: int


Command: TypeAlias = Open | Submit | Cancel | Cut | Move | Close


class Action(NamedTuple):
    """A command of a run, with its cause: enough to replay the run."""

    ts: float
    """When it was given."""
    cause: str
    """The event that it answers, as ``cause_of`` names it."""
    command: Command


class Started(NamedTuple):
    """The run begins. The first event."""

    ts: float


class Ready(NamedTuple):
    """A session has loaded its expert and serves."""

    ts: float
    session: int


class Finished(NamedTuple):
    """A call has ended, one way or another."""

    ts: float
    record: "CallRecord"


class Progress(NamedTuple):
    """How far the running calls of a session are."""

    ts: float
    session: int
    tokens: Mapping[CallKey, int]
    """Written so far; empty where the engine cannot tell."""


class Closed(NamedTuple):
    """A session has ended and left its workers."""

    ts: float
    record: "SessionRecord"


class Idle(NamedTuple):
    """A worker holds no session, and none waits for it."""

    ts: float
    worker: int


class Lost(NamedTuple):
    """A worker is gone for good. What its sessions had not ended is nowhere until it is submitted again."""

    ts: float
    worker: int
    cause: str


class Joined(NamedTuple):
    """A worker is there, again or for the first time."""

    ts: float
    worker: int


class Tick(NamedTuple):
    """Time has passed: for controllers that ask for it."""

    ts: float


Event: TypeAlias = Started | Ready | Finished | Progress | Closed | Idle | Lost | Joined | Tick


def cause_of(event: Event) -> str:
    """Name an event so that the same event of another run of the same plan has the same name.

    Examples
    --------
    >>> cause_of(Started(0.0)), cause_of(Idle(3.5, 1))
    ('started', 'idle 1')
    """
    kind = type(event).__name__.lower()
    match event:
        case Finished(record=record):
            return f"{kind} {record.key}"
        case Closed(record=record):
            return f"{kind} {record.session}"
        case Ready(session=number) | Progress(session=number):
            return f"{kind} {number}"
        case Idle(worker=number) | Lost(worker=number) | Joined(worker=number):
            return f"{kind} {number}"
        case _:
            return kind

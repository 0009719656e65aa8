"""The records of a journal: a call that ended, a session that opened, a session that closed."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from mosaic.core.results import CallStatus
from mosaic.core.workload import CallKey, ExpertName
from mosaic.runtime.journal import Record, decode


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedCall:
    """One attempt at a call, ended. Instants are seconds on the run's clock."""

    fingerprint: str
    """Of all that decides the response: who finds a finished record with it need not run the call."""
    key: CallKey
    expert: ExpertName
    plan: str
    """Fingerprint of the plan whose session served the call."""
    session: int
    workers: tuple[int, ...]
    attempt: int
    status: CallStatus
    prompt_tokens: int
    queued_ts: float
    finished_ts: float
    output_tokens: int = 0
    admitted_ts: float | None = None
    first_token_ts: float | None = None
    num_preemptions: int = 0
    cached_tokens: int = 0
    wasted_tokens: int = 0
    visible_tokens: int | None = None
    thinking_opened: bool = False
    """The prompt's template opened the think tag."""
    finish_reason: str | None = None
    """As the engine says: stop, or length where the limit cut the response off."""
    token_ids: tuple[int, ...] = ()
    text: str | None = None
    """None: without a tokenizer there is no text."""
    error: str | None = None
    """Why it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSession:
    """A session whose engine is ready."""

    plan: str
    session: int
    attempt: int
    expert: ExpertName
    role: Role
    workers: tuple[int, ...]
    load_start_ts: float
    load_s: float
    start_ts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedSession:
    """The end of a session that was not disturbed."""

    plan: str
    session: int
    attempt: int
    end_ts: float
    cpu_s: float | None = None
    """Processor time from the load's start to the end: far below the wall time, others were using the core.

    None: not known, the engine is a server's.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalView:
    """What a journal holds, by kind, each in the order in which it was written."""

    ended: tuple[EndedCall, ...] = ()
    opened: tuple[OpenedSession, ...] = ()
    closed: tuple[ClosedSession, ...] = ()

    @property
    def last_ts(self) -> float:
        """The latest instant that anybody wrote down; 0 for an empty journal."""
        instants = [call.finished_ts for call in self.ended]
        instants += [session.start_ts for session in self.opened]
        return max([*instants, *(session.end_ts for session in self.closed)], default=0.0)


Entry: TypeAlias = EndedCall | OpenedSession | ClosedSession

KINDS: dict[str, type[Entry]] = {
    "call": EndedCall,
    "opened": OpenedSession,
    "closed": ClosedSession,
}


def to_record(entry: Entry) -> Record:
    """Turn an entry into plain values; what has its default is left out."""
    kind = next(name for name, cls in KINDS.items() if isinstance(entry, cls))
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    defaults = {field.name: field.default for field in fields(entry)}
    return {"kind": kind, **{name: value for name, value in values.items() if value != defaults[name]}}


def from_record(record: Record) -> Entry:
    """Turn plain values back into an entry."""
    values: dict[str, Any] = dict(record)
    cls = KINDS[values.pop("kind")]
    if "key" in values:
        question, role, slot = values["key"]
        values["key"] = CallKey(question, Role(role), slot)
        values["status"] = CallStatus(values["status"])
        values["token_ids"] = tuple(values.get("token_ids", ()))
    if "role" in values:
        values["role"] = Role(values["role"])
    if "workers" in values:
        values["workers"] = tuple(values["workers"])
    return cls(**values)


def decode_entry(line: bytes) -> Entry:
    """Turn a line of a journal that is known to be whole into an entry."""
    record = decode(line.rstrip(b"\n"))
    assert record is not None, "its writer made it just now"
    return from_record(record)


def view(records: Iterable[Record]) -> JournalView:
    """Sort a journal's records by kind."""
    entries = [from_record(record) for record in records]
    return JournalView(
        ended=tuple(entry for entry in entries if isinstance(entry, EndedCall)),
        opened=tuple(entry for entry in entries if isinstance(entry, OpenedSession)),
        closed=tuple(entry for entry in entries if isinstance(entry, ClosedSession)),
    )

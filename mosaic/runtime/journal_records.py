"""The records of a journal: a call that ended, a prefill ahead of one, a session that opened, one that closed."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import msgspec

from mosaic.core.addition import add_in_order
from mosaic.core.plan import Session
from mosaic.core.results import SERVED, CallRecord, CallStatus, PrefillRecord, SessionRecord
from mosaic.core.workload import CallKey, ExpertName, NodeName
from mosaic.runtime.journal import SUFFIX, decoded, frame, unframe

COMMANDS = f"commands{SUFFIX}"
STARTS = f"starts{SUFFIX}"
"""The logs of commands and of starts, which have records of their own."""


class EndedCall(msgspec.Struct, frozen=True, tag_field="kind", tag="call"):
    """One attempt at a call, ended."""

    record: CallRecord
    """Without its answer, which is read from the response again."""


class EndedPrefill(msgspec.Struct, frozen=True, tag_field="kind", tag="prefill"):
    """The beginning of a prompt, prefilled ahead of its call."""

    record: PrefillRecord


class OpenedSession(msgspec.Struct, frozen=True, tag_field="kind", tag="opened"):
    """A session whose engine is ready."""

    session: int
    expert: ExpertName
    node: NodeName
    workers: tuple[int, ...]
    load_start_ts: float
    load_s: float
    start_ts: float


class ClosedSession(msgspec.Struct, frozen=True, tag_field="kind", tag="closed"):
    """The end of a session that was not disturbed."""

    session: int
    end_ts: float
    cpu_s: float | None = None
    """Processor time from the load's start to the end; None: not known, the engine is a server's."""


Entry: TypeAlias = EndedCall | EndedPrefill | OpenedSession | ClosedSession
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
_ENCODER = msgspec.json.Encoder()


def to_line(entry: Entry) -> bytes:
    """Write an entry as a line of a journal."""
    return frame(_ENCODER.encode(entry))


def from_line(line: bytes) -> Entry:
    """Read a line of a journal that is known to be whole."""
    text = unframe(line)
    assert text is not None, "its writer made it just now"
    return _DECODER.decode(text)


def read_entries(path: Path) -> Iterator[Entry]:
    """Go over a log as far as it is whole."""
    return (entry for entry in decoded(path, _DECODER.decode) if entry is not None)


def without_token_ids(record: CallRecord) -> CallRecord:
    """Give a record as the driver keeps it: a batch's token ids would take gigabytes, and the journal has them."""
    if record.response is None or not record.response.token_ids:
        return record
    return record._replace(response=record.response._replace(token_ids=()))


@dataclass(slots=True)
class JournalState:
    """What a journal holds but for token ids, and what is added to it while a run goes on."""

    ended: list[CallRecord] = field(default_factory=list)
    prefills: list[PrefillRecord] = field(default_factory=list)
    opened: dict[int, list[OpenedSession]] = field(default_factory=lambda: defaultdict(list))
    closed: dict[int, list[ClosedSession]] = field(default_factory=lambda: defaultdict(list))
    last_ts: float = 0.0
    """The latest instant that anybody wrote down."""
    num_damaged: int = 0
    """Lines that no writer finished, or that changed on the disk."""
    _done: dict[tuple[CallKey, str], CallRecord] = field(default_factory=dict)
    _last: dict[CallKey, str] = field(default_factory=dict)
    """The fingerprint under which each was done last."""
    _served: dict[tuple[int, ExpertName, tuple[int, ...]], set[CallKey]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Calls by the session that served them, with its expert and workers."""

    def add(self, entry: Entry) -> None:
        """Take note of an entry."""
        if isinstance(entry, EndedCall):
            self.note(entry.record)
        elif isinstance(entry, EndedPrefill):
            self.prefills.append(entry.record)
            self.last_ts = max(self.last_ts, entry.record.finished_ts)
        elif isinstance(entry, OpenedSession):
            self.opened[entry.session].append(entry)
            self.last_ts = max(self.last_ts, entry.start_ts)
        else:
            self.closed[entry.session].append(entry)
            self.last_ts = max(self.last_ts, entry.end_ts)

    def note(self, record: CallRecord) -> CallRecord:
        """Take note of a call that ended; gives its record as it is kept."""
        kept = without_token_ids(record)
        self.ended.append(kept)
        self.last_ts = max(self.last_ts, kept.finished_ts or 0.0)
        if kept.status is not CallStatus.FAILED:
            self._done.setdefault((kept.key, fingerprint_of(kept)), kept)
            self._last[kept.key] = fingerprint_of(kept)
        if kept.status in SERVED:
            self._served[kept.session, kept.expert, kept.workers].add(kept.key)
        return kept

    def done(self, key: CallKey, fingerprint: str) -> CallRecord | None:
        """Find a call that need not be run: it ended and did not fail, and nothing that decides it changed."""
        return self._done.get((key, fingerprint))

    def last_fingerprint(self, key: CallKey) -> str | None:
        """Tell what decided a call when it was done last; None: it never was."""
        return self._last.get(key)

    @property
    def done_keys(self) -> frozenset[CallKey]:
        """Name the calls that ended and did not fail."""
        return frozenset(self._last)

    def session_record(self, session: Session, calls: Sequence[CallRecord]) -> SessionRecord | None:
        """Describe a session, whose calls that ended these are; None: its engine was never ready.

        One that was interrupted has one record: from the load of its first attempt to the end of its last, the loads
        of the others inside. One that served other calls in an earlier start counts as interrupted once: its time is
        not that of these calls.
        """
        place = session.expert, session.workers
        opened = [entry for entry in self.opened.get(session.id, ()) if (entry.expert, entry.workers) == place]
        if not opened:
            return None
        closed = self.closed.get(session.id, [])
        finished = [call for call in calls if call.status in SERVED]
        has_served_others = self._served.get((session.id, *place), set()) != {call.key for call in finished}
        ends = [entry.start_ts for entry in opened] + [entry.end_ts for entry in closed]
        cpu_s = [entry.cpu_s for entry in closed if entry.cpu_s is not None]
        return SessionRecord(
            session=session.id,
            expert=session.expert,
            node=session.node,
            workers=session.workers,
            load_start_ts=opened[0].load_start_ts,
            load_s=opened[0].load_s,
            start_ts=opened[0].start_ts,
            end_ts=max([*ends, *(call.finished_ts for call in calls if call.finished_ts is not None)]),
            num_calls=len(finished),
            output_tokens=sum(call.output_tokens for call in finished),
            cpu_s=add_in_order(cpu_s) if len(cpu_s) == len(opened) else None,
            num_interruptions=len(opened) - 1 + has_served_others,
        )


def fingerprint_of(record: CallRecord) -> str:
    """Give the fingerprint of all that decides a call's response."""
    return "" if record.response is None else record.response.fingerprint


def own_journals(folder: Path, *kinds: str) -> list[Path]:
    """List the journals in a run's folder of journals that hold the batch's own calls, by how their names begin.

    ``run`` is the run itself, ``pilot`` its pilot's stages, ``quote`` those of a quote; the others are measurements.
    """
    return sorted(path for path in folder.glob("*") if path.is_dir() and path.name.startswith(kinds))


def read_journal(*folders: Path, state: JournalState | None = None) -> JournalState:
    """Read all logs of journals but those of commands and starts, in the order of their names.

    They are added to ``state``, where one is given.
    """
    state = JournalState() if state is None else state
    for path in (path for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}"))):
        if path.name not in (COMMANDS, STARTS):
            for entry in decoded(path, _DECODER.decode):
                if entry is None:
                    state.num_damaged += 1
                else:
                    state.add(entry)
    return state

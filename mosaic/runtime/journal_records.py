"""What a run's journal holds: calls, prefills, sessions and starts of the run, and its commands."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import msgspec

from mosaic.core.addition import add_in_order
from mosaic.core.commands import Action, decode_action, encode_action
from mosaic.core.plan import Session
from mosaic.core.results import SERVED, CallRecord, CallStatus, PrefillRecord, Resumption, SessionRecord
from mosaic.core.workload import CallKey, ExpertName, NodeName
from mosaic.runtime.journal import FILE_NAME, Log, decoded, frame, refuse_old


class EndedCall(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """One attempt at a call, ended."""

    record: CallRecord
    """Without its answer, which is read from the response again."""


class EndedPrefill(msgspec.Struct, frozen=True, array_like=True, tag="prefill"):
    """The beginning of a prompt, prefilled ahead of its call."""

    record: PrefillRecord


class OpenedSession(msgspec.Struct, frozen=True, array_like=True, tag="opened"):
    """A session whose engine is ready."""

    session: int
    expert: ExpertName
    node: NodeName
    workers: tuple[int, ...]
    load_start_ts: float
    load_s: float
    start_ts: float


class ClosedSession(msgspec.Struct, frozen=True, array_like=True, tag="closed"):
    """The end of a session that was not disturbed."""

    session: int
    end_ts: float
    cpu_s: float | None = None
    """Processor time from the load's start to the end; None: not known, the engine is a server's."""


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """A run begins, or goes on."""

    ts: float
    """The latest instant of the run's clock that was kept; 0: it begins."""
    unix_s: float
    first_ts: float = 0.0
    """At the first start: where the run's clock stood, at the end of its pilot, which has a journal of its own."""


Entry: TypeAlias = EndedCall | EndedPrefill | OpenedSession | ClosedSession | Start
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
_ENCODER = msgspec.json.Encoder()
NO_SESSION = -1
"""Of a call that no session of the run has served."""


def is_command(text: bytes) -> bool:
    """Tell whether a line is a command: an object, as in ``actions.jsonl``; entries are arrays that name their kind."""
    return text.startswith(b"{")


def without_token_ids(record: CallRecord) -> CallRecord:
    """Give a record as the driver keeps it: a batch's token ids would take gigabytes, and the journal has them."""
    if record.response is None or not record.response.token_ids:
        return record
    return record._replace(response=record.response._replace(token_ids=()))


@dataclass(slots=True)
class JournalState:
    """What a journal holds but for commands and token ids, and what is added to it while a run goes on."""

    ended: list[CallRecord] = field(default_factory=list)
    prefills: list[PrefillRecord] = field(default_factory=list)
    opened: dict[int, list[OpenedSession]] = field(default_factory=lambda: defaultdict(list))
    closed: dict[int, list[ClosedSession]] = field(default_factory=lambda: defaultdict(list))
    starts: list[Start] = field(default_factory=list)
    first_ts: float = 0.0
    """Where the run's clock stood when it began: at the end of its pilot."""
    last_ts: float = 0.0
    """The latest instant at which something happened."""
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
        """Add an entry."""
        match entry:
            case EndedCall(record=record):
                self.add_call(record)
            case EndedPrefill(record=record):
                self.prefills.append(record)
                self.last_ts = max(self.last_ts, record.finished_ts)
            case OpenedSession():
                self.opened[entry.session].append(entry)
                self.last_ts = max(self.last_ts, entry.start_ts)
            case ClosedSession():
                self.closed[entry.session].append(entry)
                self.last_ts = max(self.last_ts, entry.end_ts)
            case Start():
                self.starts.append(entry)

    def add_call(self, record: CallRecord) -> CallRecord:
        """Add a call that ended; gives its record as it is kept."""
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
        on_workers = session.expert, session.workers
        opened = [entry for entry in self.opened.get(session.id, ()) if (entry.expert, entry.workers) == on_workers]
        if not opened:
            return None
        closed = self.closed.get(session.id, [])
        finished = [call for call in calls if call.status in SERVED]
        has_served_others = self._served.get((session.id, *on_workers), set()) != {call.key for call in finished}
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
    """Read journals, less their commands; what they hold is added to ``state``, where one is given.

    Raises
    ------
    JournalError
        If another version wrote one.
    """
    state = JournalState() if state is None else state
    for folder in folders:
        refuse_old(folder)
        for entry in read_entries(folder):
            if entry is None:
                state.num_damaged += 1
            else:
                state.add(entry)
    return state


def read_entries(folder: Path) -> Iterator[Entry | None]:
    """Go over the entries of a journal; None: a line that is not whole."""
    lines = decoded(folder / FILE_NAME, lambda text: text if is_command(text) else _DECODER.decode(text))
    return (entry for entry in lines if not isinstance(entry, bytes))


class Journal:
    """A run's journal: what earlier starts wrote there, and what this one adds.

    What is added goes to the disk with the next ``sync``, all at once: until then nobody may hear of a result, and no
    command may take effect. The driver alone writes, while it holds the run's folder.

    Parameters
    ----------
    folder
        Of the journal.
    earlier
        Journals of what was run before this run and is part of it: its calls and sessions count as this run's.
    others
        Journals of the same batch by an earlier start, whose numbers of sessions mean nothing here.
    """

    def __init__(self, folder: Path, earlier: Sequence[Path] = (), others: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._previous = earlier
        self._others = others
        self._lines: list[bytes] = []
        self._log: Log | None = None

    @cached_property
    def state(self) -> JournalState:
        """Of the run so far; what is added now is in it."""
        state = read_journal(*self._previous)
        state.first_ts = state.last_ts
        state.prefills, state.starts, state.num_damaged = [], [], 0
        return read_journal(self.folder, state=state)

    @cached_property
    def _state_of_others(self) -> JournalState:
        return read_journal(*self._others)

    @property
    def last_ts(self) -> float:
        """The latest instant at which something happened or was commanded."""
        instants = self.state.last_ts, self._state_of_others.last_ts, *(action.ts for action in self.earlier)
        return max(instants)

    @cached_property
    def earlier(self) -> Sequence[Action]:
        """Commands of the run that was interrupted, and now goes on."""
        lines = decoded(self.folder / FILE_NAME, lambda text: decode_action(text) if is_command(text) else None)
        return [action for action in lines if action is not None]

    @property
    def ended(self) -> Set[CallKey]:
        """Calls that ended then and are not run again."""
        return self.state.done_keys | self._state_of_others.done_keys

    @property
    def resumptions(self) -> tuple[Resumption, ...]:
        """When the run went on after it had stopped."""
        return resumptions_of(self.state.starts)

    def done(self, key: CallKey, fingerprint: str) -> CallRecord | None:
        """Find a call that need not be run; None: it never ended, or what decides it has changed.

        One that another run has served is of no session here.
        """
        record = self.state.done(key, fingerprint)
        if record is None and (record := self._state_of_others.done(key, fingerprint)) is not None:
            return record._replace(session=NO_SESSION)
        return record

    def last_fingerprint(self, key: CallKey) -> str | None:
        """Tell what decided a call when it was done last; None: it never was."""
        return self.state.last_fingerprint(key) or self._state_of_others.last_fingerprint(key)

    def begin(self) -> float:
        """Put on the disk that the run begins, or goes on; gives where its clock stands.

        Raises
        ------
        JournalError
            If it cannot be done.
        """
        start = Start(self.last_ts, time.time(), self.state.first_ts)
        self.add(start)
        self.sync()
        return start.ts

    def add(self, entry: Entry) -> None:
        """Add what happened."""
        self._lines.append(frame(_ENCODER.encode(entry)))
        self.state.add(entry)

    def add_call(self, record: CallRecord) -> CallRecord:
        """Add a call that ended; gives its record as it is kept."""
        self._lines.append(frame(_ENCODER.encode(EndedCall(record))))
        return self.state.add_call(record)

    def write(self, actions: Sequence[Action]) -> None:
        """Add commands."""
        self._lines += [frame(encode_action(action)) for action in actions]

    def sync(self) -> None:
        """Put on the disk what was added.

        Raises
        ------
        JournalError
            If it cannot be done: then none of it is there.
        """
        if not self._lines:
            return
        if self._log is None:
            self._log = Log(self.folder / FILE_NAME)
        self._log.append(self._lines)
        self._lines = []

    def close(self) -> None:
        """Close the file; another sync opens it again."""
        if self._log is not None:
            self._log.close()
            self._log = None


def resumptions_of(starts: Sequence[Start]) -> tuple[Resumption, ...]:
    """Tell when a run went on. A start from where it began is a new one: of what was done before, nothing was kept.

    Examples
    --------
    >>> resumptions_of([Start(0.0, 1000.0), Start(40.0, 1100.0)])
    (Resumption(ts=40.0, pause_s=60.0),)
    """
    before = [None, *starts]
    return tuple(
        Resumption(
            ts=start.ts,
            pause_s=None if last is None else max(0.0, start.unix_s - last.unix_s - (start.ts - last.ts)),
        )
        for last, start in zip(before, starts, strict=False)
        if start.ts > starts[0].first_ts
    )

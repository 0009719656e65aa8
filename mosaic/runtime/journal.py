"""Keeps the state that must survive a crash: a run's calls, prefills, sessions, starts and commands, on disk.

A journal is a log in a folder of its own, and only the driver of a run writes it. It is not a database: it works on
network file systems, where SQLite's write-ahead log does not.

Everything is on disk before the run reports it. Each call is run exactly once because of three rules. A call is run
only if no record holds its result. One driver at a time holds the folder (``run_lock.hold``). A call's end is reported
only when its record is on disk. Calls that were running when a driver died are run again, and end as they would have. A
response depends on its seed and its call.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import msgspec

from mosaic.core.addition import add_in_order
from mosaic.core.commands import Action, decode_action, encode_action
from mosaic.core.plan import Session
from mosaic.core.results import SERVED, CallRecord, CallStatus, PrefillRecord, Resumption, SessionRecord, StoredText
from mosaic.core.spending import Payee, Spent
from mosaic.core.workload import CallKey, ExpertName, NodeName
from mosaic.runtime.log import JournalError, Line, Log, cannot, frame, lines_of, unframe

FILE_NAME = "journal.jsonl"
RUN = "run"
"""The folder of the run's own journal, beside those of measurements."""
_OLD_FILES = "*.journal"
"""Files of version 0.2, one per process."""


class EndedCall(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """One attempt at a call, ended."""

    record: CallRecord
    """Without its answer, which is extracted from the response again."""


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
    """The end of a session without interruption."""

    session: int
    end_ts: float
    cpu_s: float | None = None
    """Processor time from the load's start to the end; None: not known, for example on a server."""


class SentCall(msgspec.Struct, frozen=True, array_like=True, tag="sent"):
    """A call goes to a server, which may bill it from now on."""

    key: CallKey
    expert: ExpertName
    server: int
    attempt: int
    """Its record's, if the first request is answered."""
    num_requests: int
    """The most that are sent for it, where that is limited; else 1."""
    prompt_tokens: int
    """The most that it may read."""
    output_tokens: int
    """The most that it may write."""

    @property
    def payee(self) -> Payee:
        return Payee(self.expert, self.server)

    @property
    def most(self) -> Spent:
        """The most that it may come to."""
        tokens = {"prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens}
        return Spent(num_requests=self.num_requests, **tokens)


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """The start of a run, or its resumption."""

    ts: float
    """The latest saved instant of the run's clock; 0: the run starts."""
    unix_s: float


Entry: TypeAlias = EndedCall | EndedPrefill | OpenedSession | ClosedSession | SentCall | Start
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
_ENCODER = msgspec.json.Encoder()
NO_SESSION = -1
"""For a call that no session of the run has served."""


@dataclass(slots=True, unsafe_hash=True)
class JournalTexts:
    """Reads texts from a journal's file, which is opened at the first read."""

    path: Path
    _file: int | None = field(default=None, init=False, repr=False, compare=False)

    def text_at(self, start: int, num_bytes: int) -> str:
        """Read the text of the ended call in a line.

        Raises
        ------
        JournalError
            If the line cannot be read, or has changed on disk since it was written.
        """
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            line = unframe(os.pread(self._file, num_bytes, start))
        except OSError as error:
            raise cannot("read", self.path, error) from error
        entry = None if line is None else _DECODER.decode(line)
        response = entry.record.response if isinstance(entry, EndedCall) else None
        if response is None or not isinstance(response.content, str):
            raise JournalError(
                f"journal {self.path}: the record at byte {start} changed on the disk; start the same run again: "
                "it repeats this call"
            )
        return response.content

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)


def as_kept(record: CallRecord, stored: StoredText) -> CallRecord:
    """Return a record without texts and token ids: those of a batch would need gigabytes of memory.

    ``stored`` is the position of the record's line in the journal, which has them.
    """
    response = record.response
    if response is None or (response.content is None and not response.token_ids):
        return record
    content = None if response.content is None else stored
    return msgspec.structs.replace(record, response=response._replace(content=content, token_ids=()))


@dataclass(slots=True)
class JournalState:
    """The content of a journal without texts and token ids, updated during a run."""

    ended: list[CallRecord] = field(default_factory=list)
    prefills: list[PrefillRecord] = field(default_factory=list)
    opened: dict[int, list[OpenedSession]] = field(default_factory=lambda: defaultdict(list))
    closed: dict[int, list[ClosedSession]] = field(default_factory=lambda: defaultdict(list))
    starts: list[Start] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    """Commands of the interrupted run that is resumed; without new ones."""
    last_ts: float = 0.0
    """The latest instant at which something happened."""
    spent: dict[Payee, Spent] = field(default_factory=dict)
    """Costs of calls on servers that are no longer in progress."""
    reserved: dict[Payee, Spent] = field(default_factory=dict)
    """The most that calls on servers may come to."""
    sent: dict[CallKey, SentCall] = field(default_factory=dict)
    """Calls that servers have."""
    num_damaged: int = 0
    """Lines that were not completely written, or that changed on disk."""
    _done: dict[CallKey, tuple[CallRecord, ...]] = field(default_factory=dict)
    """All ends of each call that did not fail, in order."""
    _served: dict[tuple[int, ExpertName, tuple[int, ...]], set[CallKey]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Calls by the session that served them, with its expert and workers."""

    def add(self, entry: Entry | Action | None, stored: StoredText) -> None:
        """Add an entry and its position; None: an incomplete line."""
        match entry:
            case None:
                self.num_damaged += 1
            case Action():
                self.actions.append(entry)
            case EndedCall(record=record):
                self.add_call(as_kept(record, stored))
            case EndedPrefill(record=record):
                self.prefills.append(record)
                self.last_ts = max(self.last_ts, record.finished_ts)
            case OpenedSession():
                self.opened[entry.session].append(entry)
                self.last_ts = max(self.last_ts, entry.start_ts)
            case ClosedSession():
                self.closed[entry.session].append(entry)
                self.last_ts = max(self.last_ts, entry.end_ts)
            case SentCall():
                if (before := self._release(entry.key)) is not None:  # its server serves nothing
                    self._spend(before.payee, Spent(num_requests=before.num_requests))
                self.sent[entry.key] = entry
                self.reserved[entry.payee] = self.reserved.get(entry.payee, Spent()).plus(entry.most)
            case Start():
                self.starts.append(entry)
                for sent in [*self.sent.values()]:
                    self._release(sent.key)
                    self._lose(sent)

    def add_call(self, record: CallRecord) -> None:
        """Add the record of an ended call, without its texts."""
        self.ended.append(record)
        if (sent := self._release(record.key)) is not None:
            self._end_sent(sent, record)
        self.last_ts = max(self.last_ts, record.finished_ts or 0.0)
        if record.status is not CallStatus.FAILED:
            self._done[record.key] = (*self._done.get(record.key, ()), record)
        if record.status in SERVED:
            self._served[record.session, record.expert, record.workers].add(record.key)

    def _end_sent(self, sent: SentCall, record: CallRecord) -> None:
        """Count a call that a server had: a request that is not answered costs nothing, unless it was cancelled."""
        was_sent = record.admitted_ts is not None
        num_requests = record.attempt - sent.attempt + 1 if was_sent else sent.num_requests
        if record.status is CallStatus.CANCELLED:
            if was_sent:
                self._lose(sent)
            return
        is_answered = record.status in SERVED
        self._spend(
            sent.payee,
            Spent(
                num_requests=num_requests,
                num_retries=num_requests - 1,
                num_answered=int(is_answered),
                prompt_tokens=record.prompt_tokens if is_answered else 0,
                output_tokens=record.output_tokens if is_answered else 0,
            ),
        )

    def _release(self, key: CallKey) -> SentCall | None:
        """Take a call from those that servers have; None: it is not among them."""
        sent = self.sent.pop(key, None)
        if sent is not None:
            self.reserved[sent.payee] = self.reserved[sent.payee].minus(sent.most)
        return sent

    def _spend(self, payee: Payee, more: Spent) -> None:
        self.spent[payee] = self.spent.get(payee, Spent()).plus(more)

    def _lose(self, sent: SentCall) -> None:
        before = self.spent.get(sent.payee, Spent())
        self.spent[sent.payee] = before.with_lost(sent.num_requests, sent.prompt_tokens, sent.output_tokens)

    def done(self, key: CallKey, fingerprint: str) -> CallRecord | None:
        """Find a call that need not be run: it ended without failure, and all its inputs are unchanged."""
        return next((record for record in self._done.get(key, ()) if fingerprint_of(record) == fingerprint), None)

    def last_fingerprint(self, key: CallKey) -> str | None:
        """Return the fingerprint of a call's last end; None: it never ended."""
        return fingerprint_of(self._done[key][-1]) if key in self._done else None

    @property
    def done_keys(self) -> frozenset[CallKey]:
        """Keys of calls that ended without failure: a backend reports each again, at once, when it is submitted."""
        return frozenset(self._done)

    def session_record(self, session: Session, calls: Sequence[CallRecord]) -> SessionRecord | None:
        """Describe a session by its ended calls; None: its engine was never ready.

        An interrupted session has one record. It spans the load of its first attempt to the end of its last, and
        includes the loads of the others. A session that served other calls in an earlier start counts as interrupted
        once: its time is not that of these calls.
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
    """Return the fingerprint of everything that a call's response depends on."""
    return "" if record.response is None else record.response.fingerprint


def read_journal(folder: Path) -> JournalState:
    """Read a journal.

    Raises
    ------
    JournalError
        If another version wrote it.
    """
    state, texts = JournalState(), JournalTexts(folder / FILE_NAME)
    for line, entry in _lines_and_entries(folder):
        state.add(entry, StoredText(texts, line.start, line.num_bytes))
    return state


def read_entries(folder: Path) -> Iterator[Entry | Action | None]:
    """Iterate over a journal, one record in memory at a time; None: an incomplete line.

    Commands are objects, as in ``actions.jsonl``; entries are arrays that name their kind.

    Raises
    ------
    JournalError
        If another version wrote it.
    """
    return (entry for _, entry in _lines_and_entries(folder))


def _lines_and_entries(folder: Path) -> Iterator[tuple[Line, Entry | Action | None]]:
    if old := sorted(path.name for path in folder.glob(_OLD_FILES)):
        raise JournalError(
            f"journal {folder}: version 0.2 wrote it ({', '.join(old)}); "
            "continue with that version, or remove it to start again"
        )
    path = folder / FILE_NAME
    for line in lines_of(path):
        text = line.text
        try:
            yield line, None if text is None else decode_action(text) if text[:1] == b"{" else _DECODER.decode(text)
        except msgspec.DecodeError as error:
            raise JournalError(f"journal {path}: holds a record of another version ({error}); remove it") from error


class Journal:
    """A run's journal: the entries of earlier starts, and those of this start.

    Added entries are written to disk by the next ``sync``, all at once. Until then no result is reported, and no
    command takes effect. Only the driver writes, while it holds the run's folder.

    Parameters
    ----------
    folder
        The journal's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: list[bytes] = []
        self._num_bytes = 0
        """Size of these."""
        self._texts = JournalTexts(folder / FILE_NAME)
        self._log: Log | None = None

    @cached_property
    def state(self) -> JournalState:
        """State of the run so far, added entries included."""
        return read_journal(self.folder)

    @property
    def last_ts(self) -> float:
        """The latest instant of an event or a command."""
        return max(self.state.last_ts, *(action.ts for action in self.state.actions), 0.0)

    def begin(self) -> float:
        """Record on disk that the run starts or resumes; returns the time of its clock.

        Raises
        ------
        JournalError
            If the disk cannot be written.
        """
        start = Start(self.last_ts, time.time())
        self.add(start)
        self.sync()
        return start.ts

    def add(self, entry: Entry) -> None:
        """Add an event."""
        self.state.add(entry, self._append(_ENCODER.encode(entry)))

    def add_call(self, record: CallRecord, read: CallRecord) -> CallRecord:
        """Add an ended call; returns its record without texts, given the record with its answer.

        Its text can be read after the next ``sync``.
        """
        kept = as_kept(read, self._append(_ENCODER.encode(EndedCall(record))))
        self.state.add_call(kept)
        return kept

    def write(self, actions: Sequence[Action]) -> None:
        """Add commands."""
        for action in actions:
            self._append(encode_action(action))

    def sync(self) -> None:
        """Write the added entries to disk.

        Raises
        ------
        JournalError
            If the disk cannot be written: then none of them is there.
        """
        if not self._lines:
            return
        lines = self._lines
        self._lines, self._num_bytes = [], 0  # after an interruption they may be on disk, but never twice
        self._opened_log().append(lines)

    def _append(self, text: bytes) -> StoredText:
        """Add a line to the next sync; returns its position."""
        line = frame(text)
        stored = StoredText(self._texts, self._opened_log().size_bytes + self._num_bytes, len(line))
        self._lines.append(line)
        self._num_bytes += len(line)
        return stored

    def _opened_log(self) -> Log:
        if self._log is None:
            self._log = Log(self.folder / FILE_NAME)
        return self._log

    def close(self) -> None:
        """Close the file; the next added entry opens it again."""
        if self._log is not None:
            self._log.close()
            self._log = None


def resumptions_of(starts: Sequence[Start]) -> tuple[Resumption, ...]:
    """Return when a run was resumed. A start at time 0 is a new run: nothing was kept of earlier work.

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
        if start.ts > 0.0
    )

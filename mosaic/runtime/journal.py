"""What survives a crash: calls, prefills, sessions, starts and commands of a run, on the disk before it reports them.

A journal is a file in a folder of its own, which the driver of a run alone writes, and not a database: it works on
network file systems, where SQLite's write-ahead log does not, a record that a crash tore is found by its checksum and
dropped, wherever it stands, and a full disk leaves nothing behind, because a failed append is cut off again. A record
is a line: the CRC-32 of its JSON text, a space, the text.

Exactly once follows from the order of things. A call is run only if no record holds its result, one driver at a time
holds the folder (``run_lock.hold``), and a call's finish is reported only when its record is on the disk. What was
under way when a driver died is run again, and ends as it would have: a response follows from its seed and its call.
"""

import os
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import msgspec

from mosaic.core.addition import add_in_order
from mosaic.core.commands import Action, decode_action, encode_action
from mosaic.core.errors import BackendError
from mosaic.core.plan import Session
from mosaic.core.results import SERVED, CallRecord, CallStatus, PrefillRecord, Resumption, SessionRecord
from mosaic.core.workload import CallKey, ExpertName, NodeName

FILE_NAME = "journal.jsonl"
RUN = "run"
"""The folder of the run's own journal, beside those of what is measured."""
_OLD_FILES = "*.journal"
"""What version 0.2 wrote, one file per process."""


class JournalError(BackendError):
    """A journal cannot be written or is in use; no run can go on without it."""


def make_folder(folder: Path) -> None:
    """Make a journal's folder, unless it is there.

    Raises
    ------
    JournalError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot("opened", folder, error) from error


def frame(text: bytes) -> bytes:
    """Make a record's JSON text, of one line, a line that can prove it is whole."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def unframe(line: bytes) -> bytes | None:
    """Read a line, with or without its newline; None: it is torn or damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    return text if checksum == b"%08x" % zlib.crc32(text) else None


def lines_of(path: Path) -> Iterator[bytes | None]:
    """Go over a log's records, one in memory at a time; None: a line that is not whole. No file, no records."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        for line in file:
            yield unframe(line) if line.endswith(b"\n") else None


class Log:
    """Appends records to one file, of which this process is the only writer.

    A torn record at its end, which a crash may have left, is cut off when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        existed = path.exists()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._size = self._whole_lines()
            os.ftruncate(self._file, self._size)
            if not existed:
                _sync_folder(path.parent)
        except OSError as error:
            raise _cannot("opened", path, error) from error

    def append(self, lines: Sequence[bytes]) -> None:
        """Put framed records on the disk, in one piece; returns when they are there.

        Raises
        ------
        JournalError
            If they are not: then none of them is in the file.
        """
        data = b"".join(lines)
        try:
            at = self._size
            while at < self._size + len(data):
                at += os.pwrite(self._file, data[at - self._size :], at)
            os.fdatasync(self._file)
        except OSError as error:
            # NOTE: after a failed sync it is not known what reached the disk, so nothing of it may count.
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise _cannot("written", self.path, error) from error
        self._size += len(data)

    def close(self) -> None:
        os.close(self._file)

    def _whole_lines(self) -> int:
        """Find where the last finished line ends, in bytes; reads back from the end."""
        end = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - 65536)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0


def _sync_folder(folder: Path) -> None:
    """Make a new file's name survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot(what: str, path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"journal {path} cannot be {what}: {error.strerror or error}; what it holds is kept: "
        "remove the cause and start the same run again"
    )


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


Entry: TypeAlias = EndedCall | EndedPrefill | OpenedSession | ClosedSession | Start
_DECODER: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
_ENCODER = msgspec.json.Encoder()
NO_SESSION = -1
"""Of a call that no session of the run has served."""


def without_token_ids(record: CallRecord) -> CallRecord:
    """Give a record as the driver keeps it: a batch's token ids would take gigabytes, and the journal has them."""
    if record.response is None or not record.response.token_ids:
        return record
    return record._replace(response=record.response._replace(token_ids=()))


@dataclass(slots=True)
class JournalState:
    """What a journal holds but for token ids, and what happens while a run goes on."""

    ended: list[CallRecord] = field(default_factory=list)
    prefills: list[PrefillRecord] = field(default_factory=list)
    opened: dict[int, list[OpenedSession]] = field(default_factory=lambda: defaultdict(list))
    closed: dict[int, list[ClosedSession]] = field(default_factory=lambda: defaultdict(list))
    starts: list[Start] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    """Commands of the run that was interrupted, and now goes on; none that it gives now."""
    last_ts: float = 0.0
    """The latest instant at which something happened."""
    num_damaged: int = 0
    """Lines that no writer finished, or that changed on the disk."""
    _done: dict[CallKey, tuple[CallRecord, ...]] = field(default_factory=dict)
    """All ends of each call that did not fail, the last one last."""
    _served: dict[tuple[int, ExpertName, tuple[int, ...]], set[CallKey]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Calls by the session that served them, with its expert and workers."""

    def add(self, entry: Entry | Action | None) -> None:
        """Add an entry; None: a line that is not whole."""
        match entry:
            case None:
                self.num_damaged += 1
            case Action():
                self.actions.append(entry)
            case EndedCall(record=record):
                self.add_call(without_token_ids(record))
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

    def add_call(self, record: CallRecord) -> None:
        """Add a call that ended."""
        self.ended.append(record)
        self.last_ts = max(self.last_ts, record.finished_ts or 0.0)
        if record.status is not CallStatus.FAILED:
            self._done[record.key] = (*self._done.get(record.key, ()), record)
        if record.status in SERVED:
            self._served[record.session, record.expert, record.workers].add(record.key)

    def done(self, key: CallKey, fingerprint: str) -> CallRecord | None:
        """Find a call that need not be run: it ended and did not fail, and nothing that decides it changed."""
        return next((record for record in self._done.get(key, ()) if fingerprint_of(record) == fingerprint), None)

    def last_fingerprint(self, key: CallKey) -> str | None:
        """Tell what decided a call when it was done last; None: it never was."""
        return fingerprint_of(self._done[key][-1]) if key in self._done else None

    @property
    def done_keys(self) -> frozenset[CallKey]:
        """Name the calls that ended and did not fail: a backend reports each again, at once, when it is submitted."""
        return frozenset(self._done)

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


def read_journal(folder: Path) -> JournalState:
    """Read a journal.

    Raises
    ------
    JournalError
        If another version wrote it.
    """
    state = JournalState()
    for entry in read_entries(folder):
        state.add(entry)
    return state


def read_entries(folder: Path) -> Iterator[Entry | Action | None]:
    """Go over a journal, one record in memory at a time; None: a line that is not whole.

    Commands are objects, as in ``actions.jsonl``; entries are arrays that name their kind.

    Raises
    ------
    JournalError
        If another version wrote it.
    """
    if old := sorted(path.name for path in folder.glob(_OLD_FILES)):
        raise JournalError(
            f"journal {folder}: version 0.2 wrote it ({', '.join(old)}); "
            "go on with that version, or remove it to start anew"
        )
    path = folder / FILE_NAME
    for text in lines_of(path):
        try:
            yield None if text is None else decode_action(text) if text[:1] == b"{" else _DECODER.decode(text)
        except msgspec.DecodeError as error:
            raise JournalError(f"journal {path}: holds a record of another version ({error}); remove it") from error


class Journal:
    """A run's journal: what earlier starts wrote there, and what this one adds.

    What is added goes to the disk with the next ``sync``, all at once: until then no result is reported, and no
    command takes effect. The driver alone writes, while it holds the run's folder.

    Parameters
    ----------
    folder
        Of the journal.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: list[bytes] = []
        self._log: Log | None = None

    @cached_property
    def state(self) -> JournalState:
        """Of the run so far; what is added now is in it."""
        return read_journal(self.folder)

    @property
    def last_ts(self) -> float:
        """The latest instant at which something happened or was commanded."""
        return max(self.state.last_ts, *(action.ts for action in self.state.actions), 0.0)

    def begin(self) -> float:
        """Put on the disk that the run begins, or goes on; gives where its clock stands.

        Raises
        ------
        JournalError
            If it cannot be done.
        """
        start = Start(self.last_ts, time.time())
        self.add(start)
        self.sync()
        return start.ts

    def add(self, entry: Entry) -> None:
        """Add what happened."""
        self._lines.append(frame(_ENCODER.encode(entry)))
        self.state.add(entry)

    def add_call(self, record: CallRecord, kept: CallRecord) -> None:
        """Add a call that ended; the state has its record as it is kept."""
        self._lines.append(frame(_ENCODER.encode(EndedCall(record))))
        self.state.add_call(kept)

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
        lines, self._lines = self._lines, []  # interrupted meanwhile they may be there, and never twice
        self._log.append(lines)

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
        if start.ts > 0.0
    )

"""What survives a crash: a file of lines, each on the disk before anybody hears of it.

A journal is a file in a folder of its own, which the driver of a run alone writes, and not a database: it works on
network file systems, where SQLite's write-ahead log does not, a record that a crash tore is found by its checksum and
dropped, wherever it stands, and a full disk leaves nothing behind, because a failed append is cut off again. A record
is a line: the CRC-32 of its JSON text, a space, the text.

Exactly once follows from the order of things. A call is run only if no record holds its result, one driver at a time
holds the folder (``run_lock.hold``), and a call's finish is reported only when its record is on the disk. What was
under way when a driver died is run again, and ends as it would have: a response follows from its seed and its call.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from mosaic.core.errors import BackendError

_Record = TypeVar("_Record")

FILE_NAME = "journal.jsonl"
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


def refuse_old(folder: Path) -> None:
    """Refuse what an earlier version wrote.

    Raises
    ------
    JournalError
        If there is any of it.
    """
    if old := sorted(path.name for path in folder.glob(_OLD_FILES)):
        raise JournalError(
            f"journal {folder}: version 0.2 wrote it ({', '.join(old)}); "
            "go on with that version, or remove it to start anew"
        )


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


def decoded(path: Path, decode: Callable[[bytes], _Record]) -> Iterator[_Record | None]:
    """Go over a log's records and decode each; None: a line that is not whole.

    Raises
    ------
    JournalError
        If a whole line holds what nobody of this version wrote.
    """
    for text in lines_of(path):
        try:
            yield None if text is None else decode(text)
        except msgspec.DecodeError as error:
            raise JournalError(f"journal {path}: holds a record of another version ({error}); remove it") from error


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
            # NOTE: after a failed sync nobody knows what reached the disk, so nothing of it may count.
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise _cannot("written", self.path, error) from error
        self._size += len(data)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

"""Writes files of records that survive a crash: one line per record, each complete or absent.

A record is a line: the CRC-32 of its JSON text, a space, the text. The checksum reveals a record that a crash left
incomplete, at any position, and such a record is dropped. A full disk leaves no partial record, because a failed append
is cut off again.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mosaic.core.errors import BackendError


class JournalError(BackendError):
    """A journal cannot be written or is in use; no run can continue without it."""


def make_folder(folder: Path) -> None:
    """Make a journal's folder, unless it exists.

    Raises
    ------
    JournalError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot("opened", folder, error) from error


def frame(text: bytes) -> bytes:
    """Add a checksum to a record's JSON text, which makes a complete line."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def unframe(line: bytes) -> bytes | None:
    """Read a line, with or without its newline; None: it is incomplete or damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    return text if checksum == b"%08x" % zlib.crc32(text) else None


class Line(NamedTuple):
    """A line of a log."""

    start: int
    """Its first byte."""
    num_bytes: int
    text: bytes | None
    """None: the line is not complete."""


def lines_of(path: Path) -> Iterator[Line]:
    """Iterate over a log's lines, one in memory at a time. A missing file has no lines."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    start = 0
    with file:
        for line in file:
            yield Line(start, len(line), unframe(line) if line.endswith(b"\n") else None)
            start += len(line)


class Log:
    """Appends records to one file, of which this process is the only writer.

    When the file is opened, an incomplete record at its end is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        existed = path.exists()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.size_bytes = self._whole_lines()
            """Size on disk."""
            os.ftruncate(self._file, self.size_bytes)
            if not existed:
                _sync_folder(path.parent)
        except OSError as error:
            raise cannot("opened", path, error) from error

    def append(self, lines: Sequence[bytes]) -> None:
        """Write framed records to disk, all at once; returns when they are there.

        Raises
        ------
        JournalError
            If they cannot be written: then none of them is in the file.
        """
        data = b"".join(lines)
        try:
            at = self.size_bytes
            while at < self.size_bytes + len(data):
                at += os.pwrite(self._file, data[at - self.size_bytes :], at)
            os.fdatasync(self._file)
        except OSError as error:
            # NOTE: after a failed sync it is not known what reached the disk, so none of it may count.
            with suppress(OSError):
                os.ftruncate(self._file, self.size_bytes)
            raise cannot("written", self.path, error) from error
        self.size_bytes += len(data)

    def close(self) -> None:
        os.close(self._file)

    def _whole_lines(self) -> int:
        """Find the end of the last complete line, in bytes; reads backwards from the end."""
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


def cannot(what: str, path: Path, error: OSError) -> JournalError:
    """Describe what cannot be done with a journal, and how to continue."""
    return JournalError(
        f"journal {path} cannot be {what}: {error.strerror or error}; what it holds is kept: "
        "remove the cause and start the same run again"
    )
